"""GDA: which foundation class it asks for, and its losses against loops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import zoo
from bilevel import fit
from torch import Tensor

from semisynth import noise
from semisynth.errors import UserError
from semisynth.method import Batch
from semisynth.methods import GDA

SEED, SYNTHETIC = ("a step", 3), 7


def gda(name: str = "cnn-group-silu", **options: Any) -> GDA:
    weak, strong = options.pop("views", (zoo.WEAK, zoo.STRONG))
    parts = (zoo.network(name), zoo.generator(), zoo.source(), weak, strong, zoo.CLASSES, SYNTHETIC)
    return GDA(*parts, **options).double()


def read(method: GDA, batches: list[Batch]) -> list[list[float]]:
    """By target class: the mean posterior in weak views, over images and then over batches."""
    sums = [[0.0] * zoo.FOUNDATION for _ in range(zoo.CLASSES)]
    for batch in batches:
        for image, label in zip(batch.x, batch.y.tolist(), strict=True):
            share = 1 / batch.y.tolist().count(label)
            posterior = zoo.softmax(method.reader.source(zoo.faint(image[None]))[0].tolist())
            sums[label] = [total + share * p for total, p in zip(sums[label], posterior, strict=True)]
    return [[total / len(batches) for total in row] for row in sums]


def most_read(method: GDA, batches: list[Batch]) -> list[int]:
    """By target class: the foundation class of the largest mean posterior."""
    return [row.index(max(row)) for row in read(method, batches)]


def apart(method: GDA, data: Batch) -> None:
    """Let the source classifier read the target classes as 2, 0 and 1, or so: its head by least squares."""
    source = method.reader.source.module
    features, wanted = source.features(zoo.faint(data.x)), torch.eye(zoo.FOUNDATION).double()[[2, 0, 1]][data.y]
    known = torch.cat([features, torch.ones(len(features), 1)], 1)
    solution = 4 * torch.linalg.lstsq(known.detach(), wanted, driver="gelsd").solution
    source.head.weight.copy_(solution[:-1].T)
    source.head.bias.copy_(solution[-1])


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_losses_are_those_of_a_loop(view: str) -> None:
    method, data = gda(views=(zoo.faint, zoo.mixed), weight=0.6, view=view), zoo.batch(9)
    apart(method, data)
    with noise.seeded(*SEED):
        losses = method.loss(data)
    asked, reading = most_read(method, [data]), torch.tensor(read(method, [data]), dtype=torch.float64)
    assert asked == [2, 0, 1]
    torch.testing.assert_close(losses.memory["reader.transport"], reading)
    with noise.seeded(*SEED):
        y, z = noise.integers(zoo.CLASSES, SYNTHETIC), noise.normal(SYNTHETIC, zoo.LATENT, like=data.x)
    assert len(y.unique()) == 3
    seen = {"weak": zoo.faint, "strong": zoo.mixed}[view]

    def cross_entropy(image: Tensor, label: int) -> float:
        return zoo.cross_entropy(method.model(seen(image[None]))[0].tolist(), label)

    supervised = sum(map(cross_entropy, data.x, data.y.tolist())) / 9
    made = [method.generator(z[i : i + 1], torch.tensor([asked[c]]))[0] for i, c in enumerate(y.tolist())]
    synthetic = sum(map(cross_entropy, made, y.tolist())) / SYNTHETIC
    assert list(losses.terms) == ["supervised", "synthetic"]
    assert losses.terms["supervised"].item() == pytest.approx(supervised, rel=1e-12)
    assert losses.terms["synthetic"].item() == pytest.approx(0.6 * synthetic, rel=1e-12)


def test_the_reading_is_remembered() -> None:
    method, batches = gda(views=(zoo.faint, zoo.mixed)), [zoo.batch(6, 5, step=step) for step in range(4)]
    fit(method, 4)
    assert method.reader.count.tolist() == [4, 4, 4]
    assert method.reader.transport.argmax(1).tolist() == most_read(method, batches)
    # A batch of one class leaves the reading of the others as it was.
    lone = Batch(batches[0].x[:1], batches[0].y[:1], batches[0].u, batches[0].index)
    memory = method.loss(lone).memory
    assert set(memory) == {"reader.transport", "reader.count"}
    assert memory["reader.count"].tolist() == [5, 4, 4]
    assert memory["reader.transport"][1:].equal(method.reader.transport[1:])


def test_samples_are_uniform_and_of_the_target_classes_in_turn() -> None:
    method, like = gda(), zoo.batch().x
    method.reader.transport.copy_(torch.eye(zoo.FOUNDATION)[[2, 0, 3]])
    with noise.seeded(0):
        found = method.samples(7, like)
    with noise.seeded(0):
        mapped = method.generator(noise.normal(7, zoo.LATENT, like=like), torch.tensor([2, 0, 3, 2, 0, 3, 2]))
        z, y = noise.normal(7, zoo.LATENT, like=like), noise.integers(zoo.FOUNDATION, 7)
    torch.testing.assert_close(found, {"uniform": method.generator(z, y), "mapped": mapped}, atol=0, rtol=0)


def test_ranks_average_to_the_gradient_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = gda(), zoo.batch(8)

    def gradient(batch: Batch, synthetic: int) -> list[Tensor]:
        own = copy.deepcopy(method)
        own.synthetic = synthetic
        with noise.seeded(*SEED):
            return zoo.gradients(own, "classifier", batch)

    whole = gradient(data, 6)
    parts = zoo.on_ranks(monkeypatch, 2, lambda rank: gradient(zoo.part(data, rank, 2), 3))
    for expected, *found in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(found) / 2, expected, atol=1e-11, rtol=1e-10)


def test_the_model_is_what_moves() -> None:
    method = gda()
    assert list(method.updates()) == ["classifier"] and method.updates()["classifier"].module is method.model
    assert all(g.abs().sum() > 0 for g in zoo.gradients(method, "classifier", zoo.batch()))
    assert {name.split(".")[0] for name in method.state_dict()} == {"model", "reader"}


def test_a_weight_out_of_its_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"weight is -1\.0"):
        gda(weight=-1.0)
