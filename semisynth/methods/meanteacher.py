"""Mean Teacher: Tarvainen and Valpola, NeurIPS 2017, arXiv 1703.01780."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.method import Average, Batch, Losses, Method, Update
from semisynth.methods.supervised import View, labeled_view


class MeanTeacher(Method):
    """L = CE(labeled) + w(t) * mean squared distance between the student's and the averaged teacher's probabilities.

    The weight grows as weight * exp(-5 (1 - t)^2) over the first `rampup` of training (section 3.1). The teacher, an
    average of the student's weights (eq. 1), reads another weak view of the image that the student reads.

    Args:
        weight: of the consistency cost at the end of the ramp
        decay: alpha of the teacher's average
        rampup: the part of training over which the weight grows
        view: of the labeled images; the paper's is weak
    """

    ranges = {"view": ["weak", "strong"], "weight": (1.0, 50.0), "decay": [0.95, 0.99, 0.999]}

    def __init__(
        self,
        model: nn.Module,
        weak: Weak,
        strong: Strong,
        *,
        weight: float = 10.0,
        decay: float = 0.99,
        rampup: float = 0.4,
        view: View = "weak",
    ) -> None:
        super().__init__()
        between(0, 1, decay=decay, rampup=rampup)
        between(0, math.inf, weight=weight)
        self.model, self.weak = model, weak
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.weight, self.decay, self.rampup = weight, decay, rampup
        self.view = labeled_view(view, weak, strong)

    def updates(self) -> dict[str, Update | Average]:
        return {
            "student": Update(self.model, self.loss),
            "teacher": Average(self.teacher, self.model, self.decay),
        }

    def loss(self, batch: Batch) -> Losses:
        """Classification cost and consistency cost, section 2."""
        with torch.no_grad():
            target = self.teacher(self.weak(batch.u)).softmax(-1)
        both = torch.cat([self.view(batch.x), self.weak(batch.u)])
        labeled, student = self.model(both).split([len(batch.x), len(batch.u)])
        consistency = (student.softmax(-1) - target).square().mean()
        ramp = math.exp(-5 * (1 - min(1.0, batch.progress / self.rampup)) ** 2) if self.rampup else 1.0
        return Losses(
            {"supervised": F.cross_entropy(labeled, batch.y), "consistency": ramp * self.weight * consistency}
        )
