"""UDA: Xie, Dai, Hovy, Luong and Le, "Unsupervised data augmentation for consistency training", NeurIPS 2020,
arXiv 1904.12848.

The sharpened prediction on a weak view is the target for the strong view of the same image. The term is the
cross-entropy to that target; the divergence in its place has the same gradient, and is lower by the target's entropy.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.functional import mean
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods.supervised import View, labeled_view

Annealing = Literal["none", "linear", "log", "exp"]


def rising(annealing: Annealing, progress: float, classes: int) -> float:
    """eta_t = alpha_t (1 - 1/K) + 1/K, the probability of its label above which a labeled image is left out."""
    alpha = {
        "none": math.inf,
        "linear": progress,
        "log": 1 - math.exp(-5 * progress),
        "exp": math.exp(5 * (progress - 1)),
    }[annealing]
    return alpha * (1 - 1 / classes) + 1 / classes


def annealed(each: Tensor, threshold: float) -> Tensor:
    """The mean of the cross-entropies (n,) over the images of all ranks that are not surer than the threshold."""
    kept = ((-each.detach()).exp() <= threshold).to(each.dtype)
    return (each * kept).mean() / mean(kept).clamp_min(1e-12)


class UDA(Method):
    """L = CE(labeled) + weight * mean over all unlabeled of [confidence > threshold] CE(strong view, sharpened target).

    Args:
        threshold: beta, the confidence, before sharpening, above which a prediction is a target
        temperature: tau, by which the target's logits are divided; below 1 sharpens
        weight: lambda, of the unsupervised term
        annealing: of the training signal: leaves out labeled images surer than a threshold rising from 1/classes to 1
        view: of the labeled images; the paper's is weak
    """

    ranges = {
        "view": ["weak", "strong"],
        "threshold": [0.7, 0.8, 0.9, 0.95],
        "weight": (0.1, 3.0),
        "temperature": [0.3, 0.4, 0.6, 1.0],
    }

    def __init__(
        self,
        model: nn.Module,
        weak: Weak,
        strong: Strong,
        *,
        threshold: float = 0.8,
        temperature: float = 0.4,
        weight: float = 1.0,
        annealing: Annealing = "none",
        view: View = "weak",
    ) -> None:
        super().__init__()
        between(0, 1, threshold=threshold)
        between(1e-3, math.inf, temperature=temperature)
        between(0, math.inf, weight=weight)
        self.model, self.weak, self.strong = model, weak, strong
        self.threshold, self.temperature, self.weight = threshold, temperature, weight
        self.annealing, self.view = annealing, labeled_view(view, weak, strong)

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """The paper's final objective, with its confidence mask and sharpening."""
        with torch.no_grad():
            weak = self.model(self.weak(batch.u))
            confidence, target = weak.softmax(-1).amax(-1), (weak / self.temperature).softmax(-1)
        both = torch.cat([self.view(batch.x), self.strong(batch.u)])
        labeled, strong = self.model(both).split([len(batch.x), len(batch.u)])
        mask = (confidence > self.threshold).float()
        each = F.cross_entropy(labeled, batch.y, reduction="none")
        supervised = annealed(each, rising(self.annealing, batch.progress, labeled.shape[1]))
        unsupervised = (F.cross_entropy(strong, target, reduction="none") * mask).mean()
        terms = {"supervised": supervised, "unsupervised": self.weight * unsupervised}
        return Losses(terms, {"mask": mask.mean()})
