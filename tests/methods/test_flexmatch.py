"""FlexMatch against the loops of the paper's algorithm 1, over several steps of its memory."""

from __future__ import annotations

import math

import chosen
import pytest
import tiny
import torch
import zoo
from chosen import CLASSES, Views, each_logits
from torch import Tensor

from semisynth.errors import UserError
from semisynth.methods import FlexMatch
from semisynth.recipes.config import Config
from semisynth.recipes.materials import Materials

POOL = 30
STARTS: dict[str, list[int]] = {
    "unused": [-1] * POOL,
    "the warm-up is over": [0] * 14 + [1] * 10 + [3] * 2 + [-1] * 4,
    "every image has the same class": [2] * POOL,
}


def naive_thresholds(label: list[int], threshold: float) -> list[float]:
    """Equations 5, 11 and 12."""
    sigma = [sum(1 for found in label if found == c) for c in range(CLASSES)]
    beta = [s / max(max(sigma), len(label) - sum(sigma)) for s in sigma]
    return [threshold * b / (2 - b) for b in beta]


def naive(
    weak: list[list[float]], strong: list[list[float]], index: list[int], label: list[int], threshold: float
) -> tuple[float, float, float, list[int]]:
    """The unsupervised loss, the share of images used, the mean threshold, and what is remembered."""
    thresholds, label = naive_thresholds(label, threshold), list(label)
    loss = kept = 0.0
    for w, s, i in zip(weak, strong, index, strict=True):
        q = chosen.softmax(w)
        target = q.index(max(q))
        if max(q) > threshold:
            label[i] = target
        if max(q) > thresholds[target]:
            kept += 1
            loss += chosen.cross_entropy(s, target)
    return loss / len(weak), kept / len(weak), chosen.mean(thresholds), label


def flexmatch(view: str = "weak", **options: float) -> FlexMatch:
    views = Views([0], 2), Views([1], 2)
    return FlexMatch(chosen.Columns(0, CLASSES), *views, classes=CLASSES, pool=POOL, view=view, **options)


@each_logits
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("threshold", [0.95, 0.5, 0.25, 0.0, 1.0])
def test_losses_and_memory_are_those_of_a_loop_over_several_steps(weak: Tensor, start, threshold: float) -> None:
    method, label = flexmatch(threshold=threshold, weight=0.7), start
    method.label.copy_(torch.tensor(start))
    for step in range(4):
        w = weak.roll(step, 1)
        s = zoo.normal(len(weak), CLASSES, 2.0, step)
        # With replacement: an image may come twice in a batch.
        index = torch.randint(POOL, (len(weak),), generator=torch.Generator().manual_seed(step))
        x, y = chosen.labeled()
        losses = method.loss(chosen.batch(chosen.images(x, 3 * x), y, chosen.images(w, s), index))
        loss, share, mean, label = naive(w.tolist(), s.tolist(), index.tolist(), label, threshold)
        assert chosen.is_close(losses.terms["unsupervised"], loss, 0.7)
        assert losses.metrics["mask"].item() == pytest.approx(share)
        assert losses.metrics["threshold"].item() == pytest.approx(mean)
        chosen.commit(method, losses)
        assert method.label.tolist() == label


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_labeled_images_are_read_in_the_view_asked_for(view: str) -> None:
    x, y = chosen.labeled()
    u = chosen.images(x, x)
    losses = flexmatch(view=view).loss(chosen.batch(chosen.images(x, 3 * x), y, u))
    logits = x if view == "weak" else 3 * x
    expected = chosen.mean(list(map(chosen.cross_entropy, logits.tolist(), y.tolist())))
    assert chosen.is_close(losses.terms["supervised"], expected)


def test_a_class_that_was_seldom_confident_has_a_lower_threshold() -> None:
    method = flexmatch(threshold=0.9)
    assert method.thresholds(torch.float64).tolist() == [0] * CLASSES  # the warm-up starts from nothing
    method.label.copy_(torch.tensor([0] * 12 + [1] * 6 + [2] * 3 + [-1] * 9))
    found = method.thresholds(torch.float64).tolist()
    assert found == pytest.approx([0.9, 0.9 / 3, 0.9 * 0.25 / 1.75, 0])
    method.label.copy_(torch.tensor([0] * 12 + [1] * 3 + [-1] * 15))  # more are unused than of any class
    assert method.thresholds(torch.float64)[0].item() == pytest.approx(0.9 * 0.8 / 1.2)


def test_a_prediction_that_equals_its_threshold_is_left_out() -> None:
    method = flexmatch(threshold=0.5)
    method.label.fill_(0)  # beta of class 0 is 1, its threshold 0.5
    half = torch.tensor([[0.0, 0.0, -800.0, -800.0], [0.1, 0.0, -800.0, -800.0]], dtype=torch.float64)
    x, y = chosen.labeled()
    losses = method.loss(chosen.batch(chosen.images(x, x), y, chosen.images(half, half)))
    assert losses.metrics["mask"] == 0.5


def test_two_ranks_remember_what_one_does_also_of_an_image_that_both_have(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = 9 * torch.eye(CLASSES, dtype=torch.float64)[[0, 1, 2, 3, 1, 2, 3, 0]]
    weak[6] = 0  # this last reading of image 4 is not confident
    index = torch.tensor([4, 7, 4, 9, 7, 2, 4, 9])
    x, y = chosen.labeled(4)
    whole = chosen.batch(chosen.images(x, x), y, chosen.images(weak, weak), index)
    expected = flexmatch().loss(whole).memory["label"]
    assert {i: expected[i].item() for i in (2, 4, 7, 9)} == {2: 2, 4: 2, 7: 1, 9: 0}
    for found in zoo.on_ranks(monkeypatch, 2, lambda rank: flexmatch().loss(zoo.part(whole, rank, 2)).memory["label"]):
        assert found.equal(expected)


def test_the_memory_has_a_place_for_each_image_of_the_pool() -> None:
    found = Materials(tiny.config("flexmatch", labels_per_class=3))
    assert found.method.label.tolist() == [-1] * len(found.rest)


@pytest.mark.parametrize("unlabeled", ["auto", "generator"])
def test_images_without_an_index_are_refused(unlabeled: str) -> None:
    with pytest.raises(UserError, match=r"remembers each image of the unlabeled pool.*give --unlabeled pool"):
        Materials(Config.of({**tiny.content("flexmatch"), "generator": "glyphs", "unlabeled": unlabeled}))


@pytest.mark.parametrize("wrong", [{"threshold": 1.1}, {"threshold": -0.1}, {"weight": -1.0}, {"weight": math.nan}])
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        flexmatch(**wrong)
