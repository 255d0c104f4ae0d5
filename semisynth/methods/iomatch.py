"""IOMatch: Li et al., "IOMatch: simplifying open-set semi-supervised learning with joint inliers and outliers
utilization", ICCV 2023, arXiv 2308.13168.

A binary classifier for each class, as in OpenMatch but behind a projection, splits the closed-set prediction into what
is of the class and what is of none. These open-set targets over classes + 1 teach an open-set classifier from all
unlabeled images; the closed-set classifier learns from those that are no outliers by them. The published implementation
keeps what equals a threshold where the paper says above, leaves the open-set term out of its first epoch of 256, adds
1e-8 in the logarithms of the binary loss and 1e-6 to both sides of the alignment's ratio, and turns the alignment off
for CIFAR-10 (`align` false). It is evaluated, as there, by the closed-set classifier.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.functional import gather
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods._targets import aligned, consistency, finite
from semisynth.methods.openmatch import OneVsAll, one_vs_all
from semisynth.methods.supervised import View, labeled_view
from semisynth.models.classifier import Classifier

RECENT = 128  # batches over which the alignment takes the mean prediction


def open_targets(p: Tensor, binary: Tensor) -> Tensor:
    """q_k = p_k o_k for each class, and sum_k p_k (1 - o_k) for none of them: (m, classes + 1), rows of sum one.

    p: closed-set predictions (m, classes); binary: logits (m, classes, 2), inlier then outlier, of which o_k is made.
    """
    inlier, outlier = binary.softmax(-1).unbind(-1)
    return torch.cat([p * inlier, (p * outlier).sum(1, keepdim=True)], 1)


class IOMatch(Method):
    """L = CE(labeled) + binary_weight * L_mb + weight * L_ui + open_weight * L_op.

    L_ui is the closed-set consistency with soft targets on inliers, L_op the open-set one on all.

    Args:
        threshold: tau_p, the confidence above which a closed-set prediction is a target
        open_threshold: tau_q, the confidence above which an open-set target is one
        weight: of L_ui
        open_weight: of L_op
        binary_weight: of L_mb, the binary classifiers' loss on labeled images
        align: whether closed-set predictions are aligned to the uniform distribution
        width: of the projection
        view: of the labeled images; the paper's is weak
    """

    model: Classifier
    ranges = {
        "view": ["weak", "strong"],
        "threshold": [0.7, 0.8, 0.9, 0.95],
        "weight": (0.1, 3.0),
        "open_weight": (0.1, 3.0),
        "align": [True, False],
    }

    def __init__(
        self,
        model: Classifier,
        weak: Weak,
        strong: Strong,
        classes: int,
        *,
        threshold: float = 0.95,
        open_threshold: float = 0.5,
        weight: float = 1.0,
        open_weight: float = 1.0,
        binary_weight: float = 1.0,
        align: bool = True,
        width: int = 128,
        view: View = "weak",
    ) -> None:
        super().__init__()
        between(0, 1, threshold=threshold, open_threshold=open_threshold)
        between(0, math.inf, weight=weight, open_weight=open_weight, binary_weight=binary_weight)
        between(1, math.inf, width=width)
        self.model, self.weak, self.strong = model, weak, strong
        before = model.head.in_features
        self.projection = nn.Sequential(nn.Linear(before, before), nn.ReLU(), nn.Linear(before, width))
        self.one_vs_all, self.open_head = OneVsAll(width, classes), nn.Linear(width, classes + 1)
        self.threshold, self.open_threshold, self.align = threshold, open_threshold, align
        self.weights = {"binary": binary_weight, "unsupervised": weight, "open": open_weight}
        self.view = labeled_view(view, weak, strong)
        self.register_buffer("recent", torch.zeros(RECENT, classes))

    def updates(self) -> dict[str, Update]:
        trained = nn.ModuleList([self.model, self.projection, self.one_vs_all, self.open_head])
        return {"classifier": Update(trained, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """The paper's four losses."""
        with torch.no_grad():
            p, q, recent = self.targets(batch.u)
            inlier, open_mask = q[:, -1] < 0.5, (q.amax(1) > self.open_threshold).to(q.dtype)
            mask = (inlier & (p.amax(1) > self.threshold)).to(p.dtype)
        features = self.model.features(torch.cat([self.view(batch.x), self.strong(batch.u)]))
        labeled, strong = finite(self.model.head(features)).split([len(batch.x), len(batch.u)])
        projected, open_projected = self.projection(features).split([len(batch.x), len(batch.u)])
        terms = {
            "binary": one_vs_all(finite(self.one_vs_all(projected)), batch.y),
            "unsupervised": consistency(strong, p, mask),
            "open": consistency(finite(self.open_head(open_projected)), q, open_mask),
        }
        weighted = {name: self.weights[name] * term for name, term in terms.items()}
        metrics = {"mask": mask.mean(), "inlier": inlier.to(p.dtype).mean(), "open_mask": open_mask.mean()}
        return Losses({"supervised": F.cross_entropy(labeled, batch.y), **weighted}, metrics, memory={"recent": recent})

    def targets(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Closed-set targets (m, classes), open-set ones (m, classes + 1), and the recent batches' mean predictions."""
        features = self.model.features(self.weak(u))
        p = finite(self.model.head(features)).softmax(-1)
        recent = torch.cat([self.get_buffer("recent")[1:], gather(p).mean(0, keepdim=True)])
        p = aligned(p, recent.sum(0)) if self.align else p
        return p, open_targets(p, finite(self.one_vs_all(self.projection(features)))), recent
