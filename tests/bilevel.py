"""What the tests of bilevel methods share: a mapper's gradient against the naive unroll and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.func import functional_call

from semisynth import noise
from semisynth.engine import Engine
from semisynth.method import Batch, Method
from semisynth.methods import MGR, MPSSL, Transport

SEED = ("a step", 3)
SYNTHETIC = 5
CASES = [*((name, "conditional") for name in zoo.SMOOTH), ("cnn-group-silu", "unconditional")]

Latent = MPSSL | Transport
Bilevel = Latent | MGR
# The mapper's loss from its definition, and whether to keep the graph through the look-ahead's step.
Outer = Callable[[Bilevel, Batch, bool], Tensor]


def features(model: nn.Module, theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    parameters = {key.removeprefix("features."): p for key, p in theta.items() if key.startswith("features.")}
    found: Tensor = functional_call(model.features, parameters, x)
    return found


def cross_entropy(model: nn.Module, theta: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(model, dict(theta), x), y)


def one_step(theta: Mapping[str, Tensor], inner: Tensor, lr: float, differentiable: bool) -> dict[str, Tensor]:
    """theta after one step of gradient descent down `inner`."""
    slope = torch.autograd.grad(inner, list(theta.values()), create_graph=differentiable)
    return {key: p - lr * g for (key, p), g in zip(theta.items(), slope, strict=True)}


def engine_gradient(method: Bilevel, batch: Batch) -> list[Tensor]:
    with noise.seeded(*SEED):
        return zoo.gradients(method, "mapper", batch)


def difference(loss: Callable[[], float], parameter: Tensor, direction: Tensor, h: float = 2e-3) -> float:
    """The derivative along `direction` by central differences of fourth order."""
    start, values = parameter.detach().clone(), {}
    for k in (-2, -1, 1, 2):
        with torch.no_grad():
            parameter.copy_(start + k * h * direction)
        values[k] = loss()
    with torch.no_grad():
        parameter.copy_(start)
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)


def assert_finite_differences(method: Bilevel, batch: Batch, outer: Outer) -> None:
    """For smooth networks and views: differences across a kink converge to nothing."""

    def loss() -> float:
        with noise.seeded(*SEED):
            return outer(method, batch, False).item()

    for parameter, gradient in zip(method.mapper.parameters(), engine_gradient(method, batch), strict=True):
        directions = F.normalize(torch.randn(3, *parameter.shape, dtype=torch.float64).flatten(1)).view(
            3, *parameter.shape
        )
        directions[0] = gradient / gradient.norm()
        found = torch.stack([(gradient * d).sum() for d in directions])
        expected = torch.tensor([difference(loss, parameter, d) for d in directions], dtype=torch.float64)
        assert (found - expected).norm() <= 1e-6 * expected.norm()


def assert_naive_unroll(method: Bilevel, batch: Batch, outer: Outer) -> None:
    with noise.seeded(*SEED):
        loss = outer(method, batch, True)
    expected = torch.autograd.grad(loss, list(method.mapper.parameters()))
    for found, one in zip(engine_gradient(method, batch), expected, strict=True):
        assert one.norm() > 1e-8 and (found - one).norm() <= 1e-10 * one.norm()


def fit(method: Method, steps: int = 4) -> None:
    engine = Engine(device="cpu", log_every=0, evaluate_every=0, lr=0.01)
    engine.fit(method, lambda step: zoo.batch(6, 5, step=step), steps)


def only(method: Bilevel, name: str) -> Bilevel:
    updates = method.updates()
    method.updates = lambda: {name: updates[name]}  # type: ignore[method-assign]
    return method


# ---- MP-SSL's outer problem, and label transport's ------------------------------------------------------------------


def asked(method: Latent, like: Tensor) -> tuple[Tensor, Tensor]:
    """Synthetic images and their classes; the noise is drawn as the method draws it: y, z, the mapper's own."""
    y = noise.integers(zoo.CLASSES, method.latents.synthetic)
    z = noise.normal(len(y), *method.mapper.latent_shape, like=like)
    s: Tensor = method.generator(*method.mapper(z, y))
    return s, y


def true_terms(method: Latent, batch: Batch, s: Tensor, y: Tensor, differentiable: bool) -> tuple[Tensor, Tensor]:
    """L_val after one step down the inner problem, and the gap, from their definitions by loops over images.

    The noise is drawn for the views of s, x, s, x and x.
    """
    model, problem = method.model, method.problem
    theta = dict(model.named_parameters())
    constant = {key: value.detach() for key, value in theta.items()}
    target = features(model, constant, problem.weak(s))
    real = features(model, constant, problem.weak(batch.x))
    strong = features(model, theta, problem.strong(s))
    scr = torch.stack([1 - a @ b / (a.norm() * b.norm()) for a, b in zip(strong, target, strict=True)]).mean()
    each = []
    for a, b, label in zip(strong, target, y, strict=True):
        confidence = (constant["head.weight"] @ b + constant["head.bias"]).softmax(0)[label]
        each.append(-confidence * (theta["head.weight"] @ a + theta["head.bias"]).log_softmax(0)[label])
    supervised = cross_entropy(model, theta, problem.view(batch.x), batch.y)
    inner = supervised + problem.weight * scr + problem.supervise * torch.stack(each).mean()
    ahead = one_step(theta, inner, method.outer.inner_lr, differentiable)
    outer = cross_entropy(model, ahead, problem.view(batch.x), batch.y)
    return outer, naive_gap(real, batch.y, target, y)


def true_outer(method: Latent, batch: Batch, differentiable: bool) -> Tensor:
    """What the mapper minimises."""
    validation, gap = true_terms(method, batch, *asked(method, batch.x), differentiable)
    return validation + method.outer.gap * gap


def naive_gap(real: Tensor, y_real: Tensor, synthetic: Tensor, y_synthetic: Tensor) -> Tensor:
    """By loops over classes and images."""
    distances = []
    for c in sorted({*y_real.tolist()} & {*y_synthetic.tolist()}):
        one = [row for row, label in zip(real, y_real.tolist(), strict=True) if label == c]
        other = [row for row, label in zip(synthetic, y_synthetic.tolist(), strict=True) if label == c]
        distances.append((sum(one) / len(one) - sum(other) / len(other)).pow(2).mean())
    return sum(distances) / len(distances) if distances else real.new_zeros(())


def resize(method: Latent, synthetic: int) -> None:
    """Let the method make so many synthetic images a step."""
    method.latents = replace(method.latents, synthetic=synthetic)
    method.outer = replace(method.outer, latents=method.latents)
