"""Batches are a pure function of (seed, step): any order, any number of ranks, every item once in an epoch."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import torch

from semisynth import distributed, noise
from semisynth.data import stream as stream_of
from semisynth.data.datasets import Images
from semisynth.data.stored import Stored
from semisynth.data.stream import Both, Placed, Pool, Shuffled, Stream, Synthetic, to_float

CPU = torch.device("cpu")
IMAGES = Images(torch.arange(7 * 4, dtype=torch.uint8).view(7, 1, 2, 2), torch.arange(7) % 3)


def stream(seed=0, unlabeled=True, batch=3):
    source = Pool(IMAGES, 4, seed, CPU) if unlabeled else None
    return Stream(IMAGES, source, batch=batch, steps=20, seed=seed, device=CPU)


def content(batch):
    return {name: getattr(batch, name) for name in ("x", "y", "u", "index", "step", "progress")}


def as_rank(monkeypatch, rank, world):
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world", lambda: world)


@pytest.mark.parametrize("n, batch", [(10, 4), (10, 10), (3, 8), (7, 1), (5, 12)])
def test_every_epoch_has_every_item_once_in_another_order(n, batch):
    order = Shuffled(n, batch, seed=1)
    items = torch.cat([order(step) for step in range(6 * n)]).tolist()
    epochs = [items[first : first + n] for first in range(0, len(items) - n + 1, n)]
    assert all(Counter(epoch) == Counter(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > min(len(epochs), math.factorial(n)) / 2


def test_an_order_is_the_same_on_every_machine():
    found = torch.cat([Shuffled(100, 32, seed=5)(step) for step in range(10)])
    assert hashlib.sha256(found.numpy().astype("<i8").tobytes()).hexdigest()[:16] == "207f885220aef177"


@pytest.mark.parametrize("n, batch", [(10, 4), (3, 8), (7, 1), (1, 5), (100, 7)])
def test_an_order_is_that_of_the_positions_one_by_one(n, batch):
    """As it was when the order was a list: position p is place p % n of the permutation of epoch p // n."""
    found = torch.cat([Shuffled(n, batch, seed=3)(step) for step in range(12)])
    assert found.dtype == torch.int64

    def order(epoch):
        return np.random.RandomState(noise.derive(3, "order", epoch) % 2**32).permutation(n).tolist()

    assert found.tolist() == [order(p // n)[p % n] for p in range(12 * batch)]


def test_seeds_give_unrelated_orders():
    assert not torch.equal(Shuffled(50, 50, seed=0)(0), Shuffled(50, 50, seed=1)(0))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_order(monkeypatch, world):
    whole = [Shuffled(10, 6, seed=0)(step) for step in range(5)]
    parts = []
    for rank in range(world):
        as_rank(monkeypatch, rank, world)
        parts.append([Shuffled(10, 6, seed=0)(step) for step in range(5)])
    for step in range(5):
        assert torch.equal(torch.cat([part[step] for part in parts]), whole[step])


def test_to_float_covers_the_unit_interval():
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


def test_a_batch_holds_the_rows_of_its_items():
    for step in range(5):
        found = stream()(step)
        index = Shuffled(7, 3, noise.derive(0, "labeled"))(step)
        assert torch.equal(found.x, IMAGES.x[index].float() / 255) and torch.equal(found.y, IMAGES.y[index])
        assert torch.equal(found.u, IMAGES.x[found.index].float() / 255) and len(found.u) == 4
        assert (found.step, found.progress) == (step, step / 20)


def test_stored_images_are_held_by_a_device_with_memory_of_its_own_if_they_fit(monkeypatch, tmp_path):
    pixels, other = torch.randint(256, (7, 3, 4, 5), dtype=torch.uint8), torch.device("meta")
    pixels.numpy().tofile(tmp_path / "pixels")
    stored = Stored(tmp_path / "pixels", (3, 4, 5), torch.tensor([6, 0, 2, 3, 5]))
    monkeypatch.setattr(stream_of, "BLOCK", 2)
    monkeypatch.setattr(stream_of, "ON_DEVICE", 5 * 60)
    assert torch.equal(stream_of.whole(stored, CPU), pixels[stored.rows])
    held = Placed(stored, other).x
    assert held.device == other and held.shape == (5, 3, 4, 5) and held.dtype == torch.uint8
    assert Placed(stored, CPU).x is stored
    monkeypatch.setattr(stream_of, "ON_DEVICE", 5 * 60 - 1)
    assert Placed(stored, other).x is stored


def test_labeled_and_unlabeled_orders_are_unrelated():
    found = Stream(IMAGES, Pool(IMAGES, 7, 0, CPU), batch=7, steps=20, seed=0, device=CPU)
    assert any(not torch.equal(batch.x, batch.u) for batch in map(found, range(3)))


def test_without_unlabeled_images_there_are_none():
    found = stream(unlabeled=False)(2)
    assert found.u.shape == (0, 1, 2, 2) and found.index.shape == (0,)


@pytest.mark.parametrize("steps", [range(30), reversed(range(30)), [29, 3, 3, 0, 17, 29]])
def test_a_batch_depends_on_seed_and_step_alone(steps):
    expected = [content(stream()(step)) for step in range(30)]
    one = stream()
    torch.manual_seed(99)
    assert all(tiny.same(content(one(step)), expected[step]) for step in steps)
    with ThreadPoolExecutor(4) as threads:
        assert all(map(tiny.same, map(content, threads.map(stream(), range(30))), expected))
    assert not tiny.same(content(stream(seed=1)(0)), expected[0])


def brightness(n):
    return noise.uniform(n, 1, 2, 2, like=torch.empty(0)).requires_grad_() * 1


def test_synthetic_images_are_a_pure_function_of_seed_and_step():
    source = Synthetic(brightness, 4, seed=0)
    expected = [source(step)[0] for step in range(4)]
    torch.manual_seed(99)
    for step in (2, 0, 3, 1):
        u, index = source(step)
        assert torch.equal(u, expected[step]) and u.shape == (4, 1, 2, 2)
        assert index.tolist() == [-1] * 4 and not u.requires_grad
    others = [Synthetic(brightness, 4, seed=1)(0)[0], *expected[1:]]
    assert not any(torch.equal(expected[0], other) for other in others)


def test_ranks_share_the_synthetic_batch(monkeypatch):
    whole = Synthetic(brightness, 4, seed=0)(3)[0]
    parts = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        parts.append(Synthetic(brightness, 4, seed=0)(3)[0])
    assert torch.equal(torch.cat(parts), whole)


def both(batch):
    return Both(Pool(IMAGES, batch // 2, 0, CPU), Synthetic(brightness, batch // 2, seed=0))


def test_both_alternates_the_batches_of_its_sources():
    for step in range(4):
        u, index = both(8)(step)
        real, synthetic = Pool(IMAGES, 4, 0, CPU)(step), Synthetic(brightness, 4, seed=0)(step)
        assert torch.equal(u[::2], real[0]) and torch.equal(index[::2], real[1]) and (real[1] >= 0).all()
        assert torch.equal(u[1::2], synthetic[0]) and index[1::2].tolist() == [-1] * 4


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batch_of_both(monkeypatch, world):
    whole = [both(8)(step) for step in range(3)]
    parts = []
    for rank in range(world):
        as_rank(monkeypatch, rank, world)
        parts.append([both(8)(step) for step in range(3)])
    for step in range(3):
        for found, expected in zip(zip(*(part[step] for part in parts), strict=True), whole[step], strict=True):
            assert torch.equal(torch.cat(found), expected)


def test_without_labeled_images_there_are_none():
    none = Images(IMAGES.x[:0], IMAGES.y[:0])
    found = Stream(none, Pool(IMAGES, 4, 0, CPU), batch=3, steps=20, seed=0, device=CPU)(5)
    assert found.x.shape == (0, 1, 2, 2) and found.y.shape == (0,) and len(found.u) == 4
