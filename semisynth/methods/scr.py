"""Synthetic consistency regularisation, the inner problem of MP-SSL: Yamaguchi, ACML 2023, arXiv 2309.16143.

The features of a strong view of a sample follow those of its weak view. The cosine, and that it acts on the feature
extractor alone, are the paper's; its exact form is recalled from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.functional import cosine, frozen
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods.supervised import View, labeled_view
from semisynth.models.classifier import Classifier
from semisynth.twice import twice


def consistency(strong: Tensor, weak: Tensor) -> Tensor:
    """L_SCR = E[1 - cos(features(A(s)), features(a(s)))], from the features (n, d) of both views."""
    return (1 - cosine(strong, weak)).mean()


@dataclass(frozen=True)
class Inner:
    """The inner problem: CE(labeled) + weight * L_SCR(theta).

    supervise: weight of a third term, which is ours: the cross-entropy of the samples to the classes that they were
    asked for, each weighted by the model's confidence in that class.
    """

    model: Classifier
    weak: Weak
    strong: Strong
    view: Weak | Strong
    weight: float
    supervise: float = 0.0

    def losses(self, batch: Batch, s: Tensor, y: Tensor | None = None) -> Losses:
        """All terms, with synthetic images s (m, c, h, w) that are constant and the classes y (m,) asked for."""
        with torch.no_grad():
            target = self.model.features(self.weak(s))
        both = torch.cat([self.view(batch.x), self.strong(s)])
        labeled, strong = self.model.features(both).split([len(batch.x), len(s)])
        supervised = F.cross_entropy(self.model.head(labeled), batch.y)
        return Losses({"supervised": supervised, **self.synthetic(strong, target, y)})

    def synthetic(self, strong: Tensor, target: Tensor, y: Tensor | None) -> dict[str, Tensor]:
        """The terms of the samples, from the features (m, d) of their strong and of their weak views."""
        terms = {"consistency": self.weight * consistency(strong, target)}
        if self.supervise and y is not None:
            # Constant weights and not a constant confidence: this too depends on the mapper, through s.
            confidence = frozen(self.model.head)(target).softmax(1).gather(1, y[:, None])[:, 0]
            each = F.cross_entropy(self.model.head(strong), y, reduction="none")
            terms["synthetic"] = self.supervise * (confidence * each).mean()
        return terms

    def each(self, s: Tensor, y: Tensor) -> Tensor:
        """What each of the constant samples adds to these terms, (m,); only a model in eval mode keeps them apart."""
        with torch.no_grad():
            target = self.model.features(self.weak(s))
        strong = twice(self.model.features, attention=True)(self.strong(s))
        rows = zip(strong.split(1), target.split(1), y.split(1), strict=True)
        return torch.stack([torch.stack(list(self.synthetic(*row).values())).sum() for row in rows])


class SCR(Method):
    """Synthetic consistency regularisation on `u` as it comes: MP-SSL without its mapper (the paper's uniform row).

    Args:
        weight: lambda, of L_SCR
        view: of the labeled images
    """

    ranges = {"weight": (0.3, 30.0)}

    def __init__(
        self, model: Classifier, weak: Weak, strong: Strong, *, weight: float = 1.0, view: View = "strong"
    ) -> None:
        super().__init__()
        between(0, math.inf, weight=weight)
        self.model = model
        self.problem = Inner(model, weak, strong, labeled_view(view, weak, strong), weight)

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """CE(labeled) + weight * L_SCR(u)."""
        return self.problem.losses(batch, batch.u)
