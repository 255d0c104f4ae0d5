"""IOMatch against loops written from its equations, over several steps of its memory."""

from __future__ import annotations

import math
from typing import Any

import chosen
import pytest
import torch
import zoo
from chosen import CLASSES, Views, each_logits
from torch import Tensor

from semisynth.errors import UserError
from semisynth.methods import IOMatch, iomatch
from semisynth.methods.iomatch import open_targets

BINARY: dict[str, Tensor] = {
    "random": zoo.normal(40, 2 * CLASSES, 3.0, 10),
    "all inliers": zoo.normal(40, 2 * CLASSES, 0.1, 11) + torch.tensor([9.0, 0] * CLASSES),
    "no inliers": zoo.normal(40, 2 * CLASSES, 0.1, 12) - torch.tensor([9.0, 0] * CLASSES),
    "hardly decided": zoo.normal(40, 2 * CLASSES, 1e-3, 13),
    "infinite": torch.tensor([[math.inf, 0, -math.inf, 1, math.inf, -math.inf, 3, 0]] * 40, dtype=torch.float64),
}


def twice(logits: Tensor) -> Tensor:
    """What stands for the projection."""
    return 2 * logits


class Twice(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return twice(x)


def make(view: str = "weak", **options: Any) -> IOMatch:
    """Of whose images each of two views has CLASSES logits, CLASSES pairs and CLASSES + 1 open-set logits."""
    views = Views([0], 2), Views([1], 2)
    method = IOMatch(chosen.Classifier(CLASSES), *views, classes=CLASSES, view=view, **options).double()
    method.projection = Twice()
    method.one_vs_all = chosen.Columns(CLASSES, 3 * CLASSES, (CLASSES, 2))
    method.open_head = chosen.Columns(3 * CLASSES, 4 * CLASSES + 1)
    return method


def naive_aligned(p: list[list[float]], recent: list[list[float]]) -> list[list[float]]:
    """Distribution alignment to the uniform distribution, by the mean prediction of recent batches."""
    expected = [chosen.mean([batch[c] for batch in recent]) for c in range(CLASSES)]
    found = []
    for row in p:
        ratio = [q / CLASSES / e if e else 0.0 for q, e in zip(row, expected, strict=True)]
        found.append([r / sum(ratio) for r in ratio])
    return found


def naive_targets(p: list[float], binary: list[float]) -> list[float]:
    """The open-set target of one image."""
    o = [chosen.softmax(binary[2 * k : 2 * k + 2]) for k in range(CLASSES)]
    known = [p[k] * o[k][0] for k in range(CLASSES)]
    return [*known, sum(p[k] * o[k][1] for k in range(CLASSES))]


def naive(
    p: list[list[float]], q: list[list[float]], strong: list[list[float]], opened: list[list[float]], taus: Any
) -> tuple[float, float, float, float, float]:
    """L_ui, L_op and the shares of images in the first, of inliers, and of images in the second."""
    inliers = [row[-1] < 0.5 for row in q]
    used = [inlier and max(row) > taus[0] for row, inlier in zip(p, inliers, strict=True)]
    taught = [max(row) > taus[1] for row in q]
    closed_losses = [
        chosen.cross_entropy(s, row) if keep else 0.0 for row, s, keep in zip(p, strong, used, strict=True)
    ]
    open_losses = [
        chosen.cross_entropy(s, row) if keep else 0.0 for row, s, keep in zip(q, opened, taught, strict=True)
    ]
    return tuple(map(chosen.mean, (closed_losses, open_losses, used, inliers, taught)))


def naive_binary(binary: list[list[float]], y: list[int]) -> float:
    """L_mb, the one-vs-all loss with the hardest other class."""
    each = []
    for row, label in zip(binary, y, strict=True):
        pairs = [row[2 * k : 2 * k + 2] for k in range(CLASSES)]
        other = max(chosen.surprise(pair, 1) for k, pair in enumerate(pairs) if k != label)
        each.append(chosen.surprise(pairs[label], 0) + other)
    return chosen.mean(each)


@each_logits
@pytest.mark.parametrize("binary", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize("taus, align", [((0.95, 0.5), True), ((0.25, 0.3), True), ((0.5, 0.0), False)])
def test_losses_and_memory_are_those_of_a_loop_over_several_steps(
    weak: Tensor, binary: Tensor, taus: tuple[float, float], align: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iomatch, "RECENT", 2)
    weights = {"weight": 0.7, "open_weight": 0.6, "binary_weight": 0.3}
    method = make(threshold=taus[0], open_threshold=taus[1], align=align, **weights)
    binary, n, recent = binary[: len(weak)], len(weak), []
    for step in range(3):
        w, s, opened = weak.roll(step, 1), zoo.normal(n, CLASSES, 2.0, step), zoo.normal(n, CLASSES + 1, 2.0, step + 9)
        (x, y), x_binary = chosen.labeled(), zoo.normal(5, 2 * CLASSES, 2.0, step)
        labeled = torch.cat([x, x_binary, torch.zeros(5, CLASSES + 1, dtype=torch.float64)], 1)
        u = chosen.images(torch.cat([w, binary, opened.flip(1)], 1), torch.cat([s, binary, opened], 1))
        losses = method.loss(chosen.batch(chosen.images(labeled, labeled), y, u))
        p = [chosen.softmax(row) for row in w.tolist()]
        recent = [*recent, [chosen.mean([row[c] for row in p]) for c in range(CLASSES)]][-2:]
        p = naive_aligned(p, recent) if align else p
        q = list(map(naive_targets, p, twice(binary).tolist()))
        closed_loss, open_loss, *shares = naive(p, q, s.tolist(), twice(opened).tolist(), taus)
        assert chosen.is_close(losses.terms["binary"], naive_binary(twice(x_binary).tolist(), y.tolist()), 0.3)
        assert chosen.is_close(losses.terms["unsupervised"], closed_loss, 0.7)
        assert chosen.is_close(losses.terms["open"], open_loss, 0.6)
        assert [losses.metrics[name].item() for name in ("mask", "inlier", "open_mask")] == pytest.approx(shares)
        chosen.commit(method, losses)
        assert method.recent.tolist()[-len(recent) :] == [pytest.approx(row, rel=1e-12) for row in recent]


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_labeled_images_are_read_in_the_view_asked_for(view: str) -> None:
    (x, y), filler = chosen.labeled(), torch.zeros(5, 3 * CLASSES + 1, dtype=torch.float64)
    part, strong = torch.cat([x, filler], 1), torch.cat([3 * x, filler], 1)
    losses = make(view).loss(chosen.batch(chosen.images(part, strong), y, chosen.images(part, part)))
    logits = x if view == "weak" else 3 * x
    expected = chosen.mean(list(map(chosen.cross_entropy, logits.tolist(), y.tolist())))
    assert chosen.is_close(losses.terms["supervised"], expected)


def test_open_set_targets_are_probabilities_that_keep_the_closed_set_ones() -> None:
    p, binary = zoo.normal(9, CLASSES, 3.0, 0).softmax(-1), zoo.normal(9, 2 * CLASSES, 3.0, 1).unflatten(1, (-1, 2))
    q = open_targets(p, binary)
    torch.testing.assert_close(q.sum(1), torch.ones(9, dtype=torch.float64))
    sure = torch.tensor([99.0, -99.0], dtype=torch.float64).expand(9, CLASSES, 2)
    torch.testing.assert_close(open_targets(p, sure)[:, :-1], p)
    torch.testing.assert_close(open_targets(p, sure.flip(2))[:, -1], torch.ones(9, dtype=torch.float64))


def test_what_equals_a_threshold_is_left_out() -> None:
    """Sure predictions, of which the binary classifiers say one half: neither an inlier, nor an open-set target."""
    sure = 800 * torch.eye(CLASSES, dtype=torch.float64)
    part = torch.cat([sure, torch.zeros(CLASSES, 3 * CLASSES + 1, dtype=torch.float64)], 1)
    images = chosen.images(part, part)
    for threshold, used in ((0.5, 0.0), (0.49, 1.0)):
        method = make(open_threshold=threshold, align=False)
        metrics = method.loss(chosen.batch(images, torch.arange(CLASSES), images)).metrics
        assert (metrics["inlier"], metrics["open_mask"]) == (0, used)


def test_the_alignment_forgets_batches_that_are_not_recent() -> None:
    method = make()
    method.recent.copy_(torch.rand_like(method.recent))
    before = method.recent.clone()
    x, y = chosen.labeled()
    part = torch.cat([x, torch.zeros(5, 3 * CLASSES + 1, dtype=torch.float64)], 1)
    images = chosen.images(part, part)
    found = method.loss(chosen.batch(images, y, images)).memory["recent"]
    assert found.shape == (128, CLASSES) and found[:-1].equal(before[1:])
    torch.testing.assert_close(found[-1], x.softmax(-1).mean(0))


def test_every_part_moves_and_the_classifier_alone_is_evaluated() -> None:
    parts = {"classes": zoo.CLASSES, "threshold": 0.0, "open_threshold": 0.0}
    method = IOMatch(zoo.network("cnn-batch-relu"), zoo.WEAK, zoo.STRONG, **parts).double()
    trained = method.updates()["classifier"].module
    assert set(trained.parameters()) == set(method.parameters())
    assert all(g.abs().sum() > 0 for g in zoo.gradients(method, "classifier", zoo.batch(6, 9)))


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.1}, {"open_threshold": -0.1}, {"weight": -1.0}, {"open_weight": -1.0}, {"width": 0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(**wrong)
