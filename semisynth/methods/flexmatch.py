"""FlexMatch: Zhang et al., "FlexMatch: boosting semi-supervised learning with curriculum pseudo labeling", NeurIPS
2021, arXiv 2110.08263.

FixMatch with a threshold for each class, which is the lower the fewer images of the class were ever predicted with
confidence. The thresholds of a step are those of the steps before it. Published implementations (TorchSSL, USB) keep a
prediction that equals its threshold, the paper only one above; and they leave the thresholds as they were when every
image of the pool has the same class. The paper's unlabeled set holds the labeled images too, the pool here does not.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import UserError, between
from semisynth.functional import gather
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods._targets import consistency, finite
from semisynth.methods.supervised import View, labeled_view


class FlexMatch(Method):
    """L = CE(labeled) + weight * mean over all unlabeled of [confidence > T(target)] CE(strong view, target), eq. 8.

    `label` (pool,) is the class of each image of the pool when it was last predicted with confidence, -1 before that.

    Args:
        threshold: tau, the confidence from which an image counts for its class, and the largest threshold
        weight: of the unsupervised term
        view: of the labeled images; the paper's is weak
    """

    ranges = {"view": ["weak", "strong"], "threshold": [0.7, 0.8, 0.9, 0.95], "weight": (0.1, 3.0)}

    def __init__(
        self,
        model: nn.Module,
        weak: Weak,
        strong: Strong,
        classes: int,
        pool: int,
        *,
        threshold: float = 0.95,
        weight: float = 1.0,
        view: View = "weak",
    ) -> None:
        super().__init__()
        between(0, 1, threshold=threshold)
        between(0, math.inf, weight=weight)
        if not pool:
            raise UserError(
                "method 'flexmatch' remembers each image of the unlabeled pool, and there is none: give --unlabeled "
                "pool and, if every image is labeled, a lower --labels-per-class."
            )
        self.model, self.weak, self.strong, self.classes = model, weak, strong, classes
        self.threshold, self.weight = threshold, weight
        self.view = labeled_view(view, weak, strong)
        self.register_buffer("label", torch.full((pool,), -1))

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """Algorithm 1."""
        with torch.no_grad():
            confidence, target = finite(self.model(self.weak(batch.u))).softmax(-1).max(-1)
            thresholds = self.thresholds(confidence.dtype)
            mask = (confidence > thresholds[target]).to(confidence.dtype)
        both = torch.cat([self.view(batch.x), self.strong(batch.u)])
        labeled, strong = finite(self.model(both)).split([len(batch.x), len(batch.u)])
        supervised = F.cross_entropy(labeled, batch.y)
        terms = {"supervised": supervised, "unsupervised": self.weight * consistency(strong, target, mask)}
        memory = {"label": self.remembered(batch.index, confidence, target)}
        return Losses(terms, {"mask": mask.mean(), "threshold": thresholds.mean()}, memory=memory)

    def thresholds(self, dtype: torch.dtype) -> Tensor:
        """T(c) = tau M(beta(c)), M(x) = x / (2 - x), of each class: equations 11 (with its warm-up) and 12.

        The warm-up's max{max_c sigma(c), N - sum_c sigma(c)} is the largest count, that of unused images included.
        """
        label = self.get_buffer("label")
        count = label.new_zeros(self.classes + 1).scatter_add(0, label + 1, torch.ones_like(label))
        beta = count[1:].to(dtype) / count.amax()
        return self.threshold * beta / (2 - beta)

    def remembered(self, index: Tensor, confidence: Tensor, target: Tensor) -> Tensor:
        """The new `label`, by the confident predictions (m,) of all ranks' images (m,); of an image's two, the last."""
        label = self.get_buffer("label")
        index, found = gather(torch.stack([index, target.where(confidence > self.threshold, -1)], 1)).unbind(1)
        position = torch.arange(len(found), device=found.device).where(found >= 0, -1)
        place = index.where(index >= 0, len(label))  # a place more, for synthetic images, which are not remembered
        last = label.new_full((len(label) + 1,), -1).scatter_reduce(0, place, position, "amax")[:-1]
        return found[last].where(last >= 0, label)
