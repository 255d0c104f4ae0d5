"""UDA against a loop over its images, with logits that a test chooses for either view."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import zoo
from torch import Tensor

from semisynth.errors import UserError
from semisynth.method import Batch
from semisynth.methods import UDA
from semisynth.methods.uda import annealed, rising

CLASSES = 4


def logits(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(-1, CLASSES)


WEAK: dict[str, Tensor] = {
    "random": zoo.normal(40, CLASSES, 3.0, 0),
    "none confident": zoo.normal(9, CLASSES, 0.1, 1),
    "all confident": 80 * torch.eye(CLASSES, dtype=torch.float64)[[0, 1, 2, 3, 1]],
    "only classes 1 and 2": zoo.normal(20, CLASSES, 2.0, 2) + logits(-50, 0, 0, -50),
    "one image": zoo.normal(1, CLASSES, 9.0, 4),
    "exactly at a threshold of one half": logits(700, 700, 0, 0, 700, 0, 0, 0, 0, 0, 0, 0),
}


def pairs(weak: Tensor, strong: Tensor) -> Tensor:
    """Images whose first half is what `first` reads and whose second half is what `second` reads."""
    return torch.cat([weak, strong], 1)[:, :, None, None]


def first(x: Tensor) -> Tensor:
    return x[:, :CLASSES]


def second(x: Tensor) -> Tensor:
    return x[:, CLASSES:]


def naive(weak: Tensor, strong: Tensor, threshold: float, temperature: float) -> tuple[float, float]:
    """The unsupervised loss, and the share of confident images."""
    loss = kept = 0.0
    for w, s in zip(weak.tolist(), strong.tolist(), strict=True):
        if max(zoo.softmax(w)) > threshold:
            kept += 1
            target = zoo.softmax([value / temperature for value in w])
            loss += sum(p * zoo.cross_entropy(s, c) for c, p in enumerate(target))
    return loss / len(weak), kept / len(weak)


@pytest.mark.parametrize("weak", WEAK.values(), ids=WEAK)
@pytest.mark.parametrize("threshold, temperature", [(0.8, 0.4), (0.5, 1.0), (0.0, 3.0)])
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_losses_are_those_of_a_loop(weak: Tensor, threshold: float, temperature: float, view: str) -> None:
    strong = zoo.normal(len(weak), CLASSES, 2.0, 5)
    labeled, y = zoo.normal(5, CLASSES, 2.0, 6), torch.tensor([0, 3, 3, 0, 3])
    options = {"threshold": threshold, "temperature": temperature, "weight": 0.7, "view": view}
    method = UDA(zoo.Reader(CLASSES), first, second, **options)
    losses = method.loss(Batch(pairs(labeled, 3 * labeled), y, pairs(weak, strong), torch.arange(len(weak))))
    seen = labeled if view == "weak" else 3 * labeled
    supervised = sum(map(zoo.cross_entropy, seen.tolist(), y.tolist())) / 5
    unsupervised, share = naive(weak, strong, threshold, temperature)
    assert losses.terms["supervised"].item() == pytest.approx(supervised, rel=1e-12, abs=1e-12)
    assert losses.terms["unsupervised"].item() == pytest.approx(0.7 * unsupervised, rel=1e-12, abs=1e-12)
    assert losses.metrics["mask"].item() == pytest.approx(share, abs=1e-6)


def test_the_inputs_are_what_their_names_say() -> None:
    shares = {name: naive(weak, weak, 0.8, 1.0)[1] for name, weak in WEAK.items()}
    assert shares["none confident"] == 0 and shares["all confident"] == 1
    assert 0 < shares["random"] < 1
    assert naive(*[WEAK["exactly at a threshold of one half"]] * 2, 0.5, 1.0)[1] == 1 / 3  # above, not at


def test_the_gradient_is_that_of_the_divergence_and_the_target_is_constant() -> None:
    weak, strong = zoo.normal(8, CLASSES, 9.0, 0), zoo.normal(8, CLASSES, 1.0, 1)
    u = pairs(weak, strong).requires_grad_()
    method = UDA(zoo.Reader(CLASSES), first, second, threshold=0.0)
    losses = method.loss(Batch(pairs(weak, weak).detach(), weak.argmax(1), u, torch.arange(8)))
    gradient = torch.autograd.grad(losses.terms["unsupervised"], u)[0].flatten(1)
    target = (weak / 0.4).softmax(1)
    divergence = torch.nn.functional.kl_div(strong.requires_grad_().log_softmax(1), target, reduction="batchmean")
    assert not gradient[:, :CLASSES].any()
    torch.testing.assert_close(gradient[:, CLASSES:], torch.autograd.grad(divergence, strong)[0])


# ---- training signal annealing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "annealing, values",
    [
        ("linear", [0.0, 0.25, 0.5]),
        ("log", [0.0, 1 - math.exp(-1.25), 1 - math.exp(-2.5)]),
        ("exp", [math.exp(-5), math.exp(-3.75), math.exp(-2.5)]),
    ],
)
def test_the_threshold_rises_from_chance(annealing: str, values: list[float]) -> None:
    for progress, alpha in zip([0.0, 0.25, 0.5], values, strict=True):
        assert rising(annealing, progress, 10) == pytest.approx(alpha * 0.9 + 0.1)
    assert rising(annealing, 1.0, 10) == pytest.approx(1.0, abs=0.01)
    assert rising("none", 0.0, 10) >= 1


LABELED = {
    "random": (zoo.normal(20, CLASSES, 3.0, 6), torch.arange(20) % CLASSES),
    "all sure": (60 * torch.eye(CLASSES, dtype=torch.float64), torch.arange(CLASSES)),
    "all at chance": (torch.zeros(3, CLASSES, dtype=torch.float64), torch.arange(3)),
    "a single class": (zoo.normal(6, CLASSES, 3.0, 7), torch.full((6,), 2)),
    "one image": (zoo.normal(1, CLASSES, 1.0, 8), torch.tensor([1])),
}


@pytest.mark.parametrize("labeled, y", LABELED.values(), ids=LABELED)
@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_sure_labeled_images_are_left_out(labeled: Tensor, y: Tensor, progress: float) -> None:
    method = UDA(zoo.Reader(CLASSES), first, second, annealing="linear")
    u = pairs(labeled, labeled)
    losses = method.loss(Batch(u, y, u, y, progress=progress))
    each = list(map(zoo.cross_entropy, labeled.tolist(), y.tolist()))
    kept = [loss for loss in each if math.exp(-loss) <= progress * 0.75 + 0.25]
    expected = sum(kept) / max(len(kept), 1)
    assert losses.terms["supervised"].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_ranks_average_to_the_annealed_loss_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of the second rank's images are sure, so the share that is kept differs between the ranks.
    method, data = UDA(zoo.Reader(CLASSES), first, second, annealing="linear"), LABELED["random"]
    x = torch.cat([pairs(data[0], data[0])[:4], pairs(*[LABELED["all sure"][0]] * 2)])
    whole = Batch(x, torch.cat([data[1][:4], LABELED["all sure"][1]]), x, torch.arange(8), progress=0.9)

    def gradient(batch: Batch) -> Tensor:
        return zoo.gradients(copy.deepcopy(method), "classifier", batch)[0]

    parts = zoo.on_ranks(monkeypatch, 2, lambda rank: gradient(zoo.part(whole, rank, 2)))
    torch.testing.assert_close(sum(parts) / 2, gradient(whole), atol=0, rtol=1e-12)


def test_annealed_has_the_gradient_of_the_kept_images_alone() -> None:
    each = torch.tensor([0.1, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(annealed(each, 0.5), each)
    assert gradient.tolist() == [0, 0.5, 0.5]


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_the_model_is_what_moves() -> None:
    method = UDA(zoo.network("cnn-batch-relu"), zoo.WEAK, zoo.STRONG, threshold=0.0)
    assert list(method.updates()) == ["classifier"] and method.updates()["classifier"].module is method.model
    assert all(g.abs().sum() > 0 for g in zoo.gradients(method, "classifier", zoo.batch(6, 9)))


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"temperature": 0.0}, {"weight": -1.0}])
def test_options_out_of_their_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} is"):
        UDA(zoo.Reader(CLASSES), first, second, **options)
