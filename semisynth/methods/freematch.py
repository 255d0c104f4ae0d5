"""FreeMatch: Wang et al., "FreeMatch: self-adaptive thresholding for semi-supervised learning", ICLR 2023,
arXiv 2205.07246.

FixMatch with a threshold that follows the model's mean confidence, relative for each class to how much of it the model
predicts; and a term for the fairness of the classes. As in the published implementation (USB), a prediction that equals
its threshold is kept; the paper has > in equation 8 and >= in 9. The paper does not say what becomes of a class that no
kept strong view is predicted as: USB puts log 1e-12, a constant, in its place; here it adds nothing, with the same
gradient. Left out are USB's quantile in place of the mean, and its clipped threshold, which the paper has for SVHN.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.functional import gather, mean
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods._targets import consistency, finite, moved
from semisynth.methods.supervised import View, labeled_view


def modulated(p: Tensor, h: Tensor) -> Tensor:
    """N(p / h), with N to sum one, of predictions p (c,) and histogram h (c,); a class that h lacks has none."""
    ratio = (p / h.where(h > 0, 1)).where(h > 0, 0)
    return ratio / ratio.sum().clamp_min(1e-12)


def fairness(strong: Tensor, mask: Tensor, expected: Tensor, histogram: Tensor) -> Tensor:
    """L_f = sum_c N(p~ / h~)_c log N(pbar / hbar)_c, equations 9 to 11.

    pbar and hbar are mean and histogram of the predictions on the kept strong views of all ranks. It is minimised with
    this sign in the paper and in USB (asked about in its issue 182, and kept), though even predictions are its maximum.

    strong: logits (m, c); mask: 1 for a kept row (m,); expected, histogram: p~ and h~, of the weak views (c,).
    """
    p = strong.softmax(-1)
    predicted = F.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype)
    mean_p, mean_h = mean(mask[:, None] * p), mean(mask[:, None] * predicted)
    return (modulated(expected, histogram) * modulated(mean_p, mean_h).where(mean_h > 0, 1).log()).sum()


class FreeMatch(Method):
    """L = CE(labeled) + weight * mean over all unlabeled of [confidence >= tau(target)] CE(strong view, target)
    + fairness * L_f, equations 8 and 11 to 13.

    Args:
        decay: lambda, of the averages of confidence, prediction and histogram; 0.999 is for runs of 100,000s of steps
        weight: of the unsupervised term
        fairness: of the fairness term; published settings are 0.001 to 0.01, by data set
        view: of the labeled images; the paper's is weak
    """

    ranges = {
        "view": ["weak", "strong"],
        "decay": [0.9, 0.99, 0.999],
        "weight": (0.1, 3.0),
        "fairness": (0.001, 0.03),
    }

    def __init__(
        self,
        model: nn.Module,
        weak: Weak,
        strong: Strong,
        classes: int,
        *,
        decay: float = 0.999,
        weight: float = 1.0,
        fairness: float = 0.01,
        view: View = "weak",
    ) -> None:
        super().__init__()
        between(0, 1, decay=decay)
        between(0, math.inf, weight=weight, fairness=fairness)
        self.model, self.weak, self.strong = model, weak, strong
        self.decay, self.weight, self.fairness = decay, weight, fairness
        self.view = labeled_view(view, weak, strong)
        self.register_buffer("threshold", torch.tensor(1 / classes))
        self.register_buffer("expected", torch.full((classes,), 1 / classes))
        self.register_buffer("histogram", torch.full((classes,), 1 / classes))

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """Algorithm 1: the averages move first, the thresholds are of what they then are."""
        with torch.no_grad():
            q = finite(self.model(self.weak(batch.u))).softmax(-1)
            memory = self.adapted(q)
            expected = memory["expected"]
            confidence, target = q.max(-1)
            thresholds = expected / expected.amax() * memory["threshold"]
            mask = (confidence >= thresholds[target]).to(confidence.dtype)
        both = torch.cat([self.view(batch.x), self.strong(batch.u)])
        labeled, strong = finite(self.model(both)).split([len(batch.x), len(batch.u)])
        terms = {
            "supervised": F.cross_entropy(labeled, batch.y),
            "unsupervised": self.weight * consistency(strong, target, mask),
            "fairness": self.fairness * fairness(strong, mask, expected, memory["histogram"]),
        }
        return Losses(terms, {"mask": mask.mean(), "threshold": memory["threshold"]}, memory=memory)

    def adapted(self, q: Tensor) -> dict[str, Tensor]:
        """tau, p~ and h~ after a batch's predictions on weak views q (m, c), of all ranks: equations 5, 6 and 10."""
        q = gather(q)
        confidence, target = q.max(-1)
        now = {
            "threshold": confidence.mean(),
            "expected": q.mean(0),
            "histogram": F.one_hot(target, q.shape[-1]).to(q.dtype).mean(0),
        }
        return {name: moved(self.get_buffer(name), value, self.decay) for name, value in now.items()}
