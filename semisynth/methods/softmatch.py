"""SoftMatch: Chen et al., "SoftMatch: addressing the quantity-quality trade-off in semi-supervised learning", ICLR
2023, arXiv 2301.10921.

FixMatch with a weight in place of the mask: a Gaussian of how far the confidence lies below its mean. The confidence
that is weighed is that of the prediction after uniform alignment; target, mean and variance are of the prediction as it
is. Published implementations differ: all divide the variance by 4 (`sigmas` 2), which is not in the paper; USB takes
mean and variance after the alignment, adds 1e-6 to both sides of its ratio, and starts its expectation at the first
batch's, where we, as TorchSSL, start from the uniform distribution.
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
from semisynth.methods._targets import aligned, consistency, finite, moved
from semisynth.methods.supervised import View, labeled_view


def gaussian(confidence: Tensor, mean: Tensor, variance: Tensor, sigmas: float = 1.0) -> Tensor:
    """lambda = exp(-(confidence - mean)^2 / (2 variance)) below the mean, 1 from there on; variance over sigmas^2.

    Its limit, a step at the mean, where the variance is zero.
    """
    below = sigmas * (confidence - mean).clamp(max=0)
    return torch.exp(-below.square() / (2 * variance).clamp_min(torch.finfo(variance.dtype).tiny))


class SoftMatch(Method):
    """L = CE(labeled) + weight * mean over all unlabeled of lambda(UA(p)) CE(strong view, target).

    Args:
        decay: m, of the averages of mean, variance and prediction; 0.999 is for runs of 100,000s of steps
        sigmas: the Gaussian's width is the standard deviation over this; 1 in the paper, 2 in its code
        weight: of the unsupervised term
        view: of the labeled images; the paper's is weak
    """

    ranges = {
        "view": ["weak", "strong"],
        "decay": [0.9, 0.99, 0.999],
        "sigmas": [1.0, 2.0],
        "weight": (0.1, 3.0),
    }

    def __init__(
        self,
        model: nn.Module,
        weak: Weak,
        strong: Strong,
        classes: int,
        *,
        decay: float = 0.999,
        sigmas: float = 1.0,
        weight: float = 1.0,
        view: View = "weak",
    ) -> None:
        super().__init__()
        between(0, 1, decay=decay)
        between(0, math.inf, sigmas=sigmas, weight=weight)
        self.model, self.weak, self.strong = model, weak, strong
        self.decay, self.sigmas, self.weight = decay, sigmas, weight
        self.view = labeled_view(view, weak, strong)
        self.register_buffer("mean", torch.tensor(1 / classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("expected", torch.full((classes,), 1 / classes))

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """The paper's algorithm: the averages move first, the weights are of what they then are."""
        with torch.no_grad():
            p = finite(self.model(self.weak(batch.u))).softmax(-1)
            memory = self.followed(p)
            confidence = aligned(p, memory["expected"]).amax(-1)
            weight = gaussian(confidence, memory["mean"], memory["variance"], self.sigmas)
        both = torch.cat([self.view(batch.x), self.strong(batch.u)])
        labeled, strong = finite(self.model(both)).split([len(batch.x), len(batch.u)])
        unsupervised = consistency(strong, p.argmax(-1), weight)
        terms = {"supervised": F.cross_entropy(labeled, batch.y), "unsupervised": self.weight * unsupervised}
        return Losses(terms, {"mask": weight.mean(), "mean": memory["mean"]}, memory=memory)

    def followed(self, p: Tensor) -> dict[str, Tensor]:
        """Mean and unbiased variance of the confidence, and the mean prediction, after predictions p of all ranks."""
        p = gather(p)
        confidence = p.amax(-1)
        mean = confidence.mean()
        variance = (confidence - mean).square().sum() / max(len(p) - 1, 1)  # of one image: none
        now = {"mean": mean, "variance": variance, "expected": p.mean(0)}
        return {name: moved(self.get_buffer(name), value, self.decay) for name, value in now.items()}
