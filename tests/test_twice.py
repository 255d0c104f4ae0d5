"""Functions that are cheap to differentiate twice: torch's values and derivatives, and no work besides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.autograd import gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from semisynth.functional import frozen
from semisynth.twice import twice


def tensor(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=source).requires_grad_()


X = (2, 4, 5, 7)


def statistics() -> tuple[Tensor, Tensor]:
    return torch.linspace(-1, 1, 4).double(), torch.linspace(0.5, 2, 4).double()


CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "conv2d": (F.conv2d, [X, (3, 4, 3, 3)]),
    "conv2d with bias": (F.conv2d, [X, (3, 4, 3, 3), (3,)]),
    "conv2d with stride and padding": (lambda x, w: F.conv2d(x, w, None, 2, 1), [X, (3, 4, 3, 3)]),
    "conv2d with all": (lambda x, w, b: F.conv2d(x, w, b, (2, 1), (0, 2), (1, 2), 2), [X, (6, 2, 2, 3), (6,)]),
    "conv2d of the same size": (lambda x, w: F.conv2d(x, w, padding="same"), [X, (3, 4, 3, 3)]),
    "conv2d without a batch": (F.conv2d, [X[1:], (3, 4, 3, 3), (3,)]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [X, (4,), (4,)]),
    "group_norm with weight": (lambda x, w: F.group_norm(x, 1, w, eps=0.1), [X, (4,)]),
    "group_norm alone": (lambda x: F.group_norm(x, 2), [X]),
    "group_norm of vectors": (lambda x, w, b: F.group_norm(x, 2, w, b), [(3, 6), (6,), (6,)]),
    "batch_norm by given statistics": (lambda x, w, b: F.batch_norm(x, *statistics(), w, b), [X, (4,), (4,)]),
    "batch_norm alone": (lambda x: F.batch_norm(x, *statistics()), [X]),
    "batch_norm of the batch": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), [X, (4,), (4,)]),
    "relu": (F.relu, [X]),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), [X]),
    "leaky_relu that falls": (lambda x: F.leaky_relu(x, -0.2), [X]),
}
each_case = pytest.mark.parametrize("function, shapes", CASES.values(), ids=CASES)


def derivatives(function: Callable[..., Tensor], arguments: list[Tensor]) -> list[Tensor]:
    """Value, gradients, and gradients of a function of those."""
    y = function(*arguments)
    first = torch.autograd.grad(y.sin().sum(), arguments, create_graph=True)
    mixed = sum(((g + 1).square() * torch.arange(g.numel()).view(g.shape).sin()).sum() for g in first)
    assert isinstance(mixed, Tensor)
    return [y, *first, *torch.autograd.grad(mixed, arguments)]


@each_case
def test_values_and_derivatives_are_torch_s(function: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    arguments = [tensor(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    for found, one in zip(derivatives(twice(function), arguments), derivatives(function, arguments), strict=True):
        assert (found - one).norm() <= 1e-12 * one.norm() and found.dtype == one.dtype


@each_case
def test_second_derivatives_are_those_of_finite_differences(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    arguments = [tensor(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    assert gradgradcheck(twice(function), arguments)


@each_case
def test_channels_may_be_last(function: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    arguments = [tensor(*shape, seed=seed) for seed, shape in enumerate(shapes)]

    def by_pixel(x: Tensor, *rest: Tensor) -> Tensor:
        return function(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, *rest)

    for found, one in zip(derivatives(twice(by_pixel), arguments), derivatives(function, arguments), strict=True):
        assert (found - one).norm() <= 1e-12 * one.norm()


STRIDES = {  # of what comes from attention, channels may be last but for the stride of the only image
    "one image": ((1, 6, 4, 5), (6, 1, 30, 6)),
    "one row": ((1, 6, 1, 5), (6, 1, 30, 6)),
    "no dense order": ((2, 6, 4, 5), (480, 80, 10, 2)),
}


@pytest.mark.parametrize("shape, strides", STRIDES.values(), ids=STRIDES)
def test_group_norm_takes_any_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    values, weight = tensor(*shape), tensor(6, seed=1)
    x = torch.empty_strided(shape, strides, dtype=values.dtype).copy_(values.detach()).requires_grad_()

    def function(x: Tensor, w: Tensor) -> Tensor:
        return F.group_norm(x, 2, w)

    found = derivatives(twice(function), [x, weight])
    for one, known in zip(found, derivatives(function, [values, weight]), strict=True):
        assert (one - known).norm() <= 1e-12 * known.norm()


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_a_network_and_its_mixed_derivative_are_the_same(name: str) -> None:
    model, phi = zoo.network(name), zoo.batch().x.requires_grad_()
    v = [torch.linspace(-1, 1, p.numel()).double().view(p.shape) for p in model.parameters()]

    def mixed(function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        y = function(phi)
        gradient = torch.autograd.grad(y.square().sum(), list(model.parameters()), create_graph=True)
        product = torch.stack([(g * w).sum() for g, w in zip(gradient, v, strict=True)]).sum()
        return y, torch.autograd.grad(product, phi)[0]

    for found, one in zip(mixed(twice(model)), mixed(model), strict=True):
        torch.testing.assert_close(found, one, atol=0, rtol=1e-8)


class Convolutions(TorchDispatchMode):
    """Counts those that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if "convolution" in name:
            gradients = args[10][:2] if name == "convolution_backward" else [True]
            self.counted[name] += sum(gradients)
        return func(*args, **(kwargs or {}))


def test_a_mixed_derivative_has_as_many_convolutions_as_its_mathematics() -> None:
    model, phi = zoo.network("cnn-group-relu"), zoo.batch().x.requires_grad_()
    with Convolutions() as passes:
        loss = twice(model.features)(phi).square().sum()
        gradient = torch.autograd.grad(loss, list(model.features.parameters()), create_graph=True)
        # Three layers: forward 3, back by the weights 3 and by all inputs but the images 2.
        assert passes.counted.total() == 8
        torch.autograd.grad(torch.stack([g.square().sum() for g in gradient]).sum(), phi)
        # The tangent by weights 3 and by inputs 2, the adjoint by weights 3 and by inputs 3; nothing by theta.
    assert passes.counted.total() == 8 + 11


def kept(function: Callable[..., Tensor], x: Tensor) -> int:
    """How many bytes autograd keeps, without the weights."""
    storages = {}

    def keep(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        function(x)
    return sum(storages.values())


def test_constant_weights_keep_no_inputs() -> None:
    layer = nn.Conv2d(4, 4, 3, bias=False)
    x = torch.randn(8, 4, 16, 16).requires_grad_()
    assert kept(twice(frozen(layer)), x) == 4 * layer.weight.numel()
    assert kept(twice(layer), x) == 4 * (layer.weight.numel() + x.numel())
    assert kept(twice(nn.ReLU()), x) == x.numel()


@pytest.mark.parametrize("name", ["cnn-group-relu", "wrn-group-leaky", "cnn-batch-silu"])
def test_autocast_is_as_without(name: str) -> None:
    model, phi = zoo.network(name).float().eval(), zoo.batch().x.float().requires_grad_()

    def gradients(function: Callable[..., Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y = function(phi)
            loss = y.float().square().sum()
            first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            product = torch.stack([g.square().sum() for g in first]).sum()
        return [y, *first, *torch.autograd.grad(product, phi)]

    for found, one in zip(gradients(twice(model)), gradients(model), strict=True):
        assert found.dtype == one.dtype and (found - one).norm() <= 0.1 * one.norm()


OURS = {
    "convolution": (nn.Conv2d(4, 3, 3), "ConvolutionBackward"),
    "group norm": (nn.GroupNorm(2, 4), "GroupNormBackward"),
    "batch norm by given statistics": (nn.BatchNorm2d(4).eval(), "AddcmulBackward0"),
    "rectifier": (nn.ReLU(), "RectifierBackward"),
    "leaky rectifier": (nn.LeakyReLU(), "RectifierBackward"),
}


@pytest.mark.parametrize("layer, name", OURS.values(), ids=OURS)
def test_layers_are_replaced_and_what_is_called_outside_is_torch_s_own(layer: nn.Module, name: str) -> None:
    x = tensor(*X)
    layer.double()
    assert type(twice(layer)(x).grad_fn).__name__ == name != type(layer(x).grad_fn).__name__
