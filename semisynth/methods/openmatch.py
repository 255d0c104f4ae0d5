"""OpenMatch: Saito, Kim and Saenko, "OpenMatch: open-set semi-supervised learning with open-set consistency
regularization", NeurIPS 2021, arXiv 2105.14148.

A binary classifier for each class tells its images from everything else, and FixMatch learns from the pseudo-inliers:
unlabeled images that pass for inliers of the class that they are predicted as. The paper picks these by the averaged
model over the whole pool before each epoch, and draws batches of them; here each step picks its own, by the weak view
that gives the target too, and takes the mean over them: our reconstruction. The entropy is summed over classes, as we
recall equation 2, and averaged over both views; the published implementation takes its mean over classes too, so its
0.1 is an `entropy` of 0.1 / classes here. It also adds 1e-8 in its logarithms.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.functional import mean
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods._targets import finite
from semisynth.methods.entropy import entropy
from semisynth.methods.supervised import View, labeled_view
from semisynth.models.classifier import Classifier


class OneVsAll(nn.Linear):
    """A linear binary classifier for each class: features (n, width) -> logits (n, classes, 2), inlier then outlier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, 2 * classes, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = super().forward(input).unflatten(1, (-1, 2))
        return logits


def one_vs_all(logits: Tensor, y: Tensor) -> Tensor:
    """L_ova, eq. 1: the mean of -log p^y(inlier) - min over k != y of log p^k(outlier); logits (n, classes, 2)."""
    inlier, outlier = logits.log_softmax(-1).unbind(-1)
    hardest = (-outlier).scatter(1, y[:, None], 0).amax(1)  # no other is below zero
    return (hardest - inlier.gather(1, y[:, None])[:, 0]).mean()


def soft_consistency(one: Tensor, other: Tensor) -> Tensor:
    """L_oc, eq. 3: the squared distance of both views' predictions, summed over classes; logits (m, classes, 2)."""
    return (one.softmax(-1) - other.softmax(-1)).square().sum((1, 2)).mean()


class OpenMatch(Method):
    """L = CE(labeled) + L_ova + entropy * L_em + consistency * L_oc + weight * L_fm, equations 4 and 5.

    Args:
        threshold: tau, the confidence from which the prediction on a pseudo-inlier is a target; the paper's is 0
        weight: of L_fm, FixMatch on the pseudo-inliers
        entropy: of L_em, the binary classifiers' entropy
        consistency: of L_oc, their consistency over two weak views; the paper's are 0.5, and 1 for CIFAR-100
        start: the part of training after which L_fm begins; the paper's is 10 epochs of 512
        view: of the labeled images; the paper's is weak
    """

    model: Classifier
    ranges = {
        "view": ["weak", "strong"],
        "threshold": [0.0, 0.8, 0.95],
        "weight": (0.1, 3.0),
        "entropy": (0.003, 0.3),
        "consistency": (0.1, 2.0),
    }

    def __init__(
        self,
        model: Classifier,
        weak: Weak,
        strong: Strong,
        classes: int,
        *,
        threshold: float = 0.0,
        weight: float = 1.0,
        entropy: float = 0.1,
        consistency: float = 0.5,
        start: float = 0.02,
        view: View = "weak",
    ) -> None:
        super().__init__()
        between(0, 1, threshold=threshold, start=start)
        between(0, math.inf, weight=weight, entropy=entropy, consistency=consistency)
        self.model, self.weak, self.strong = model, weak, strong
        self.one_vs_all = OneVsAll(model.head.in_features, classes)
        self.threshold, self.weight, self.start = threshold, weight, start
        self.entropy, self.consistency = entropy, consistency
        self.view = labeled_view(view, weak, strong)

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(nn.ModuleList([self.model, self.one_vs_all]), self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """Equation 4 and, from `start` on, 5."""
        sizes = [len(batch.x), len(batch.u), len(batch.u)]
        features = self.model.features(torch.cat([self.view(batch.x), self.weak(batch.u), self.weak(batch.u)]))
        labeled, weak, _ = finite(self.model.head(features)).split(sizes)
        binary, first, second = finite(self.one_vs_all(features)).split(sizes)
        terms = {
            "supervised": F.cross_entropy(labeled, batch.y),
            "one_vs_all": one_vs_all(binary, batch.y),
            "entropy": self.entropy * (entropy(first) + entropy(second)).sum(1).mean() / 2,
            "consistency": self.consistency * soft_consistency(first, second),
        }
        if batch.progress < self.start:
            return Losses(terms)
        pseudo = self.fixmatch(batch.u, weak.detach(), first.detach())
        return Losses({**terms, **pseudo.terms}, pseudo.metrics)

    def fixmatch(self, u: Tensor, weak: Tensor, binary: Tensor) -> Losses:
        """L_fm: FixMatch over the pseudo-inliers, whose inlier probability for the predicted class is above 1/2."""
        confidence, target = weak.softmax(-1).max(-1)
        inlier = binary.softmax(-1)[..., 0].gather(1, target[:, None])[:, 0] > 0.5
        mask = (inlier & (confidence >= self.threshold)).to(weak.dtype)
        share = mean(inlier.to(weak.dtype))
        each = F.cross_entropy(finite(self.model(self.strong(u))), target, reduction="none")
        terms = {"unsupervised": self.weight * (each * mask).mean() / share.clamp_min(1e-12)}
        return Losses(terms, {"mask": mask.mean(), "inlier": share})
