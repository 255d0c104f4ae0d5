"""The views: which operation each image gets, and that a view depends on the image and its own draws alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from semisynth import distributed, noise
from semisynth.augment import Strong, Weak, ops, policies

View = Callable[[Tensor], Tensor]
VIEWS = [Weak(flip=True), Weak(flip=False, shift=0.25), Strong(flip=True), Strong(flip=False, operations=3, fill=0.5)]
NAMES = ["weak", "weak, other", "strong", "strong, other"]
KINDS = [*policies.GEOMETRIC, *(op.__name__ for op in policies.COLOUR)]

parametrize_view = pytest.mark.parametrize("view", VIEWS, ids=NAMES)


def images(n: int, c: int = 3, h: int = 16, w: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(n * c)
    return torch.randint(256, (n, c, h, w), generator=generator).float() / 255


def seen(view: View, x: Tensor, seed: int = 0) -> Tensor:
    with noise.seeded(seed):
        return view(x)


@parametrize_view
def test_same_seed_same_view_and_no_other_source(view: View) -> None:
    x = images(32)
    before = torch.get_rng_state()
    assert seen(view, x).equal(seen(view, x))
    assert torch.get_rng_state().equal(before)
    assert not seen(view, x).equal(seen(view, x, seed=1))


@parametrize_view
def test_images_of_one_batch_get_different_views(view: View) -> None:
    x = images(1).expand(64, -1, -1, -1)
    views = seen(view, x).flatten(1)
    apart = torch.cdist(views, views, p=float("inf")) > 1e-3
    assert apart.float().mean() > 0.7


@parametrize_view
def test_a_view_does_not_depend_on_the_other_images(view: View) -> None:
    x = images(48)
    other = torch.where(torch.arange(48).remainder(3)[:, None, None, None] == 0, x, 1 - x.roll(1, 0))
    torch.testing.assert_close(seen(view, x)[::3], seen(view, other)[::3], atol=0, rtol=0)


@parametrize_view
def test_two_ranks_see_what_one_sees(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(32)
    whole = seen(view, x)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for rank, part in enumerate(x.chunk(2)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.testing.assert_close(seen(view, part), whole.chunk(2)[rank], atol=1e-6, rtol=0)


@parametrize_view
@pytest.mark.parametrize("shape", [(64, 1, 16, 16), (33, 3, 12, 20), (1, 3, 8, 8), (5, 4, 16, 16)])
def test_shape_type_and_range(view: View, shape: tuple[int, int, int, int]) -> None:
    for x in (images(*shape), images(*shape).double()):
        found = seen(view, x)
        assert found.shape == x.shape and found.dtype == x.dtype
        assert found.min() >= 0 and found.max() <= 1


@parametrize_view
def test_precision_changes_no_draw(view: View) -> None:
    x = images(64)
    # In float32 a pixel may round over the edge of a hole or a level, so not every one is near.
    near = (seen(view, x).double() - seen(view, x.double())).abs() < 1e-5
    assert near.float().mean() > 0.999


@parametrize_view
def test_channels_last_is_the_same_view(view: View) -> None:
    x = images(16)
    torch.testing.assert_close(seen(view, x.contiguous(memory_format=torch.channels_last)), seen(view, x))


@parametrize_view
def test_gradient_reaches_every_image(view: View) -> None:
    x = images(64).mul(0.8).add(0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(seen(view, x).square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).any(1).float().mean() > 0.95  # an image may be cut, or clipped to black, as a whole


def one_by_one(x: Tensor, kinds: Tensor, amounts: Tensor, fill: float) -> Tensor:
    """Each image through its operation, looked up by name, as a batch of one."""
    views = []
    for image, kind, amount in zip(x.split(1), kinds.tolist(), amounts.tolist(), strict=True):
        low, high = policies.RANGES[kind].tolist()
        magnitude = torch.tensor([low + amount * (high - low)], dtype=x.dtype)
        extra = [fill] if KINDS[kind] in policies.GEOMETRIC else []
        views.append(getattr(ops, KINDS[kind])(image, magnitude, *extra))
    return torch.cat(views)


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_randaugment_applies_to_each_image_its_own_operation(fill: float) -> None:
    x = images(56).double().requires_grad_()
    kinds, amounts = torch.randperm(56) % len(KINDS), torch.rand(56, dtype=torch.float64)
    found, expected = policies.randaugment(x, kinds, amounts, fill), one_by_one(x, kinds, amounts, fill)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weight = torch.rand_like(x)
    gradients = [torch.autograd.grad((view * weight).sum(), x)[0] for view in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kinds", [[0, 4], [5, 9], [12]])
def test_randaugment_of_a_batch_with_few_operations(kinds: list[int]) -> None:
    x, amounts = images(len(kinds)).requires_grad_(), torch.full((len(kinds),), 0.9, dtype=torch.float64)
    found = policies.randaugment(x, torch.tensor(kinds), amounts)
    torch.testing.assert_close(found, one_by_one(x, torch.tensor(kinds), amounts, 0.0), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.isfinite().all() and gradient.flatten(1).any(1).all()


def test_ranges_are_those_of_the_fourteen_operations() -> None:
    signed = {name for name, (low, high) in zip(KINDS, policies.RANGES.tolist(), strict=True) if low < 0}
    assert len(set(KINDS)) == 14
    assert signed == {*policies.GEOMETRIC, "brightness", "contrast", "color", "sharpness"}
    assert all(low == -high for low, high in policies.RANGES.tolist() if low < 0)


def test_weak_moves_by_every_offset_up_to_an_eighth_and_mirrors_half() -> None:
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    x = (torch.stack([rows, columns]) / 24).expand(2000, -1, -1, -1)
    centre = (seen(Weak(flip=True), x)[:, :, 8, 10:12] * 24).round()
    mirrored = centre[:, 1, 0] > centre[:, 1, 1]
    column = torch.where(mirrored, 23 - centre[:, 1, 0], centre[:, 1, 0])
    assert 900 < mirrored.sum() < 1100
    assert (centre[:, 0, 0] - 8).unique(return_counts=True)[0].tolist() == [-2, -1, 0, 1, 2]
    moves, counts = (column - 10).unique(return_counts=True)
    assert moves.tolist() == [-3, -2, -1, 0, 1, 2, 3] and counts.min() > 220
    assert seen(Weak(flip=False, shift=0.0), x).equal(x)


@pytest.mark.parametrize("flip", [False, True])
def test_strong_begins_with_the_weak_view(flip: bool) -> None:
    x = images(16)
    assert seen(Strong(flip, operations=0, cutout=0.0), x).equal(seen(Weak(flip), x))


def test_strong_draws_each_operation_equally_often_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(policies, "randaugment", lambda x, kinds, amounts, fill: drawn.append((kinds, amounts)) or x)
    seen(Strong(flip=False, operations=3), torch.zeros(2800, 1, 8, 8))
    assert len(drawn) == 3
    for kinds, amounts in drawn:
        assert kinds.bincount(minlength=14).min() > 140
        assert amounts.min() < 0.01 and amounts.max() > 0.99 and abs(amounts.mean() - 0.5) < 0.02
    assert (drawn[0][0] == drawn[1][0]).float().mean() < 0.1


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_holes_are_squares_of_every_size_up_to_half(fill: float) -> None:
    x = torch.ones(1000, 1, 32, 32)
    hole = seen(Strong(flip=False, operations=0, fill=fill), x)[:, 0] == fill
    height, width = hole.any(2).sum(1), hole.any(1).sum(1)
    inner = ~(hole[:, [0, -1]].any((1, 2)) | hole[:, :, [0, -1]].any((1, 2)))
    assert hole.sum((1, 2)).equal(height * width) and height[inner].equal(width[inner]) and inner.sum() > 300
    assert height.max() == 16 and 6 < height.float().mean() < 8  # 8, less what the border cuts
    assert hole.float().mean(0).min() > 0.01  # every pixel can be hidden
