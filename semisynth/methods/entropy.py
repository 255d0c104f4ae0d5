"""Entropy minimisation: Grandvalet and Bengio, "Semi-supervised learning by entropy minimization", NeurIPS 2004.

Decision boundaries are to lie where there are few images. The paper has no augmentation: the views are ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods.supervised import View, labeled_view


def entropy(logits: Tensor) -> Tensor:
    """H = -sum_c p_c log p_c of each row: (n, classes) -> (n,), in nats."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


class Entropy(Method):
    """L = CE(labeled) + weight * mean entropy of the predictions on unlabeled images.

    Args:
        weight: lambda, of the entropy
        unlabeled_view: of the unlabeled images
        view: of the labeled images
    """

    ranges = {"view": ["weak", "strong"], "unlabeled_view": ["weak", "strong"], "weight": (0.01, 1.0)}

    def __init__(
        self,
        model: nn.Module,
        weak: Weak,
        strong: Strong,
        *,
        weight: float = 0.1,
        unlabeled_view: View = "weak",
        view: View = "strong",
    ) -> None:
        super().__init__()
        between(0, math.inf, weight=weight)
        self.model, self.weight = model, weight
        self.unlabeled_view = labeled_view(unlabeled_view, weak, strong)
        self.view = labeled_view(view, weak, strong)

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """CE(labeled) + weight * H(unlabeled)."""
        both = torch.cat([self.view(batch.x), self.unlabeled_view(batch.u)])
        labeled, unlabeled = self.model(both).split([len(batch.x), len(batch.u)])
        supervised = F.cross_entropy(labeled, batch.y)
        return Losses({"supervised": supervised, "entropy": self.weight * entropy(unlabeled).mean()})
