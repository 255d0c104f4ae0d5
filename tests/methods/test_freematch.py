"""FreeMatch against loops written from its equations, over several steps of its memory."""

from __future__ import annotations

import math

import chosen
import pytest
import torch
import zoo
from chosen import CLASSES, Views, each_logits
from torch import Tensor

from semisynth.errors import UserError
from semisynth.methods import FreeMatch
from semisynth.methods.freematch import fairness

Memory = dict[str, list[float]]
STARTS: dict[str, Memory] = {
    "the first step": {"threshold": [1 / CLASSES], "expected": [1 / CLASSES] * 4, "histogram": [1 / CLASSES] * 4},
    "a strict threshold": {"threshold": [1.0], "expected": [0.25] * 4, "histogram": [0.1, 0.2, 0.3, 0.4]},
    "skewed": {"threshold": [0.8], "expected": [0.97, 0.01, 0.01, 0.01], "histogram": [1.0, 1e-9, 1e-12, 1e-30]},
}


def naive_memory(weak: list[list[float]], before: Memory, decay: float) -> Memory:
    """Equations 5, 6 and 10."""
    q = [chosen.softmax(row) for row in weak]
    now = {
        "threshold": [chosen.mean([max(row) for row in q])],
        "expected": [chosen.mean([row[c] for row in q]) for c in range(CLASSES)],
        "histogram": [chosen.mean([float(row.index(max(row)) == c) for row in q]) for c in range(CLASSES)],
    }
    return {
        name: [decay * a + (1 - decay) * b for a, b in zip(before[name], value, strict=True)]
        for name, value in now.items()
    }


def normalized(p: list[float], h: list[float]) -> list[float]:
    """SumNorm(p / h), without the classes that h lacks."""
    ratio = [a / b if b else 0.0 for a, b in zip(p, h, strict=True)]
    return [r / sum(ratio) for r in ratio] if sum(ratio) else ratio


def naive_fairness(strong: list[list[float]], mask: list[bool], memory: Memory) -> float:
    """Equations 9 and 11, over the classes that are predicted at all."""
    kept = [chosen.softmax(row) if keep else [0.0] * CLASSES for row, keep in zip(strong, mask, strict=True)]
    p = [chosen.mean([row[c] for row in kept]) for c in range(CLASSES)]
    h = [chosen.mean([float(any(row) and row.index(max(row)) == c) for row in kept]) for c in range(CLASSES)]
    pairs = zip(normalized(memory["expected"], memory["histogram"]), normalized(p, h), h, strict=True)
    return sum(a * math.log(b) for a, b, present in pairs if present)


def naive(weak: list[list[float]], strong: list[list[float]], memory: Memory) -> tuple[float, list[bool]]:
    """The unsupervised loss and the mask, equations 7 and 8, given the memory after its step."""
    (tau,), p = memory["threshold"], memory["expected"]
    loss, mask = 0.0, []
    for w, s in zip(weak, strong, strict=True):
        q = chosen.softmax(w)
        target = q.index(max(q))
        mask.append(max(q) >= p[target] / max(p) * tau)
        loss += chosen.cross_entropy(s, target) if mask[-1] else 0.0
    return loss / len(weak), mask


def freematch(view: str = "weak", **options: float) -> FreeMatch:
    views = Views([0], 2), Views([1], 2)
    return FreeMatch(chosen.Columns(0, CLASSES), *views, classes=CLASSES, view=view, **options).double()


@each_logits
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("decay", [0.999, 0.7, 0.0])
def test_losses_and_memory_are_those_of_a_loop_over_several_steps(weak: Tensor, start: Memory, decay: float) -> None:
    method, memory = freematch(decay=decay, weight=0.7, fairness=0.3), start
    for name, value in start.items():
        method.get_buffer(name).copy_(torch.tensor(value, dtype=torch.float64).squeeze())
    for step in range(4):
        w, s = weak.roll(step, 1), zoo.normal(len(weak), CLASSES, 2.0, step)
        x, y = chosen.labeled()
        losses = method.loss(chosen.batch(chosen.images(x, 3 * x), y, chosen.images(w, s)))
        memory = naive_memory(w.tolist(), memory, decay)
        loss, mask = naive(w.tolist(), s.tolist(), memory)
        assert chosen.is_close(losses.terms["unsupervised"], loss, 0.7)
        assert chosen.is_close(losses.terms["fairness"], naive_fairness(s.tolist(), mask, memory), 0.3)
        assert losses.metrics["mask"].item() == pytest.approx(chosen.mean(mask))
        assert losses.metrics["threshold"].item() == pytest.approx(memory["threshold"][0])
        chosen.commit(method, losses)
        for name, value in memory.items():
            assert method.get_buffer(name).flatten().tolist() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_labeled_images_are_read_in_the_view_asked_for(view: str) -> None:
    x, y = chosen.labeled()
    losses = freematch(view).loss(chosen.batch(chosen.images(x, 3 * x), y, chosen.images(x, x)))
    logits = x if view == "weak" else 3 * x
    expected = chosen.mean(list(map(chosen.cross_entropy, logits.tolist(), y.tolist())))
    assert chosen.is_close(losses.terms["supervised"], expected)


@pytest.mark.parametrize("kept", [1, 5, 8])
def test_the_gradient_of_the_fairness_is_that_of_the_loop(kept: int) -> None:
    strong = zoo.normal(8, CLASSES, 1.0, 3).requires_grad_()
    mask = [i < kept for i in range(8)]
    memory = STARTS["a strict threshold"]
    expected, histogram = (torch.tensor(memory[name], dtype=torch.float64) for name in ("expected", "histogram"))
    value = fairness(strong, torch.tensor(mask).double(), expected, histogram)
    (found,) = torch.autograd.grad(value, strong)
    by_hand = chosen.slope(lambda logits: naive_fairness(logits.tolist(), mask, memory), strong.detach())
    torch.testing.assert_close(found, by_hand, atol=1e-8, rtol=1e-6)
    assert kept == 1 or found[:kept].abs().max() > 1e-3


def test_an_empty_mask_is_fair_and_moves_nothing() -> None:
    strong = zoo.normal(8, CLASSES, 1.0, 3).requires_grad_()
    even = torch.full((CLASSES,), 0.25, dtype=torch.float64)
    value = fairness(strong, torch.zeros(8, dtype=torch.float64), even, even)
    assert value == 0 and not torch.autograd.grad(value, strong)[0].any()


def test_the_sign_of_the_fairness_is_the_papers() -> None:
    """sum a log b, without a minus: it is largest where all is even, and then -log of the number of classes."""
    even, all_kept = torch.full((CLASSES,), 0.25, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    sharp = 4 * torch.eye(CLASSES, dtype=torch.float64)
    uneven = sharp + torch.tensor([2.0, 0, 0, 0], dtype=torch.float64)
    assert fairness(sharp, all_kept, even, even).item() == pytest.approx(-math.log(CLASSES))
    assert fairness(uneven, all_kept, even, even) < -math.log(CLASSES) - 0.01


@pytest.mark.parametrize("wrong", [{"decay": 1.1}, {"fairness": -0.1}, {"weight": -1.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        freematch(**wrong)
