"""The mathematics that methods share: frozen weights, the look-ahead and its hypergradient, global means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semisynth import distributed

Function = Callable[..., Any]


def at(module: nn.Module, parameters: Mapping[str, Tensor]) -> Function:
    """`module` as a function with these parameters in place of its own; its buffers are read and never written."""

    def call(*arguments: Any) -> Any:
        buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, {**buffers, **parameters}, arguments)

    return call


def frozen(module: nn.Module) -> Function:
    """`module` with constant weights and live inputs.

    A target that depends on what is being optimised (through the images) must stop the gradient at the weights:
    `.detach()` on its output would cut the path through the images too.
    """
    return at(module, {name: parameter.detach() for name, parameter in module.named_parameters()})


def look_ahead(module: nn.Module, loss: Tensor, lr: float) -> Function:
    """`module` after one plain gradient step down `loss`, differentiable through that step (the naive unroll)."""
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    return at(module, {name: p - lr * g for (name, p), g in zip(parameters.items(), gradients, strict=True)})


class Ahead(NamedTuple):
    """outer: the outer loss one gradient step ahead; inner: the gradient of that step, by the model's parameters."""

    outer: Tensor
    inner: list[Tensor]


def hypergradient(
    model: nn.Module, fixed: Tensor, varying: Tensor, outer: Callable[[Function], Tensor], lr: float
) -> Ahead:
    """The outer loss one gradient step ahead, exact in value and in gradient, at the price of one mixed derivative.

    With theta' = theta - lr grad(fixed + varying), only `varying` depending on what is optimised, phi:
        d outer(theta') / d phi = -lr d/dphi < grad_theta varying, v >,   v = grad outer at theta', held constant,
    so only the branch of `varying` is differentiated twice (the chain rule for a one-step unroll, as in MAML).
    Under data parallel both gradients are averaged, hence theta' and v belong to the global batch.

    fixed, varying: scalars computed with `model`'s own parameters; outer: from the model one step ahead to a scalar.
    Returns the outer loss as a scalar whose gradient with respect to phi is the hypergradient, with none with respect
    to theta; and the inner gradient of the global batch, constant, of the parameters that require one.
    """
    names, parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    constant = torch.autograd.grad(fixed, parameters, allow_unused=True, materialize_grads=True)
    mixed = torch.autograd.grad(varying, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
    inner = distributed.average([c + m.detach() for c, m in zip(constant, mixed, strict=True)])
    ahead = [(p.detach() - lr * g).requires_grad_() for p, g in zip(parameters, inner, strict=True)]
    with torch.enable_grad():
        value = outer(at(model, dict(zip(names, ahead, strict=True))))
    v = distributed.average(torch.autograd.grad(value, ahead, allow_unused=True, materialize_grads=True))
    # Where `varying` moves no parameter, as with frozen features, it is a zero that still has its gradient, of zeros.
    parts = [(m * w).sum() for m, w in zip(mixed, v, strict=True) if m.grad_fn is not None] or [0 * varying]
    product = torch.stack(parts).sum()
    return Ahead(value.detach() - lr * (product - product.detach()), inner)


def mean(x: Tensor) -> Tensor:
    """The mean over the rows of all ranks; its gradient is this rank's part, so that averaged gradients are exact."""
    return _over_ranks(x.mean(0))


def class_means(values: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Means over all ranks of the rows (n, d) of each class of y (n,): (classes, d); and which have any: (classes,)."""
    member = nn.functional.one_hot(y, classes).to(values.dtype)
    share = mean(member)
    return _over_ranks(member.T @ values / len(y)) / share.clamp_min(1e-12)[:, None], share > 0


def _over_ranks(local: Tensor) -> Tensor:
    return local + (distributed.average([local.detach()])[0] - local.detach())


def global_norm(gradient: Tensor) -> Tensor:
    """The norm of a mean loss's gradient by the rows of all ranks, given this rank's gradient by its own rows."""
    square = distributed.average([gradient.detach().square().sum()])[0]
    return (square / distributed.world()).sqrt()


def gather(x: Tensor) -> Tensor:
    """The rows of all ranks in the order of the global batch, without gradient."""
    return distributed.concatenate(x)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine similarity of matching rows (n, d), (n, d) -> (n,)."""
    return nn.functional.cosine_similarity(a, b, dim=-1)


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Set `model`, where it is a module, to eval mode; afterwards each of its modules has its own mode again."""
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training
