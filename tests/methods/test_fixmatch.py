"""FixMatch against a loop over its images, with logits that a test chooses for either view."""

from __future__ import annotations

import pytest
import torch
import zoo
from chosen import CLASSES, LOGITS, rows
from torch import Tensor

from semisynth.method import Batch
from semisynth.methods import FixMatch

WEAK: dict[str, Tensor] = {
    name: LOGITS[name]
    for name in ("none confident", "all confident", "only classes 1 and 2", "a single class", "one image")
} | {
    "random": zoo.normal(40, CLASSES, 3.0, 0),
    "exactly at a threshold of one half": rows(700, 700, 0, 0, 700, 0, 0, 0, 0, 0, 0, 0),
}


def pairs(weak: Tensor, strong: Tensor) -> Tensor:
    """Images whose first half is what `first` reads and whose second half is what `second` reads."""
    return torch.cat([weak, strong], 1)[:, :, None, None]


def first(x: Tensor) -> Tensor:
    return x[:, :CLASSES]


def second(x: Tensor) -> Tensor:
    return x[:, CLASSES:]


def naive(weak: Tensor, strong: Tensor, threshold: float) -> tuple[float, float]:
    """The unsupervised loss, and the share of confident images."""
    loss = kept = 0.0
    for w, s in zip(weak.tolist(), strong.tolist(), strict=True):
        p = zoo.softmax(w)
        if max(p) >= threshold:
            kept += 1
            loss += zoo.cross_entropy(s, p.index(max(p)))
    return loss / len(weak), kept / len(weak)


@pytest.mark.parametrize("weak", WEAK.values(), ids=WEAK)
@pytest.mark.parametrize("threshold", [0.95, 0.5, 0.0])
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_losses_are_those_of_a_loop(weak: Tensor, threshold: float, view: str) -> None:
    strong = zoo.normal(len(weak), CLASSES, 2.0, 5)
    labeled, y = zoo.normal(5, CLASSES, 2.0, 6), torch.tensor([0, 3, 3, 0, 3])
    method = FixMatch(zoo.Reader(CLASSES), first, second, threshold=threshold, weight=0.7, view=view)
    data = Batch(pairs(labeled, 3 * labeled), y, pairs(weak, strong), torch.arange(len(weak)))
    losses = method.loss(data)
    logits = labeled if view == "weak" else 3 * labeled
    supervised = sum(map(zoo.cross_entropy, logits.tolist(), y.tolist())) / 5
    unsupervised, share = naive(weak, strong, threshold)
    assert losses.terms["supervised"].item() == pytest.approx(supervised, rel=1e-12, abs=1e-12)
    assert losses.terms["unsupervised"].item() == pytest.approx(0.7 * unsupervised, rel=1e-12, abs=1e-12)
    assert losses.metrics["mask"].item() == pytest.approx(share, abs=1e-6)


def test_the_inputs_are_what_their_names_say() -> None:
    shares = {name: naive(weak, weak, 0.95)[1] for name, weak in WEAK.items()}
    assert shares["none confident"] == 0 and shares["all confident"] == shares["a single class"] == 1
    assert 0 < shares["random"] < 1
    assert naive(*[WEAK["exactly at a threshold of one half"]] * 2, 0.5)[1] == 2 / 3


def test_the_target_is_constant() -> None:
    weak, strong = zoo.normal(8, CLASSES, 9.0, 0), zoo.normal(8, CLASSES, 1.0, 1)
    u = pairs(weak, strong).requires_grad_()
    method = FixMatch(zoo.Reader(CLASSES), first, second)
    losses = method.loss(Batch(pairs(weak, weak).detach(), weak.argmax(1), u, torch.arange(8)))
    gradient = torch.autograd.grad(losses.terms["unsupervised"], u)[0].flatten(1)
    assert not gradient[:, :CLASSES].any() and gradient[:, CLASSES:].any()


def test_the_model_is_what_moves() -> None:
    method = FixMatch(zoo.network("cnn-batch-relu"), zoo.WEAK, zoo.STRONG, threshold=0.0)
    assert list(method.updates()) == ["classifier"] and method.updates()["classifier"].module is method.model
    assert all(g.abs().sum() > 0 for g in zoo.gradients(method, "classifier", zoo.batch(6, 9)))
