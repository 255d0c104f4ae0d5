"""Which part of a classifier is trained: all of it, its head, or its head and low-rank adapters in its features.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang and Chen, "LoRA: low-rank adaptation of large language models", ICLR 2022
(arXiv 2106.09685), by the library peft.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from semisynth import optional
from semisynth.adapter import Shape
from semisynth.errors import UserError, between, sentence
from semisynth.models.backbone import probe, replace
from semisynth.models.classifier import Classifier

Ways = Literal["full", "frozen", "lora"]
A, B = ".lora_A.default.weight", ".lora_B.default.weight"  # as peft calls them
OTHERWISE = "Give --tune-features frozen or full."


@dataclass(frozen=True)
class Tuning:
    """How the features are trained; rank: of the adapters."""

    way: Ways = "full"
    rank: int = 8

    def apply(self, model: Classifier, shape: Shape) -> None:
        """Freeze what is not trained; what is frozen stays in eval mode, BatchNorm's statistics with it.

        An adapter is at each linear layer that images of this shape go through or, where there is none, at each such
        convolution without groups; scaled by one, and zero at first. `UserError` where there is neither, where one
        would not be trained, and without peft.
        """
        if self.way == "full":
            return
        model.features.requires_grad_(False)
        model.still = True
        model.train(model.training)
        if self.way == "lora":
            _adapt(model.features, self.rank, probe(shape))
            model.train(model.training)


def _adapt(features: nn.Module, rank: int, x: Tensor) -> None:
    between(1, 4096, lora_rank=rank)
    library = optional.library("peft", "--tune-features lora")
    for module in features.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # by which it takes no way around its layers, as it does in eval mode
    called = _called(features, x)
    names = [name for name, module in called.items() if isinstance(module, nn.Linear)] or [*called]
    if not names:
        raise UserError("--tune-features lora: the features have no linear layer and no convolution: leave it out.")
    # As a pattern: a list would also mean every name that ends like one of these.
    config = library.LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, names)))
    try:
        library.inject_adapter_in_model(config, features)
        for name in names:
            replace(features, called[name], features.get_submodule(name))  # of one layer with two names both
        given = {name: p for name, p in features.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            found = torch.autograd.grad(features(x).sum(), [*given.values()], allow_unused=True)
    except Exception as error:  # layers of foreign networks may not be what they seem
        raise UserError(
            f"--tune-features lora: the features fail with adapters: {sentence(error)} {OTHERWISE}"
        ) from error
    for name, gradient in zip(given, found, strict=True):
        if gradient is None:
            raise UserError(f"--tune-features lora: the adapter '{name}' would not be trained. {OTHERWISE}")


def _called(features: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """The linear layers and convolutions without groups that are called for images x, by their first names."""
    called: set[nn.Module] = set()
    handles = [module.register_forward_hook(lambda module, *_: called.add(module)) for module in features.modules()]
    try:
        with torch.no_grad():
            features(x)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: module
        for name, module in features.named_modules()
        if module in called
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    }


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with those of adapters added to what they adapt, under the names that it has without them."""
    found = {name.replace(".base_layer.", "."): value for name, value in tensors.items() if ".lora_" not in name}
    for name, a in tensors.items():
        if name.endswith(A):
            weight, b = f"{name.removesuffix(A)}.weight", tensors[name.removesuffix(A) + B]
            found[weight] = found[weight] + (b.flatten(1) @ a.flatten(1)).view_as(found[weight])
    return found
