"""Frozen weights, the look-ahead, its hypergradient, and means over ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from semisynth.functional import (
    Function,
    at,
    class_means,
    cosine,
    frozen,
    gather,
    global_norm,
    hypergradient,
    look_ahead,
    mean,
)
from semisynth.method import Batch

each_network = pytest.mark.parametrize("name", zoo.NETWORKS)
LR = 0.3


@each_network
def test_at_is_the_module_with_these_parameters_and_leaves_its_own_alone(name: str) -> None:
    torch.manual_seed(1)
    model, other = zoo.network(name), zoo.network(name)
    before = zoo.copies(model)
    x = zoo.batch().x
    found = at(model, dict(other.named_parameters()))(x)
    assert zoo.same(before, zoo.copies(model))
    torch.testing.assert_close(found, other(x), atol=0, rtol=0)
    assert not found.equal(model(x))


def test_at_takes_some_parameters_and_all_arguments() -> None:
    layer = nn.Bilinear(2, 3, 1).double()
    a, b = torch.rand(4, 2).double(), torch.rand(4, 3).double()
    shifted = at(layer, {"bias": layer.bias + 2})(a, b)
    torch.testing.assert_close(shifted, layer(a, b) + 2)


def test_at_reads_the_buffers_as_they_are_when_called() -> None:
    norm = nn.BatchNorm2d(1).double().eval()
    function = at(norm, {})
    norm.running_mean.fill_(5.0)
    x = torch.rand(2, 1, 3, 3).double()
    torch.testing.assert_close(function(x), norm(x))


@each_network
def test_frozen_has_the_gradient_of_the_images_and_none_of_the_weights(name: str) -> None:
    model = zoo.network(name)
    x = zoo.batch().x.requires_grad_()
    output = frozen(model)(x)
    torch.testing.assert_close(output, model(x), atol=0, rtol=0)
    expected = torch.autograd.grad(model(x).square().sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(output.square().sum(), x, retain_graph=True)[0], expected)
    weights = list(model.parameters())
    assert torch.autograd.grad(output.sum(), weights, allow_unused=True) == (None,) * len(weights)


@pytest.mark.parametrize("name", zoo.BATCHNORM)
def test_frozen_leaves_the_running_statistics_alone(name: str) -> None:
    model = zoo.network(name)
    before = zoo.copies(model)
    frozen(model)(zoo.batch().x)
    assert zoo.same(before, zoo.copies(model))


@each_network
def test_look_ahead_is_one_step_of_plain_gradient_descent(name: str) -> None:
    model, stepped, data = zoo.network(name), zoo.network(name), zoo.batch()
    stepped.load_state_dict(model.state_dict())
    ahead = look_ahead(model, F.cross_entropy(model(data.x), data.y), LR)
    F.cross_entropy(stepped(data.x), data.y).backward()
    torch.optim.SGD(stepped.parameters(), LR).step()
    torch.testing.assert_close(ahead(data.x), stepped(data.x), atol=1e-12, rtol=1e-12)


def toy(name: str, phi: Tensor) -> tuple[nn.Module, Tensor, Tensor, Callable[[Function], Tensor]]:
    """A model, the inner problem's fixed and varying loss, and an outer loss, which reach all weights but one bias."""
    model, data = zoo.network(name), zoo.batch(9)
    fixed = F.cross_entropy(model(data.x[:6]), data.y[:6])
    varying = (1 - cosine(model.features(zoo.mixed(phi)), frozen(model.features)(zoo.faint(phi)))).mean()
    return model, fixed, varying, lambda ahead: F.cross_entropy(ahead(data.x[3:]), data.y[3:])


@each_network
def test_hypergradient_is_that_of_the_naive_unroll(name: str) -> None:
    phi = zoo.batch(5).x.requires_grad_()
    model, fixed, varying, outer = toy(name, phi)
    unrolled = outer(look_ahead(model, fixed + varying, LR))
    (expected,) = torch.autograd.grad(unrolled, phi, retain_graph=True)
    step = torch.autograd.grad(fixed + varying, list(model.parameters()), retain_graph=True)
    value, inner = hypergradient(model, fixed, varying, outer, LR)
    (found,) = torch.autograd.grad(value, phi)
    assert expected.norm() > 1e-4
    assert (found - expected).norm() < 1e-10 * expected.norm()
    torch.testing.assert_close(value, unrolled, atol=1e-12, rtol=1e-12)
    for found, one in zip(inner, step, strict=True):
        assert not found.requires_grad and one.norm() > 1e-8 and (found - one).norm() < 1e-10 * one.norm()


def test_hypergradient_steps_along_parameters_that_require_a_gradient() -> None:
    phi = zoo.batch(5).x.requires_grad_()
    model, fixed, varying, outer = toy("cnn-group-silu", phi)
    trained = [parameter for name, parameter in model.named_parameters() if name != "features.1.weight"]
    expected = torch.autograd.grad(fixed + varying, trained, retain_graph=True)
    model.get_parameter("features.1.weight").requires_grad_(False)
    found = hypergradient(model, fixed, varying, outer, LR).inner
    torch.testing.assert_close(found, list(expected), atol=1e-14, rtol=1e-10)


def test_hypergradient_by_hand() -> None:
    """theta' = theta - lr (theta + phi), outer = theta'^2 / 2: the derivative in phi is -lr theta'."""
    model = nn.Linear(1, 1, bias=False).double()
    theta, phi = model.weight, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    ahead = 0.9 * theta.item() - 0.1 * 0.7

    def outer(model: Function) -> Tensor:
        output: Tensor = model(torch.ones(1, 1).double())
        return output.square().sum() / 2

    value, inner = hypergradient(model, theta.square().sum() / 2, phi * theta.sum(), outer, 0.1)
    assert inner[0].item() == pytest.approx(theta.item() + 0.7, rel=1e-12)
    assert value.item() == pytest.approx(ahead**2 / 2, rel=1e-12)
    assert torch.autograd.grad(value, phi, retain_graph=True)[0].item() == pytest.approx(-0.1 * ahead, rel=1e-12)


def test_hypergradient_leaves_no_gradient_behind() -> None:
    """It has none with respect to theta, and fills no `.grad`."""
    phi = zoo.batch(5).x.requires_grad_()
    model, fixed, varying, outer = toy("cnn-batch-silu", phi)
    before = zoo.copies(model)
    hypergradient(model, fixed, varying, outer, LR)
    assert all(parameter.grad is None for parameter in model.parameters()) and phi.grad is None
    assert zoo.same(before, zoo.copies(model))


def test_hypergradient_of_ranks_averages_to_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    own, data = zoo.network("cnn-group-silu"), zoo.batch(8)
    weight = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).view(zoo.SHAPE)

    def of(data: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        model, phi = copy.deepcopy(own), weight.clone().requires_grad_()
        varying = (1 - cosine(model.features(data.x * phi), frozen(model.features)(data.x + phi))).mean()

        def outer(ahead: Function) -> Tensor:
            return F.cross_entropy(ahead(zoo.faint(data.x)), data.y)

        value, inner = hypergradient(model, F.cross_entropy(model(data.x), data.y), varying, outer, LR)
        return value.detach(), torch.autograd.grad(value, phi)[0], inner

    (value, expected, inner), parts = of(data), zoo.on_ranks(monkeypatch, 2, lambda rank: of(zoo.part(data, rank, 2)))
    assert not parts[0][1].equal(parts[1][1])
    torch.testing.assert_close(sum(g for _, g, _ in parts) / 2, expected, atol=0, rtol=1e-10)
    torch.testing.assert_close(sum(v for v, *_ in parts) / 2, value, atol=0, rtol=1e-12)
    for *_, every in parts:
        torch.testing.assert_close(every, inner, atol=1e-14, rtol=1e-10)


def test_mean_of_ranks_has_the_value_and_the_gradient_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(6, 4, dtype=torch.float64)

    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.ones(4, dtype=torch.float64, requires_grad=True)
        found = mean(x * scale)
        return found.detach(), torch.autograd.grad(found.pow(3).sum(), scale)[0]

    value, gradient = of(x)
    torch.testing.assert_close(value, x.mean(0), atol=0, rtol=0)
    torch.testing.assert_close(gradient, 3 * x.mean(0).pow(3))
    parts = zoo.on_ranks(monkeypatch, 3, lambda rank: of(x.chunk(3)[rank]))
    for found, _ in parts:
        torch.testing.assert_close(found, value)
    torch.testing.assert_close(sum(g for _, g in parts) / 3, gradient)


@pytest.mark.parametrize("y", [[0, 2, 2, 0, 1, 2], [1, 1, 1, 1, 1, 1], [3, 0, 0, 0, 0, 0]])
def test_class_means_are_those_of_a_loop(y: list[int]) -> None:
    values = zoo.normal(6, 3, 2.0, 0)
    found, present = class_means(values, torch.tensor(y), 4)
    assert found.dtype == values.dtype and present.tolist() == [c in y for c in range(4)]
    for c in range(4):
        own = [row for row, label in zip(values.tolist(), y, strict=True) if label == c]
        expected = [sum(column) / len(own) for column in zip(*own, strict=True)] if own else [0.0] * 3
        assert found[c].tolist() == pytest.approx(expected, abs=1e-12)


def test_class_means_of_ranks_have_the_value_and_the_gradient_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    values, y = zoo.normal(6, 3, 1.0, 0), torch.tensor([0, 0, 1, 0, 3, 3])  # no rank sees all of them

    def of(values: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = torch.ones(3, dtype=torch.float64, requires_grad=True)
        found, present = class_means(values * scale, y, 4)
        return found.detach(), present, torch.autograd.grad(found.pow(3).sum(), scale)[0]

    whole = of(values, y)
    parts = zoo.on_ranks(monkeypatch, 3, lambda rank: of(values.chunk(3)[rank], y.chunk(3)[rank]))
    for found, present, _ in parts:
        torch.testing.assert_close((found, present), whole[:2])
    torch.testing.assert_close(sum(g for *_, g in parts) / 3, whole[2])


def test_global_norm_is_that_of_the_mean_loss_over_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = zoo.normal(6, 4, 1.0, 0)

    def of(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return global_norm(torch.autograd.grad(x.sin().sum(1).mean(), x)[0])

    expected = (x.cos() / 6).norm()
    torch.testing.assert_close(of(x), expected)
    for found in zoo.on_ranks(monkeypatch, 3, lambda rank: of(x.chunk(3)[rank])):
        torch.testing.assert_close(found, expected)


def test_gather_is_the_global_batch_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(6, 2, requires_grad=True)
    assert gather(x).equal(x) and not gather(x).requires_grad
    for found in zoo.on_ranks(monkeypatch, 3, lambda rank: gather(x.chunk(3)[rank])):
        assert found.equal(x) and not found.requires_grad


def test_cosine_is_that_of_matching_rows() -> None:
    a, b = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    b[0], b[1] = 2 * a[0], -a[1]
    expected = [(p @ q / (p.norm() * q.norm())).item() for p, q in zip(a, b, strict=True)]
    found = cosine(a, b).tolist()
    assert found == pytest.approx(expected, abs=1e-12) and found[:2] == pytest.approx([1, -1], abs=1e-12)
