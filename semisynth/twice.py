"""Convolution, normalisation and rectifier whose second derivative costs what their first does.

torch differentiates a group norm's gradient operation by operation, a convolution's weight gradient as a convolution
with kernels as large as the image, and a rectifier's with zeros; all save tensors that are not needed. Here they are
functions of their own, so that a hypergradient (`functional.hypergradient`) takes as many convolutions as its
mathematics has, and constant weights keep nothing. Values and derivatives are torch's up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
Gradient = Tensor | None


def twice(function: Callable[..., Tensor], attention: bool = False) -> Callable[..., Tensor]:
    """The same function, which now is cheap to differentiate twice; networks need no change for it.

    attention: whether it is done without torch's fused kernels, which take less memory and have one derivative alone.
    """

    def call(*arguments: Any) -> Tensor:
        with _Replacing(), sdpa_kernel(SDPBackend.MATH) if attention else contextlib.nullcontext():
            return function(*arguments)

    return call


class _Replacing(TorchFunctionMode):
    """Within this context the functions of `REPLACED` are those of this module, whichever network calls them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`."""
    if isinstance(padding, str) or x.dim() == 3:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    geometry = (*map(_pair, (stride, padding, dilation)), False, (0, 0), groups)
    y: Tensor = _apply(Convolution, x, weight, bias, geometry)
    return y


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`torch.nn.functional.group_norm`."""
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        # As autocast does there.
        x, weight, bias = (
            x.float(),
            weight if weight is None else weight.float(),
            bias if bias is None else bias.float(),
        )
    if weight is None:
        weight = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    if bias is None:
        bias = torch.zeros_like(weight)
    # Made dense here and not in the function, whose second derivative goes through what it is given.
    y: Tensor = _apply(GroupNorm, _dense(x, x), weight, bias, num_groups, eps)
    return y


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`; by given statistics it is a scale and a shift."""
    if training or running_mean is None or running_var is None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt() if weight is None else weight * (running_var + eps).rsqrt()
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (-1, *(1,) * (x.dim() - 2))
    return torch.addcmul(shift.to(x.dtype).view(shape), x, scale.to(x.dtype).view(shape))


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.relu`."""
    return leaky_relu(x, 0.0)


def leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.leaky_relu`, never in place."""
    return _apply(Rectifier, x, negative_slope) if negative_slope >= 0 else F.leaky_relu(x, negative_slope)


REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: conv2d,
    F.group_norm: group_norm,
    F.batch_norm: batch_norm,
    F.relu: relu,
    F.leaky_relu: leaky_relu,
}


def _apply(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*map(_inner, arguments))


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _inner(x: Any) -> Any:
    """A tensor as an inner node of the graph: of leaves autograd does not tell whether they are asked for."""
    return x.view_as(x) if isinstance(x, Tensor) and x.is_leaf and x.requires_grad else x


def _asked(context: Any) -> list[bool]:
    """Which inputs' gradients this pass wants; `needs_input_grad` only says which have one."""
    return [node is not None and torch._C._will_engine_execute_node(node) for node, _ in context.next_functions]


# A convolution is one trilinear form, < g, conv(x, w) >. Of its three gradients, each by two of the arguments, the
# derivatives are again these three.


class Convolution(Function):
    """conv(x, w), the form's gradient by g; and a bias, if there is one."""

    @staticmethod
    def forward(context: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
        by_x, by_w, *_ = context.needs_input_grad
        context.save_for_backward(x if by_w else None, w if by_x else None)
        context.shapes, context.geometry = (x.shape, w.shape), geometry
        y: Tensor = aten.convolution(x, w, bias, *geometry)
        return y

    @staticmethod
    def backward(context: Any, g: Tensor) -> tuple[Gradient, Gradient, Gradient, None]:
        (x, w), (x_shape, w_shape), geometry = context.saved_tensors, context.shapes, context.geometry
        by_x, by_w, *by_bias = _asked(context)
        return (
            _apply(ByInput, g, w, x_shape, geometry) if by_x else None,
            _apply(ByWeight, g, x, w_shape, geometry) if by_w else None,
            g.sum((0, 2, 3)) if any(by_bias) else None,
            None,
        )


class ByInput(Function):
    """The form's gradient by x, from g and w."""

    @staticmethod
    def forward(context: Any, g: Tensor, w: Tensor, shape: Any, geometry: Any) -> Tensor:
        by_g, by_w, *_ = context.needs_input_grad
        context.save_for_backward(g if by_w else None, w if by_g else None)
        context.shape, context.geometry = w.shape, geometry
        stride, padding, dilation, _, _, groups = geometry
        spans = (d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True))
        left = [
            x - ((y - 1) * s - 2 * p + span)
            for x, y, s, p, span in zip(shape[2:], g.shape[2:], stride, padding, spans, strict=True)
        ]
        x: Tensor = aten.convolution(g, w, None, stride, padding, dilation, True, left, groups)
        return x

    @staticmethod
    def backward(context: Any, x: Tensor) -> tuple[Gradient, Gradient, None, None]:
        (g, w), geometry = context.saved_tensors, context.geometry
        by_g, by_w = _asked(context)
        return (
            _apply(Convolution, x, w, None, geometry) if by_g else None,
            _apply(ByWeight, g, x, context.shape, geometry) if by_w else None,
            None,
            None,
        )


class ByWeight(Function):
    """The form's gradient by w, from g and x."""

    @staticmethod
    def forward(context: Any, g: Tensor, x: Tensor, shape: Any, geometry: Any) -> Tensor:
        by_g, by_x, *_ = context.needs_input_grad
        context.save_for_backward(g if by_x else None, x if by_g else None)
        context.shape, context.geometry = x.shape, geometry
        w: Tensor = aten.convolution_backward(g, x, g.new_empty(shape), None, *geometry, [False, True, False])[1]
        return w

    @staticmethod
    def backward(context: Any, w: Tensor) -> tuple[Gradient, Gradient, None, None]:
        (g, x), geometry = context.saved_tensors, context.geometry
        by_g, by_x = _asked(context)
        return (
            _apply(Convolution, x, w, None, geometry) if by_g else None,
            _apply(ByInput, g, w, context.shape, geometry) if by_x else None,
            None,
            None,
        )


class Rectifier(Function):
    """x where it is positive, slope x elsewhere; it keeps one byte of each element."""

    @staticmethod
    def forward(context: Any, x: Tensor, slope: float) -> Tensor:
        y = F.leaky_relu(x, slope)
        context.save_for_backward(torch.gt(y, 0, out=torch.empty_like(y, dtype=torch.uint8)))
        context.slope = slope
        return y

    @staticmethod
    def backward(context: Any, g: Tensor) -> tuple[Gradient, None]:
        return _apply(RectifierGradient, g, *context.saved_tensors, context.slope), None


class RectifierGradient(Function):
    """g where the mask is one, slope g elsewhere."""

    @staticmethod
    def forward(context: Any, g: Tensor, mask: Tensor, slope: float) -> Tensor:
        context.save_for_backward(mask)
        context.slope = slope
        x: Tensor = aten.leaky_relu_backward(g, mask, slope, True)
        return x

    @staticmethod
    def backward(context: Any, x: Tensor) -> tuple[Gradient, None, None]:
        return _apply(RectifierGradient, x, *context.saved_tensors, context.slope), None, None


class GroupNorm(Function):
    """Group normalisation of x (n, c, ...)."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        sizes = (len(x), x.shape[1], x[0, 0].numel(), groups)
        y, mean, scale = aten.native_group_norm(x, weight, bias, *sizes, eps)
        context.save_for_backward(x, weight, mean, scale)
        context.sizes = sizes
        found: Tensor = y
        return found

    @staticmethod
    def backward(context: Any, g: Tensor) -> tuple[Gradient, ...]:
        return *_apply(GroupNormGradient, g, *context.saved_tensors, context.sizes), None, None


class GroupNormGradient(Function):
    """The gradients of a group norm by x, weight and bias; differentiable once."""

    @staticmethod
    def forward(
        context: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, sizes: Any
    ) -> tuple[Tensor, ...]:
        g = _dense(g, x)
        context.save_for_backward(g, x, weight, mean, scale)
        context.sizes = sizes
        return tuple(aten.native_group_norm_backward(g, x, mean, scale, weight, *sizes, [True, True, True]))

    @staticmethod
    @once_differentiable
    def backward(context: Any, u: Tensor, v: Tensor, b: Tensor) -> tuple[Gradient, ...]:
        """The gradients of < u, dx > + < v, dweight > + < b, dbias >, where dx = scale P(weight g), dbias = sum g and
        dweight = sum g xhat; xhat = scale (x - mean), P t = t - <t> - xhat <t xhat>, and <.> is the mean over a group.
        """
        n, c, size, groups = context.sizes
        g, x, weight, mean, scale = context.saved_tensors
        like = x
        u, g, x = (t.reshape(n, groups, c // groups, size) for t in (u, g, x))
        w, v, b = (t.to(mean.dtype).view(groups, -1) for t in (weight, v, b))
        mean, scale = mean.view(n, groups, 1), scale.view(n, groups, 1)

        def sums(t: Tensor) -> tuple[Tensor, Tensor]:  # of t, and of t xhat
            total = t.sum(3, dtype=mean.dtype)
            return total, scale * ((t * x).sum(3, dtype=mean.dtype) - mean * total)

        def average(sums: Tensor) -> Tensor:
            return sums.sum(2, keepdim=True) / float(size * c // groups)

        (us, uxs), (gs, gxs), ugs = sums(u), sums(g), (u * g).sum(3, dtype=mean.dtype)
        u_, ux_, g_, gx_ = average(us), average(uxs), average(w * gs), average(w * gxs)
        by_xhat = scale * (3 * ux_ * gx_ + u_ * g_ - average(w * ugs)) - average(v * gxs)
        by_xhat_g = v - w * scale * ux_
        by_g = _affine(like, b - w * scale * u_ - scale * mean * by_xhat_g, (w * scale, u), (scale * by_xhat_g, x))
        constant = scale * (u_ * gx_ + g_ * ux_) - average(v * gs) - scale * mean * by_xhat
        by_x = _affine(like, scale * constant, (-(scale**2) * gx_, u), (scale * by_xhat_g, g), (scale**2 * by_xhat, x))
        by_weight = (scale * (ugs - u_ * gs - ux_ * gxs)).sum(0).view(c)
        return by_g, by_x, by_weight.to(weight.dtype), None, None, None


def _affine(like: Tensor, constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """constant + sum of coefficient * x, with coefficients by image and channel; as `like` is in shape and dtype."""
    (coefficient, x), *others = terms
    total: Tensor = torch.addcmul(constant[..., None], coefficient[..., None], x)
    for coefficient, x in others:
        total.addcmul_(coefficient[..., None], x)
    return total.to(like.dtype).view(like.shape)


def _dense(t: Tensor, like: Tensor) -> Tensor:
    """t as the kernels of group norm want it: contiguous, or on the CPU with the channels last, where `like` has."""
    last = like.dim() == 4 and like.device.type == "cpu" and like.is_contiguous(memory_format=torch.channels_last)
    last = last and 1 not in like.shape  # where that is, strides may be any, and the kernels look at them
    return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
