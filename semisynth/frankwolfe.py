"""The convex combination of gradients that has the smallest norm, from their Gram matrix.

Sener and Koltun, "Multi-task learning as multi-objective optimization", NeurIPS 2018 (arXiv 1810.04650), weigh tasks by
it and find it by Frank-Wolfe; that plain form is slow. More than `FEW` tasks are weighed by pairwise Frank-Wolfe
(Lacoste-Julien and Jaggi, NeurIPS 2015, arXiv 1511.05932) with the correction of Wolfe's minimum-norm-point algorithm
(Mathematical Programming 11, 1976). Up to `FEW` tasks no Frank-Wolfe runs: the best of all affine minimisers, solved at
once, is the same point, ten times sooner and closer. That choice, the scaling and the pairing of the two are ours.

Everything is float64, on the device of the matrix, and never waits for it: no branch depends on a value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FEW = 8  # tasks whose 2^t - 1 supports are solved at once
STEPS = 3  # of Frank-Wolfe for each task; 2 were enough
ROUNDING = 16.0  # how many units of rounding an objective of a few tasks may be wrong by


class Scaled(NamedTuple):
    """The problem for gradients of norm one: min v' C v over v >= 0 with c' v = 1; then w = c v and f = least^2 v' C v.

    It bears gradients of any size, since C is as exact for tiny ones as for huge ones. cosines: C (t, t); c (t,): the
    least norm over each; rounding: of the matrix, as a share of (sum v)^2.
    """

    cosines: Tensor
    c: Tensor
    rounding: float

    def affine(self, used: Tensor) -> Tensor:
        """The least v with c' v = 1 of each support (..., t), 0 or 1, up to a factor; any sign, junk where singular.

        C + c c' has the same minimiser and is definite where the gradients are affinely independent (Wolfe 1976).
        """
        systems = (self.cosines + torch.outer(self.c, self.c)) * used[..., :, None] * used[..., None, :]
        solved: Tensor = torch.linalg.solve_ex(systems + torch.diag_embed(1 - used), used * self.c)[0]
        return solved.nan_to_num(0.0, 0.0, 0.0)

    def objective(self, v: Tensor) -> Tensor:
        """v' C v of each v (..., t)."""
        return (v @ self.cosines * v).sum(-1)


def scaled(gram: Tensor) -> Scaled:
    """The scaled problem of a finite Gram matrix (t, t); a gradient of zero counts as of the least norm."""
    squares = gram.double().diagonal()
    some = squares > 0
    least = torch.where(some.any(), torch.where(some, squares, torch.inf).amin(), 1.0).sqrt()
    norms = torch.where(some, squares.clamp_min(0.0).sqrt(), least)
    cosines = torch.where(some & some[:, None], gram.double() / norms[:, None] / norms, 0.0)
    return Scaled(cosines, least / norms, ROUNDING * torch.finfo(gram.dtype).eps)


@torch.no_grad()
def minimum_norm(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The weights w (t,) on the simplex that minimise f = w' G w, and the duality gap, which bounds f's error.

    gram: G (t, t) in float64 or float32. f is within 1e-8 of the minimum, relatively, unless the minimum is nothing
    beside (sum_i w_i |g_i|)^2: G tells f only up to a few units of rounding of that. In float64 this is less than what
    the rounding of float32 gradients leaves unknown, so nothing is lost by not solving from the gradients themselves.
    More than `FEW` tasks need norms within a factor of 1e16. The gap is rounded too, by the largest norm: it certifies
    less where norms differ much. A matrix that is not finite gives equal weights and an infinite gap.
    """
    finite = gram.isfinite().all()
    gram = torch.where(finite, gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    problem = scaled(gram)
    v = by_supports(problem) if len(gram) <= FEW else by_steps(problem, STEPS * len(gram))
    weights = v * problem.c
    weights = weights / weights.sum()
    slopes = gram.double() @ weights
    gap = 2 * (weights @ slopes - slopes.amin()).clamp_min(0.0)
    return weights, torch.where(finite, gap, torch.inf)


def by_supports(problem: Scaled) -> Tensor:
    """v (t,): the best of the affine minimisers of all 2^t - 1 supports, in one batched solve.

    The minimum is the minimiser of a support of affinely independent gradients. What other supports give is brought
    back to the simplex, so that every candidate is feasible and only its objective counts.
    """
    tasks = torch.arange(len(problem.c), device=problem.c.device)
    supports = torch.arange(1, 2 ** len(problem.c), device=problem.c.device)[:, None] >> tasks & 1
    v = problem.affine(supports.to(problem.c.dtype)).clamp_min(0.0)
    v = v / (v @ problem.c)[:, None]
    # Of an objective below its rounding no more is known than that: it must not win by being the most negative.
    objective = torch.maximum(problem.objective(v), problem.rounding * v.sum(1).square())
    return v[torch.where(objective.isfinite(), objective, torch.inf).argmin(0, keepdim=True)][0]


def by_steps(problem: Scaled, steps: int) -> Tensor:
    """v (t,): pairwise Frank-Wolfe from the smallest gradient on, each step followed by Wolfe's correction."""
    c = problem.c
    v = (torch.arange(len(c), device=c.device) == c.argmax()) / c
    for _ in range(steps):
        v = corrected(problem, paired(problem, v))
    return v


def paired(problem: Scaled, v: Tensor) -> Tensor:
    """A pairwise step with exact line search (Lacoste-Julien and Jaggi 2015): from the worst used to the best.

    A step that takes the whole weight of a task leaves exactly none.
    """
    cosines, c, _ = problem
    tasks = torch.arange(len(c), device=c.device)
    slopes = cosines @ v / c
    best = tasks == slopes.argmin()
    worst = tasks == torch.where(v > 0, slopes, -torch.inf).argmax()
    direction = best / c - worst / c
    room = (v * c * worst).sum()
    fall, curve = -(direction @ cosines @ v), problem.objective(direction)
    step = torch.where(fall < curve * room, fall / curve, room).clamp_min(0.0)
    return torch.where(worst & ~best & (step >= room), 0.0, (v + step * direction).clamp_min(0.0))


def corrected(problem: Scaled, v: Tensor) -> Tensor:
    """Towards the affine minimiser of the tasks in use, up to the simplex's boundary (Wolfe 1976), if that is lower."""
    used = v > 0
    aim = problem.affine(used.to(v.dtype))
    aim = aim / (aim @ problem.c)
    ratios = torch.where(used & (aim < 0), v / (v - aim), torch.inf)
    reach = ratios.amin().clamp_max(1.0)
    moved = torch.where(ratios <= reach, 0.0, (v + reach * (aim - v)).clamp_min(0.0))
    moved = moved / (moved @ problem.c)
    return torch.where(problem.objective(moved) < problem.objective(v), moved, v)
