"""SoftMatch against loops written from its equations, over several steps of its memory."""

from __future__ import annotations

import math

import chosen
import pytest
import torch
import zoo
from chosen import CLASSES, Views, each_logits
from torch import Tensor

from semisynth.errors import UserError
from semisynth.methods import SoftMatch
from semisynth.methods.softmatch import gaussian

Memory = dict[str, list[float]]
STARTS: dict[str, Memory] = {
    "the first step": {"mean": [1 / CLASSES], "variance": [1.0], "expected": [1 / CLASSES] * 4},
    "skewed": {"mean": [0.9], "variance": [0.01], "expected": [0.97, 0.01, 0.01, 0.01]},
    "no variance": {"mean": [1.0], "variance": [0.0], "expected": [0.25] * 4},
}


def naive_memory(weak: list[list[float]], before: Memory, decay: float) -> Memory:
    """The averages of the batch's mean, its unbiased variance, and its mean prediction."""
    p = [chosen.softmax(row) for row in weak]
    mu = chosen.mean([max(row) for row in p])
    squares = sum((max(row) - mu) ** 2 for row in p)
    now = {
        "mean": [mu],
        "variance": [squares / (len(p) - 1) if len(p) > 1 else 0.0],
        "expected": [chosen.mean([row[c] for row in p]) for c in range(CLASSES)],
    }
    return {
        name: [decay * a + (1 - decay) * b for a, b in zip(before[name], value, strict=True)]
        for name, value in now.items()
    }


def naive_weight(p: list[float], memory: Memory, sigmas: float) -> float:
    """lambda(UA(p)): a Gaussian below the mean, one above; its limit without variance."""
    ratio = [a / b if b else 0.0 for a, b in zip(p, memory["expected"], strict=True)]
    confidence = max(ratio) / sum(ratio)
    (mu,), (variance,) = memory["mean"], memory["variance"]
    if confidence >= mu:
        return 1.0
    return math.exp(-((confidence - mu) ** 2) / (2 * variance / sigmas**2)) if variance else 0.0


def naive(
    weak: list[list[float]], strong: list[list[float]], memory: Memory, sigmas: float
) -> tuple[float, list[float]]:
    """The unsupervised loss and the weights, given the memory after its step."""
    p = [chosen.softmax(row) for row in weak]
    weights = [naive_weight(row, memory, sigmas) for row in p]
    losses = [w * chosen.cross_entropy(s, row.index(max(row))) for w, s, row in zip(weights, strong, p, strict=True)]
    return chosen.mean(losses), weights


def softmatch(view: str = "weak", **options: float) -> SoftMatch:
    views = Views([0], 2), Views([1], 2)
    return SoftMatch(chosen.Columns(0, CLASSES), *views, classes=CLASSES, view=view, **options).double()


@each_logits
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("decay, sigmas", [(0.999, 1.0), (0.7, 2.0), (0.0, 1.0)])
def test_losses_and_memory_are_those_of_a_loop_over_several_steps(
    weak: Tensor, start: Memory, decay: float, sigmas: float
) -> None:
    method, memory = softmatch(decay=decay, sigmas=sigmas, weight=0.7), start
    for name, value in start.items():
        method.get_buffer(name).copy_(torch.tensor(value, dtype=torch.float64).squeeze())
    for step in range(4):
        w, s = weak.roll(step, 1), zoo.normal(len(weak), CLASSES, 2.0, step)
        x, y = chosen.labeled()
        losses = method.loss(chosen.batch(chosen.images(x, 3 * x), y, chosen.images(w, s)))
        memory = naive_memory(w.tolist(), memory, decay)
        for name, value in memory.items():
            assert losses.memory[name].flatten().tolist() == pytest.approx(value, rel=1e-12, abs=1e-30)
        # A weight at the edge of a step is as good as its rounding: the loop goes on from the same bits.
        memory = {name: value.flatten().tolist() for name, value in losses.memory.items()}
        loss, weights = naive(w.tolist(), s.tolist(), memory, sigmas)
        assert chosen.is_close(losses.terms["unsupervised"], loss, 0.7)
        assert losses.metrics["mask"].item() == pytest.approx(chosen.mean(weights), abs=1e-12)
        assert losses.metrics["mean"].item() == pytest.approx(memory["mean"][0])
        chosen.commit(method, losses)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_labeled_images_are_read_in_the_view_asked_for(view: str) -> None:
    x, y = chosen.labeled()
    losses = softmatch(view).loss(chosen.batch(chosen.images(x, 3 * x), y, chosen.images(x, x)))
    logits = x if view == "weak" else 3 * x
    expected = chosen.mean(list(map(chosen.cross_entropy, logits.tolist(), y.tolist())))
    assert chosen.is_close(losses.terms["supervised"], expected)


def test_the_weight_is_a_gaussian_below_the_mean_and_one_above() -> None:
    confidence = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64)
    mean, variance = (torch.tensor(value, dtype=torch.float64) for value in (0.7, 0.04))
    found = gaussian(confidence, mean, variance).tolist()
    assert found == pytest.approx([math.exp(-0.25 / 0.08), math.exp(-0.04 / 0.08), 1, 1])
    assert gaussian(confidence, mean, variance, 2.0)[1].item() == pytest.approx(math.exp(-4 * 0.04 / 0.08))
    assert gaussian(confidence, mean, 0 * variance).tolist() == [0, 0, 1, 1]


def test_alignment_changes_the_weights_and_never_the_targets() -> None:
    """Class 0 is predicted everywhere; aligned, the second image leans to class 1."""
    weak = torch.tensor([[3.0, 0, -800, -800], [1.0, 0.9, -800, -800]], dtype=torch.float64)
    strong = torch.tensor([[0.0, 9, 0, 0], [0.0, 9, 0, 0]], dtype=torch.float64)
    x, y = chosen.labeled()
    method = softmatch(decay=0.0)
    losses = method.loss(chosen.batch(chosen.images(x, x), y, chosen.images(weak, strong)))
    assert losses.terms["unsupervised"] > 4  # 9 for each image at class 0, next to nothing at class 1


@pytest.mark.parametrize("wrong", [{"decay": 1.1}, {"sigmas": -1.0}, {"weight": -1.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        softmatch(**wrong)
