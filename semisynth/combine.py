"""How the terms of a loss become one gradient for each parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from semisynth import distributed
from semisynth.errors import UserError
from semisynth.frankwolfe import minimum_norm

if TYPE_CHECKING:
    from semisynth.method import Losses

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Combined(NamedTuple):
    """What a `Combine` returns. gradients: of every parameter, in order; metrics: scalars, logged beside the loss's."""

    gradients: list[Tensor]
    metrics: Mapping[str, Tensor] = NOTHING


Combine = Callable[["Losses", list[Parameter]], Combined]


def total(losses: Losses, parameters: list[Parameter]) -> Combined:
    """The gradient of the sum of all terms; zero where a parameter has no part in them."""
    return Combined(_gradients(losses, parameters, {}))


@dataclass(frozen=True)
class FrankWolfe:
    """Shared weights go down the convex combination of the terms' gradients that has the smallest norm.

    That is a direction in which no term rises (MGDA), and zero where there is none: Sener and Koltun, NeurIPS 2018,
    arXiv 1810.04650; `frankwolfe` says how it is found. A term that is solved, or masked out, has a gradient of zero
    and so takes the whole weight: then shared weights rest.

    At "shared" the gradients that are weighed are those at the representation `Losses.shared`, an upper bound (MGDA-UB,
    section 3.3), whose price is one more backward pass through the heads: the trunk is passed once. Weighed is what
    passes through the representation: a term that does not depend on it, such as a regulariser, has weight 1, and what
    reaches the trunk around it counts like a head.

    At "parameters" it is the reference, a backward pass of the whole network for each term: weighed are the terms that
    reach a parameter which another term reaches too; so a regulariser of shared weights is weighed like any other.

    Metrics: weight/<term>, and `gap`, the duality gap over the smallest squared norm of a term's gradient, which says
    that the weights are optimal. Both are those of the whole batch of all ranks.

    Args:
        scaled: whether what is not shared, such as a head, is weighed with its term; the paper's is not, which makes
            its rate that of a single task, and the whole no gradient of any one function
        at: where gradients are compared
    """

    scaled: bool = False
    at: Literal["shared", "parameters"] = "shared"

    def __call__(self, losses: Losses, parameters: list[Parameter]) -> Combined:
        """The gradients, and the weights as metrics; `UserError` if the loss gives no representation to compare at."""
        if self.at == "parameters":
            return self._at_parameters(losses, parameters)
        return self._at_shared(losses, parameters, _representation(losses))

    def _at_shared(self, losses: Losses, parameters: list[Parameter], z: Tensor) -> Combined:
        slopes = {
            name: slope
            for name, term in losses.terms.items()
            if term.requires_grad
            and (slope := torch.autograd.grad(term, z, retain_graph=True, allow_unused=True)[0]) is not None
        }
        if not slopes:
            raise UserError("no term of the loss depends on what it gives as `shared`: give what the heads read.")
        rows = torch.stack(list(slopes.values())).flatten(1).double()
        # Each rank has rows of its own, so products add up; neither the weights nor the relative gap see a factor.
        weights, metrics = _weighed(slopes, distributed.average([rows @ rows.T])[0])
        if self.scaled:
            return Combined(_gradients(losses, parameters, dict(zip(slopes, weights, strict=True))), metrics)
        mixed = (weights @ rows).view_as(z).to(z.dtype)
        # One pass for both: heads get the gradient of the sum, and what it is at z gives way to the mixture.
        handle = z.register_hook(lambda _: mixed)
        try:
            return Combined(_gradients(losses, parameters, {}), metrics)
        finally:
            handle.remove()

    def _at_parameters(self, losses: Losses, parameters: list[Parameter]) -> Combined:
        slopes = {
            name: torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            for name, term in losses.terms.items()
            if term.requires_grad
        }
        columns = enumerate(zip(*slopes.values(), strict=True))
        shared = [k for k, column in columns if sum(slope is not None for slope in column) > 1]
        tasks = {name: row for name, row in slopes.items() if any(row[k] is not None for k in shared)}
        if not tasks:
            return total(losses, parameters)
        stacks = [torch.stack([_or_zero(row[k], parameters[k]) for row in tasks.values()]) for k in shared]
        stacks = distributed.average(stacks)  # compared is the gradient of the whole batch, not that of a rank's part
        rows = torch.cat([stack.flatten(1).double() for stack in stacks], 1)
        weights, metrics = _weighed(tasks, rows @ rows.T)
        own = dict(zip(tasks, weights, strict=True)) if self.scaled else {}
        gradients = _gradients(losses, parameters, own)
        for k, stack in zip(shared, stacks, strict=True):
            gradients[k] = torch.tensordot(weights, stack.double(), 1).to(stack.dtype)
        return Combined(gradients, metrics)


def _gradients(losses: Losses, parameters: list[Parameter], weight: Mapping[str, Tensor]) -> list[Tensor]:
    terms = [weight[name] * term if name in weight else term for name, term in losses.terms.items()]
    loss = torch.stack(terms).sum()
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


def _representation(losses: Losses) -> Tensor:
    z = losses.shared
    if z is None or not z.requires_grad:
        what = "no shared representation" if z is None else "a shared representation that nothing trained is behind"
        raise UserError(f"the loss gives {what}, at which Frank-Wolfe could compare gradients: use `total`.")
    return z


def _or_zero(slope: Tensor | None, parameter: Parameter) -> Tensor:
    return torch.zeros_like(parameter) if slope is None else slope


def _weighed(names: Iterable[str], gram: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    weights, gap = minimum_norm(gram)
    least = gram.diagonal().amin()
    relative = torch.where(least > 0, gap / least, gap)
    return weights, {f"weight/{name}": weight for name, weight in zip(names, weights, strict=True)} | {"gap": relative}
