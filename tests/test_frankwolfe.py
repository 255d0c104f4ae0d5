"""The weights against an enumeration of supports without a Gram matrix, on a thousand problems and on odd ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from semisynth.frankwolfe import FEW, STEPS, by_steps, by_supports, minimum_norm, scaled

EPS = torch.finfo(torch.float64).eps


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def powers(t: int, width: float) -> Tensor:
    """Scales of t rows, each from 10^-width to 10^width."""
    return 10 ** (width * (2 * torch.rand(t, 1, dtype=torch.float64) - 1))


def twins(rows: Tensor, factor: float) -> Tensor:
    return torch.cat([rows[:1], factor * rows[:1], rows[2:]])


KINDS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": normal,
    "norms apart": lambda t, d: normal(t, d) * powers(t, 3),
    "norms far apart": lambda t, d: normal(t, d) * powers(t, 20),
    "alike": lambda t, d: normal(t, d) + 3 * normal(1, d),
    "nearly identical": lambda t, d: normal(1, d) + 1e-6 * normal(t, d),
    "two identical": lambda t, d: twins(normal(t, d), 1.0),
    "two opposite": lambda t, d: twins(normal(t, d), -1.0),
    "two in line": lambda t, d: twins(normal(t, d), 3.0),
    "all identical": lambda t, d: normal(1, d).repeat(t, 1),
    "all in line": lambda t, d: normal(1, d) * normal(t, 1),
    "one zero": lambda t, d: torch.cat([torch.zeros(1, d, dtype=torch.float64), normal(t - 1, d)]),
    "all zero": lambda t, d: torch.zeros(t, d, dtype=torch.float64),
    "tiny": lambda t, d: 1e-20 * normal(t, d),
    "huge": lambda t, d: 1e20 * normal(t, d),
    "in a plane": lambda t, d: normal(t, 2) @ normal(2, d),
    "of one norm": lambda t, d: torch.nn.functional.normalize(normal(t, d)),
}


def problems(t: int, n: int, d: int = 16) -> Tensor:
    """n problems (n, t, d) of all kinds in turn, some in few dimensions: of low rank, and often with minimum zero."""
    made = torch.zeros(n, t, d, dtype=torch.float64)
    for i, (size, kind) in zip(
        range(n), itertools.cycle(itertools.product((2, 4, 9, 16), KINDS.values())), strict=False
    ):
        made[i, :, :size] = kind(t, size)
    return made


def of_gram(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (n, t, t) whose Gram matrices these are (n, t, t), and by which share of the norms they are not."""
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    values, vectors = torch.linalg.eigh(gram * inverse[:, :, None] * inverse[:, None])
    return norms[:, :, None] * vectors * values.clamp_min(0).sqrt()[:, None], (-values.amin(1)).clamp_min(0)


def affine(rows: Tensor) -> Tensor:
    """Weights (n, r) of the smallest affine combination of gradients (n, r, d), clamped: by least squares, of SVDs."""
    order = rows.norm(dim=2).argsort(1)
    rows = rows.gather(1, order[..., None].expand_as(rows))
    differences = (rows[:, 1:] - rows[:, :1]).mT
    lengths = differences.norm(dim=1, keepdim=True)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    solved = torch.linalg.lstsq(differences / lengths, -rows[:, 0, :, None], rcond=1e-14, driver="gelsd").solution
    others = (solved / lengths.mT)[..., 0]
    weights = torch.cat([1 - others.sum(1, keepdim=True), others], 1).clamp_min(0)
    return torch.zeros_like(weights).scatter(1, order, weights / weights.sum(1, keepdim=True))


def norms_of(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """|sum w_i g_i|^2 and (sum w_i |g_i|)^2 of each problem."""
    return (weights[:, None] @ rows)[:, 0].square().sum(1), (weights * rows.norm(dim=2)).sum(1).square()


def enumerated(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The least |sum w_i g_i|^2 of gradients (n, t, d) over all supports, and the (sum w_i |g_i|)^2 of it."""
    found = []
    for r in range(1, rows.shape[1] + 1):
        for support in itertools.combinations(range(rows.shape[1]), r):
            chosen = rows[:, support]
            weights = affine(chosen) if r > 1 else torch.ones_like(chosen[:, :, 0])
            found.append(torch.stack(norms_of(weights, chosen)))
    every = torch.stack(found)
    least, size = every.gather(0, every[:, :1].argmin(0).expand(2, -1)[None])[0]
    return least, size


def on_the_simplex(weights: Tensor) -> bool:
    return bool((weights >= 0).all() and abs(weights.sum() - 1) < 1e-14 and weights.isfinite().all())


@pytest.mark.parametrize("t", range(2, 9))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_norm_is_the_smallest_of_all_supports(dtype: torch.dtype, t: int) -> None:
    """A thousand problems in float64, and their matrices rounded to float32, as they are, where it holds them."""
    rows = problems(t, 144)
    if dtype == torch.float32:
        rows = rows[(rows.norm(dim=2).amax(1) < 1e12) & ((rows.norm(dim=2) > 1e-12) | (rows == 0).all(2)).all(1)]
    grams = (rows @ rows.mT).to(dtype)
    wrong = torch.zeros(len(rows))
    if dtype == torch.float32:
        rows, wrong = of_gram(grams.double())
    weights = torch.stack([minimum_norm(gram)[0] for gram in grams])
    assert all(map(on_the_simplex, weights))
    (found, _), (least, size) = norms_of(weights, rows), enumerated(rows)
    known = 64 * torch.finfo(dtype).eps * size  # a minimum below it cannot be told from zero by the matrix
    assert (found - least <= torch.where(least > known, 1e-8 * least, known) + wrong * size).all()
    assert (least > known).sum() > len(rows) / 3
    if dtype == torch.float64:
        assert (found <= rows.norm(dim=2).amin(1).square() * (1 + 1e-12)).all()


def by_frank_wolfe(gram: Tensor) -> Tensor:
    problem = scaled(gram)
    weights = by_steps(problem, STEPS * len(gram)) * problem.c
    return weights / weights.sum()


@pytest.mark.parametrize("t", range(2, 9))
def test_frank_wolfe_arrives_too(t: int) -> None:
    rows = problems(t, 128)
    norms = rows.norm(dim=2)
    rows = rows[norms.amax(1) <= 1e15 * torch.where(norms > 0, norms, torch.inf).amin(1)]
    assert len(rows) >= 112
    weights = torch.stack([by_frank_wolfe(gram) for gram in rows @ rows.mT])
    assert all(map(on_the_simplex, weights))
    (found, _), (least, size) = norms_of(weights, rows), enumerated(rows)
    assert (found - least <= torch.where(least > 64 * EPS * size, 1e-8 * least, 64 * EPS * size)).all()


@pytest.mark.parametrize("t", [FEW + 1, 13, 24])
def test_many_tasks_by_few_of_which_the_others_are_mixtures(t: int) -> None:
    for kind in ("normal", "alike", "norms apart", "in a plane", "two opposite", "one zero", "tiny", "huge"):
        corners = KINDS[kind](5, 8)
        mixtures = torch.rand(t - 5, 5, dtype=torch.float64).softmax(1) @ corners
        rows = torch.cat([mixtures, corners])[torch.randperm(t)]
        weights, gap = minimum_norm(rows @ rows.T)
        (found, size), (least, _) = norms_of(weights[None], rows[None]), enumerated(corners[None])
        assert on_the_simplex(weights) and found - least <= 1e-8 * least + 64 * EPS * size
        assert gap >= 0


@pytest.mark.parametrize("t", [2, 5, 8, 12])
def test_the_gap_is_nothing_at_the_minimum(t: int) -> None:
    for _ in range(10):
        rows = normal(t, 20) + normal(1, 20)
        gram = rows @ rows.T
        weights, gap = minimum_norm(gram)
        assert 0 <= gap < 1e-12 * (weights @ gram @ weights)


def test_the_gap_is_that_of_frank_wolfe(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 (w' G w - min_i (G w)_i) at weights that are not optimal: here at the smallest gradient."""
    monkeypatch.setattr("semisynth.frankwolfe.by_supports", lambda problem: torch.tensor([1.0, 0.0]).double())
    weights, gap = minimum_norm(torch.tensor([[4.0, 1.0], [1.0, 9.0]]))
    assert weights.tolist() == [1, 0] and gap == 2 * (4 - 1)
    assert gap >= 4 - (4 * 9 - 1) / (4 + 9 - 2)  # the error


@pytest.mark.parametrize("product, expected", [(2.0, 1.0), (1.0, 1.0), (0.0, 0.9), (-1.0, 10 / 12), (-3.0, 12 / 16)])
def test_two_tasks_are_weighed_as_by_hand(product: float, expected: float) -> None:
    """Of squared norms 1 and 9: (9 - product) / (1 + 9 - 2 product), at most 1 (Sener and Koltun, algorithm 1)."""
    weights, _ = minimum_norm(torch.tensor([[1.0, product], [product, 9.0]], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([expected, 1 - expected], dtype=torch.float64))


@pytest.mark.parametrize("t", [1, 2, 5, FEW + 1])
def test_what_is_no_gram_matrix_gives_weights_all_the_same(t: int) -> None:
    for bad in (torch.inf, -torch.inf, torch.nan):
        gram = torch.eye(t)
        gram[-1, -1] = bad
        weights, gap = minimum_norm(gram)
        torch.testing.assert_close(weights, torch.full((t,), 1 / t, dtype=torch.float64))
        assert gap == torch.inf
    for gram in (torch.full((t, t), 1e-45), torch.full((t, t), 3e38), -torch.eye(t), torch.zeros(t, t), normal(t, t)):
        weights, gap = minimum_norm(gram)
        assert on_the_simplex(weights) and gap >= 0
    rows = (1e20 * normal(t, 3)).float()
    assert on_the_simplex(minimum_norm(rows @ rows.T)[0])  # all infinite


def test_one_task_has_the_whole_weight() -> None:
    weights, gap = minimum_norm(torch.tensor([[7.0]]))
    assert weights.tolist() == [1] and weights.dtype == torch.float64 and gap == 0


@pytest.mark.parametrize("t", [3, FEW + 1])
def test_no_step_waits_for_a_value(t: int) -> None:
    """Tensors without values: what would read one, as .item() or an index does, raises."""
    with FakeTensorMode():
        weights, gap = minimum_norm(torch.zeros(t, t))
    assert weights.shape == (t,) and gap.shape == ()


def test_no_gradient_passes() -> None:
    weights, gap = minimum_norm(torch.eye(3).requires_grad_())
    assert not weights.requires_grad and not gap.requires_grad


@pytest.mark.parametrize("t", [9, 10])
def test_both_ways_agree_where_both_can_go(t: int) -> None:
    rows = normal(t, 6) + 0.5 * normal(1, 6)
    problem = scaled(rows @ rows.T)
    one, other = by_supports(problem), by_steps(problem, STEPS * t)
    torch.testing.assert_close(problem.objective(one), problem.objective(other), rtol=1e-10, atol=1e-13)
