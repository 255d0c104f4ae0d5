"""FixMatch: Sohn et al., NeurIPS 2020, arXiv 2001.07685.

A confident prediction on a weak view is the target for the strong view of the same image. On images sampled from a
generator (`unlabeled` = generator) this is the naive generative SSL baseline of MP-SSL's paper.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods.supervised import View, labeled_view


class FixMatch(Method):
    """L = CE(labeled) + weight * mean over all unlabeled of [confidence >= threshold] CE(strong view, target), eq. 4.

    Args:
        threshold: tau, the confidence from which a prediction is a target
        weight: of the unsupervised term
        view: of the labeled images; the paper's is weak
    """

    ranges = {"view": ["weak", "strong"], "threshold": [0.7, 0.8, 0.9, 0.95], "weight": (0.1, 3.0)}

    def __init__(
        self,
        model: nn.Module,
        weak: Weak,
        strong: Strong,
        *,
        threshold: float = 0.95,
        weight: float = 1.0,
        view: View = "weak",
    ) -> None:
        super().__init__()
        between(0, 1, threshold=threshold)
        between(0, math.inf, weight=weight)
        self.model, self.weak, self.strong = model, weak, strong
        self.threshold, self.weight = threshold, weight
        self.view = labeled_view(view, weak, strong)

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """Equations 3 and 4 of the paper."""
        with torch.no_grad():
            confidence, target = self.model(self.weak(batch.u)).softmax(-1).max(-1)
        both = torch.cat([self.view(batch.x), self.strong(batch.u)])
        labeled, strong = self.model(both).split([len(batch.x), len(batch.u)])
        mask = (confidence >= self.threshold).float()
        supervised = F.cross_entropy(labeled, batch.y)
        unsupervised = (F.cross_entropy(strong, target, reduction="none") * mask).mean()
        terms = {"supervised": supervised, "unsupervised": self.weight * unsupervised}
        return Losses(terms, {"mask": mask.mean()})
