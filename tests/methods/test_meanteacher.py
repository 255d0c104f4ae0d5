"""Mean Teacher against a loop over its images."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor

from semisynth import noise
from semisynth.method import Average, Batch, Update
from semisynth.methods import MeanTeacher

CLASSES = 4

UNLABELED: dict[str, Tensor] = {
    "random": zoo.normal(20, CLASSES, 2.0, 0),
    "sure": 60 * torch.eye(CLASSES, dtype=torch.float64)[[0, 0, 3]],
    "undecided": torch.zeros(3, CLASSES, dtype=torch.float64),
    "one image": zoo.normal(1, CLASSES, 1.0, 1),
}


class Steps:
    """A view that is another one each time: times 1, then 2, then 3, ..."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * x


@pytest.mark.parametrize("u", UNLABELED.values(), ids=UNLABELED)
@pytest.mark.parametrize(
    "progress, rampup, ramp",
    [(0.0, 0.4, math.exp(-5)), (0.1, 0.4, math.exp(-5 * 0.5625)), (0.4, 0.4, 1.0), (0.9, 0.4, 1.0), (0.0, 0.0, 1.0)],
)
def test_losses_are_those_of_a_loop(u: Tensor, progress: float, rampup: float, ramp: float) -> None:
    labeled, y = zoo.normal(5, CLASSES, 2.0, 2), torch.tensor([1, 1, 1, 1, 1])
    method = MeanTeacher(zoo.Reader(CLASSES), Steps(), lambda x: x / 2, weight=3.0, rampup=rampup, view="strong")
    with torch.no_grad():
        method.teacher.matrix.copy_(zoo.normal(CLASSES, CLASSES, 1.0, 3))
    data = Batch(labeled[:, :, None, None], y, u[:, :, None, None], torch.arange(len(u)), progress=progress)
    losses = method.loss(data)
    supervised = sum(zoo.cross_entropy((row / 2).tolist(), 1) for row in labeled) / 5
    squares = 0.0
    for image in u:
        teacher, student = zoo.softmax((image @ method.teacher.matrix).tolist()), zoo.softmax((2 * image).tolist())
        squares += sum((t - s) ** 2 for t, s in zip(teacher, student, strict=True))
    assert losses.terms["supervised"].item() == pytest.approx(supervised, rel=1e-12)
    expected = 3.0 * ramp * squares / (len(u) * CLASSES)
    assert losses.terms["consistency"].item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_view_is_the_one_asked_for(view: str) -> None:
    labeled, y = zoo.normal(5, CLASSES, 2.0, 2)[:, :, None, None], torch.arange(5) % CLASSES
    method = MeanTeacher(zoo.Reader(CLASSES), torch.sin, torch.exp, view=view)
    seen = {"weak": torch.sin, "strong": torch.exp}[view](labeled).flatten(1)
    found = method.loss(Batch(labeled, y, labeled, y)).terms["supervised"]
    assert found.equal(F.cross_entropy(seen, y))


def test_the_student_moves_and_the_teacher_follows() -> None:
    method = MeanTeacher(zoo.network("cnn-group-relu"), zoo.WEAK, zoo.STRONG, decay=0.9)
    student, teacher = method.updates().values()
    assert isinstance(student, Update) and student.module is method.model
    assert teacher == Average(method.teacher, method.model, 0.9)
    assert zoo.same(zoo.copies(method.teacher), zoo.copies(method.model)) and method.teacher is not method.model


def test_the_teacher_has_no_gradient() -> None:
    method = MeanTeacher(zoo.network("cnn-group-relu"), zoo.WEAK, zoo.STRONG)
    with noise.seeded(0):
        loss = sum(method.loss(zoo.batch(6, 9, progress=1.0)).terms.values())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in method.model.parameters())
