"""Which part of a classifier is trained: all of it, its head, or its head and low-rank adapters in its features.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang and Chen, "LoRA: low-rank adaptation of large language models", ICLR 2022
(arXiv 2106.09685), by the library peft.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from semisynth import optional
from semisynth.errors import UserError, between
from semisynth.models.classifier import Classifier

Ways = Literal["full", "frozen", "lora"]


@dataclass(frozen=True)
class Tuning:
    """How the features are trained; rank: of the adapters."""

    way: Ways = "full"
    rank: int = 8

    def apply(self, model: Classifier) -> None:
        """Freeze what is not trained; what is frozen stays in eval mode, BatchNorm's statistics with it.

        An adapter is at each linear layer of the features or, where there is none, at each convolution without groups;
        scaled by one, and zero at first. `UserError` where there is neither, and without peft.
        """
        if self.way == "full":
            return
        model.features.requires_grad_(False)
        model.still = True
        model.train(model.training)
        if self.way == "lora":
            _adapt(model.features, self.rank)


def _adapt(features: nn.Module, rank: int) -> None:
    between(1, 4096, lora_rank=rank)
    library = optional.library("peft", "--tune-features lora")
    names = [name for name, module in features.named_modules() if isinstance(module, nn.Linear)]
    names = names or [
        name for name, module in features.named_modules() if isinstance(module, nn.Conv2d) and module.groups == 1
    ]
    if not names:
        raise UserError("--tune-features lora: the features have no linear layer and no convolution: leave it out.")
    # As a pattern: a list would also mean every name that ends like one of these.
    config = library.LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, names)))
    library.inject_adapter_in_model(config, features)
