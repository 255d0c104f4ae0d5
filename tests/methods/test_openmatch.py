"""OpenMatch against loops written from its equations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import chosen
import pytest
import torch
import zoo
from chosen import CLASSES, LOGITS, Views, each_logits
from torch import Tensor

from semisynth.errors import UserError
from semisynth.methods import OpenMatch
from semisynth.methods._targets import finite
from semisynth.methods.openmatch import OneVsAll, one_vs_all, soft_consistency

Pairs = list[list[float]]  # of an image: inlier and outlier logit of each class

BINARY: dict[str, Tensor] = {
    "random": zoo.normal(40, 2 * CLASSES, 3.0, 10),
    "all inliers": zoo.normal(40, 2 * CLASSES, 0.1, 11) + torch.tensor([9.0, 0] * CLASSES),
    "no inliers": zoo.normal(40, 2 * CLASSES, 0.1, 12) - torch.tensor([9.0, 0] * CLASSES),
    "undecided": torch.zeros(40, 2 * CLASSES, dtype=torch.float64),
    "infinite": torch.tensor([[math.inf, 0, -math.inf, 1, math.inf, math.inf, 0, 0]] * 40, dtype=torch.float64),
}


def pairs(logits: Sequence[float]) -> Pairs:
    return [list(logits[k : k + 2]) for k in range(0, len(logits), 2)]


def naive_one_vs_all(binary: list[Pairs], y: list[int]) -> float:
    """Equation 1."""
    each = []
    for row, label in zip(binary, y, strict=True):
        outlier = [chosen.surprise(pair, 1) for k, pair in enumerate(row) if k != label]
        each.append(chosen.surprise(row[label], 0) + max(outlier, default=0.0))
    return chosen.mean(each)


def naive_entropy(binary: list[Pairs]) -> float:
    """Equation 2: over classes its sum, 0 log 0 = 0."""
    return chosen.mean([sum(-p * math.log(p) for pair in row for p in chosen.softmax(pair) if p) for row in binary])


def naive_consistency(one: list[Pairs], other: list[Pairs]) -> float:
    """Equation 3."""
    each = []
    for row, another in zip(one, other, strict=True):
        both = [(chosen.softmax(a), chosen.softmax(b)) for a, b in zip(row, another, strict=True)]
        each.append(sum(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) for a, b in both))
    return chosen.mean(each)


def naive_fixmatch(
    weak: list[list[float]], binary: list[Pairs], strong: list[list[float]], threshold: float
) -> tuple[float, float, float]:
    """FixMatch over pseudo-inliers; the shares of images that are used, and that are pseudo-inliers."""
    loss, used, inliers = 0.0, 0, 0
    for w, row, s in zip(weak, binary, strong, strict=True):
        p = chosen.softmax(w)
        target = p.index(max(p))
        if chosen.softmax(row[target])[0] > 0.5:
            inliers += 1
            if max(p) >= threshold:
                used += 1
                loss += chosen.cross_entropy(s, target)
    return loss / max(inliers, 1), used / len(weak), inliers / len(weak)


def openmatch(view: str = "weak", **options: float) -> OpenMatch:
    """Of whose images the parts are two weak views and a strong one, each with CLASSES logits and CLASSES pairs."""
    weak = Views([0, 0, 1] if view == "weak" else [0, 1], 3)
    method = OpenMatch(chosen.Classifier(CLASSES), weak, Views([2], 3), classes=CLASSES, view=view, **options)
    method.one_vs_all = chosen.Columns(CLASSES, 3 * CLASSES, (CLASSES, 2))
    return method


@each_logits
@pytest.mark.parametrize("binary", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95])
def test_losses_are_those_of_a_loop(weak: Tensor, binary: Tensor, threshold: float) -> None:
    first, second = binary[: len(weak)], binary.flip(1)[: len(weak)] / 2
    strong = zoo.normal(len(weak), CLASSES, 2.0, 5)
    (x, y), x_binary = chosen.labeled(), zoo.normal(5, 2 * CLASSES, 2.0, 8)
    labeled = chosen.images(*[torch.cat([x, x_binary], 1)] * 3)
    views = [torch.cat(parts, 1) for parts in ((weak, first), (-weak, second), (strong, first))]
    method = openmatch(threshold=threshold, weight=0.7, entropy=0.3, consistency=0.6)
    losses = method.loss(chosen.batch(labeled, y, chosen.images(*views)))
    one, other = ([pairs(row) for row in part.tolist()] for part in (first, second))
    pseudo, used, inliers = naive_fixmatch(weak.tolist(), one, strong.tolist(), threshold)
    assert set(losses.terms) == {"supervised", "one_vs_all", "entropy", "consistency", "unsupervised"}
    supervised = chosen.mean(list(map(chosen.cross_entropy, x.tolist(), y.tolist())))
    assert chosen.is_close(losses.terms["supervised"], supervised)
    open_loss = naive_one_vs_all([pairs(row) for row in x_binary.tolist()], y.tolist())
    assert chosen.is_close(losses.terms["one_vs_all"], open_loss)
    assert chosen.is_close(losses.terms["entropy"], (naive_entropy(one) + naive_entropy(other)) / 2, 0.3)
    assert chosen.is_close(losses.terms["consistency"], naive_consistency(one, other), 0.6)
    assert chosen.is_close(losses.terms["unsupervised"], pseudo, 0.7)
    assert losses.metrics["mask"].item() == pytest.approx(used)
    assert losses.metrics["inlier"].item() == pytest.approx(inliers)


@pytest.mark.parametrize("binary", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize("y", [[0, 1, 2, 3, 0], [2, 2, 2, 2, 2]])
def test_one_vs_all_is_a_loop_with_the_hardest_other_class(binary: Tensor, y: list[int]) -> None:
    rows = binary[:5].roll(2, 1)
    found = one_vs_all(finite(rows).unflatten(1, (-1, 2)), torch.tensor(y))
    assert chosen.is_close(found, naive_one_vs_all([pairs(row) for row in rows.tolist()], y))


def test_a_single_class_has_no_other() -> None:
    logits = torch.tensor([[[2.0, 0.0]]], dtype=torch.float64)
    assert one_vs_all(logits, torch.tensor([0])).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_consistency_of_a_view_with_itself_is_zero_and_that_of_opposites_two_for_each_class() -> None:
    sure = 99 * torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert soft_consistency(sure, sure) == 0 and soft_consistency(sure, sure.flip(2)) == 4


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_labeled_images_are_read_in_the_view_asked_for(view: str) -> None:
    (x, y), filler = chosen.labeled(), torch.zeros(5, 2 * CLASSES, dtype=torch.float64)
    part, strong = torch.cat([x, filler], 1), torch.cat([3 * x, filler], 1)
    u = chosen.images(part, part, part)
    losses = openmatch(view).loss(chosen.batch(chosen.images(part, part, strong), y, u))
    logits = x if view == "weak" else 3 * x
    expected = chosen.mean(list(map(chosen.cross_entropy, logits.tolist(), y.tolist())))
    assert chosen.is_close(losses.terms["supervised"], expected)


@pytest.mark.parametrize("progress, begun", [(0.0, False), (0.29, False), (0.3, True), (0.9, True)])
def test_pseudo_labels_begin_at_their_start(progress: float, begun: bool) -> None:
    (x, y), filler = chosen.labeled(), torch.zeros(5, 2 * CLASSES, dtype=torch.float64)
    part = torch.cat([x, filler], 1)
    method = openmatch(start=0.3)
    images = chosen.images(part, part, part)
    losses = method.loss(chosen.batch(images, y, images, progress=progress))
    assert ("unsupervised" in losses.terms) == ("mask" in losses.metrics) == begun
    assert len(losses.terms) == 4 + begun


def test_the_mean_is_over_the_pseudo_inliers_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 8
    weak, strong, binary = LOGITS["random"][:n], zoo.normal(n, CLASSES, 2.0, 5), BINARY["random"][:n].clone()
    binary[: n // 2] = BINARY["no inliers"][: n // 2]  # the first rank has none
    x, y = chosen.labeled(4)
    labeled = torch.cat([x, x, x], 1)
    whole = chosen.batch(
        chosen.images(labeled, labeled, labeled),
        y,
        chosen.images(*[torch.cat(v, 1) for v in ((weak, binary), (weak, binary), (strong, binary))]),
    )

    def of(data):
        return openmatch().loss(data).terms["unsupervised"].item()

    parts = zoo.on_ranks(monkeypatch, 2, lambda rank: of(zoo.part(whole, rank, 2)))
    assert parts[0] == 0 and sum(parts) / 2 == pytest.approx(of(whole), rel=1e-12)
    expected, _, _ = naive_fixmatch(weak.tolist(), [pairs(row) for row in binary.tolist()], strong.tolist(), 0.0)
    assert of(whole) == pytest.approx(expected, rel=1e-12)


def test_the_classifier_and_its_binary_heads_move_and_the_classifier_alone_is_evaluated() -> None:
    method = OpenMatch(zoo.network("cnn-batch-relu"), zoo.WEAK, zoo.STRONG, classes=zoo.CLASSES).double()
    trained = method.updates()["classifier"].module
    assert set(trained.parameters()) == {*method.model.parameters(), *method.one_vs_all.parameters()}
    assert all(g.abs().sum() > 0 for g in zoo.gradients(method, "classifier", zoo.batch(6, 9, progress=0.5)))


def test_binary_heads_are_linear_without_a_bias() -> None:
    head = OneVsAll(5, 3)
    found = head(torch.eye(5))
    assert found.shape == (5, 3, 2) and head.bias is None
    torch.testing.assert_close(found.flatten(1), head.weight.T)


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.1}, {"start": -0.1}, {"weight": -1.0}, {"entropy": -1.0}, {"consistency": -1.0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        openmatch(**wrong)
