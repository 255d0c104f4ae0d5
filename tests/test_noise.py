"""Noise: a pure function of its seed, the same on any number of ranks, and of the distribution that its name says."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from semisynth import distributed, noise

LIKE = torch.empty(0, dtype=torch.float64)
DRAWS: dict[str, Callable[[int], Tensor]] = {
    "normal": lambda n: noise.normal(n, 2, like=LIKE),
    "uniform": lambda n: noise.uniform(n, 2, 3, like=LIKE),
    "gumbel": lambda n: noise.gumbel(n, 3, like=LIKE),
    "integers": lambda n: noise.integers(1000, n, 2),
}
each_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
FLOATS = [noise.normal, noise.uniform, noise.gumbel]


def drawn(draw: Callable[[int], Tensor], *parts: int | str, n: int = 12) -> Tensor:
    with noise.seeded(*parts):
        return draw(n)


def test_derive_is_the_same_on_every_machine() -> None:
    assert noise.derive(0, "step", 7) == 5712503053122524263
    assert 0 <= noise.derive("a") < 2**63


def test_derive_tells_parts_apart() -> None:
    parts: list[tuple[int | str, ...]] = [(), (0,), ("0",), (0, 0), (1,), ("a", "b"), ("b", "a"), ("ab",), ("a", 0)]
    assert len({noise.derive(*p) for p in parts}) == len(parts)


@each_draw
def test_a_draw_is_a_function_of_the_parts(draw: Callable[[int], Tensor]) -> None:
    torch.manual_seed(1)
    first = drawn(draw, 0, "step", 3)
    torch.manual_seed(2)
    torch.rand(5)
    assert drawn(draw, 0, "step", 3).equal(first)
    assert not drawn(draw, 0, "step", 4).equal(first)


@each_draw
def test_draws_of_one_source_differ_and_leave_the_default_generator_alone(draw: Callable[[int], Tensor]) -> None:
    before = torch.get_rng_state()
    with noise.seeded(0):
        assert not draw(12).equal(draw(12))
    assert torch.get_rng_state().equal(before)


@each_draw
def test_outside_of_a_source_draws_come_from_the_default_generator(draw: Callable[[int], Tensor]) -> None:
    torch.manual_seed(3)
    first = draw(12)
    torch.manual_seed(3)
    assert draw(12).equal(first) and not draw(12).equal(first)


def test_sources_nest_and_end_with_an_error() -> None:
    draw = DRAWS["normal"]
    with noise.seeded("outer"):
        expected = [draw(2), draw(2)]
    with noise.seeded("outer"):
        first = draw(2)
        with pytest.raises(ValueError, match="stop"), noise.seeded("inner"):
            draw(2)
            raise ValueError("stop")
        second = draw(2)
    assert first.equal(expected[0]) and second.equal(expected[1])
    torch.manual_seed(0)
    after = draw(2)
    torch.manual_seed(0)
    assert draw(2).equal(after)


def test_a_source_belongs_to_its_thread() -> None:
    draw, found = DRAWS["normal"], []

    def elsewhere() -> None:
        torch.manual_seed(5)
        found.append(draw(2))

    with noise.seeded("here"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        inside = draw(2)
    assert inside.equal(drawn(draw, "here", n=2))
    torch.manual_seed(5)
    assert found[0].equal(draw(2))


@each_draw
@pytest.mark.parametrize("world", [2, 3])
def test_the_draws_of_ranks_are_the_rows_of_one(
    draw: Callable[[int], Tensor], world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn(draw, "batch")
    monkeypatch.setattr(distributed, "world", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(drawn(draw, "batch", n=12 // world))
    assert [len(part) for part in parts] == [12 // world] * world
    assert torch.cat(parts).equal(whole)


@pytest.mark.parametrize("draw", FLOATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_shape_and_dtype(draw: Callable[..., Tensor], dtype: torch.dtype) -> None:
    found = draw(5, 2, 3, like=torch.empty(7, dtype=dtype))
    assert found.shape == (5, 2, 3) and found.dtype == dtype
    assert draw(0, 2, like=found).shape == (0, 2) and draw(4, like=found).shape == (4,)
    assert draw(5, like=torch.empty(0, device="meta")).device.type == "meta"


def test_float64_draws_have_all_their_digits() -> None:
    for draw in FLOATS:
        found = draw(100, like=LIKE)
        assert not found.float().double().equal(found)


@pytest.mark.parametrize(
    "draw, law", [(noise.normal, stats.norm), (noise.uniform, stats.uniform), (noise.gumbel, stats.gumbel_r)]
)
def test_distribution(draw: Callable[..., Tensor], law: stats.rv_continuous) -> None:
    with noise.seeded("distribution"):
        found = draw(20_000, like=LIKE)
    assert found.isfinite().all() and stats.kstest(found.numpy(), law.cdf).pvalue > 0.01
    assert stats.kstest(found.numpy() + 0.03, law.cdf).pvalue < 0.01


def test_integers_are_uniform() -> None:
    with noise.seeded("distribution"):
        found = noise.integers(7, 1000, 7)
    assert found.shape == (1000, 7) and found.dtype == torch.int64 and found.device.type == "cpu"
    assert found.unique().tolist() == list(range(7))
    assert stats.chisquare(found.flatten().bincount().numpy()).pvalue > 0.01


def test_gumbel_noise_draws_classes_by_their_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=torch.float64)
    with noise.seeded("classes"):
        counts = (logits + noise.gumbel(20_000, 4, like=logits)).argmax(1).bincount(minlength=4)
    assert stats.chisquare(counts.numpy(), 20_000 * logits.softmax(0).numpy()).pvalue > 0.01


def test_gumbel_noise_is_finite_at_the_ends_of_the_unit_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    for end in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda *shape, end=end, **_: torch.full(shape, end, dtype=torch.float64))
        assert noise.gumbel(3, like=torch.empty(0)).isfinite().all()
