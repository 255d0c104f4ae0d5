"""MP-SSL: its losses against loops, its hypergradient against finite differences and against the naive unroll."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.func import functional_call

from semisynth import noise
from semisynth.engine import Engine
from semisynth.method import Batch, Method
from semisynth.methods import MPSSL, SCR, FixMatch, MeanTeacher
from semisynth.methods.mpssl import consistency, gap_loss, through

SEED = ("a step", 3)
SYNTHETIC = 5


def mpssl(name: str = "cnn-group-silu", generator: str = "conditional", **options: Any) -> MPSSL:
    """In float64, and with a mapper that has left its zero start, where most of its gradients vanish."""
    weak, strong = options.pop("views", (zoo.WEAK, zoo.STRONG))
    model, parts = zoo.network(name), (weak, strong, zoo.CLASSES, SYNTHETIC)
    method = MPSSL(model, zoo.generator(generator), *parts, inner_lr=0.4, weight=1.5, **options).double()
    nn.init.normal_(method.mapper.out.weight, std=0.1)
    return method


def true_outer(method: MPSSL, batch: Batch, differentiable: bool) -> Tensor:
    """What the mapper minimises, from the definition: L_val after one step down CE + weight L_SCR, plus the gap.

    The noise is drawn as the method draws it: y, z, the mapper's own, then the views of s, x, s, x and x.
    """
    model, problem = method.model, method.problem
    y = noise.integers(zoo.CLASSES, SYNTHETIC)
    z = noise.normal(SYNTHETIC, *method.mapper.latent_shape, like=batch.x)
    s = method.generator(*method.mapper(z, y))
    theta = dict(model.named_parameters())
    constant = {key: value.detach() for key, value in theta.items()}
    target = features(model, constant, problem.weak(s))
    real = features(model, constant, problem.weak(batch.x))
    strong = features(model, theta, problem.strong(s))
    scr = torch.stack([1 - a @ b / (a.norm() * b.norm()) for a, b in zip(strong, target, strict=True)]).mean()
    inner = cross_entropy(model, theta, problem.view(batch.x), batch.y) + problem.weight * scr
    slope = torch.autograd.grad(inner, list(theta.values()), create_graph=differentiable)
    ahead = {key: p - method.inner_lr * g for (key, p), g in zip(theta.items(), slope, strict=True)}
    outer = cross_entropy(model, ahead, problem.view(batch.x), batch.y)
    return outer + method.gap * naive_gap(real, batch.y, target, y)


def features(model: nn.Module, theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    parameters = {key.removeprefix("features."): p for key, p in theta.items() if key.startswith("features.")}
    found: Tensor = functional_call(model.features, parameters, x)
    return found


def cross_entropy(model: nn.Module, theta: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(model, dict(theta), x), y)


def naive_gap(real: Tensor, y_real: Tensor, synthetic: Tensor, y_synthetic: Tensor) -> Tensor:
    """By loops over classes and images."""
    distances = []
    for c in sorted({*y_real.tolist()} & {*y_synthetic.tolist()}):
        one = [row for row, label in zip(real, y_real.tolist(), strict=True) if label == c]
        other = [row for row, label in zip(synthetic, y_synthetic.tolist(), strict=True) if label == c]
        distances.append((sum(one) / len(one) - sum(other) / len(other)).pow(2).mean())
    return sum(distances) / len(distances) if distances else real.new_zeros(())


def engine_gradient(method: MPSSL, batch: Batch) -> list[Tensor]:
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


CASES = [*((name, "conditional") for name in zoo.SMOOTH), ("cnn-group-silu", "unconditional")]


@pytest.mark.parametrize("gap", [0.0, 0.8])
@pytest.mark.parametrize("name, generator", CASES)
def test_the_mapper_s_gradient_is_that_of_finite_differences(name: str, generator: str, gap: float) -> None:
    # Smooth networks and views, because differences across a kink converge to nothing; soft classes, because hard draws
    # are constant almost everywhere and have the soft gradient by decree.
    method, data = mpssl(name, generator, gap=gap, hard=False, views=(zoo.faint, zoo.mixed)), zoo.batch()

    def loss() -> float:
        with noise.seeded(*SEED):
            return true_outer(method, data, differentiable=False).item()

    for parameter, gradient in zip(method.mapper.parameters(), engine_gradient(method, data), strict=True):
        directions = F.normalize(torch.randn(3, *parameter.shape, dtype=torch.float64).flatten(1)).view(
            3, *parameter.shape
        )
        directions[0] = gradient / gradient.norm()
        found = torch.stack([(gradient * d).sum() for d in directions])
        expected = torch.tensor([difference(loss, parameter, d) for d in directions], dtype=torch.float64)
        assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("gap", [0.0, 0.8])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("generator", zoo.GENERATORS)
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_mapper_s_gradient_is_that_of_the_naive_unroll(name: str, generator: str, hard: bool, gap: float) -> None:
    method, data = mpssl(name, generator, gap=gap, hard=hard), zoo.batch()
    with noise.seeded(*SEED):
        loss = true_outer(method, data, differentiable=True)
    expected = torch.autograd.grad(loss, list(method.mapper.parameters()))
    for found, one in zip(engine_gradient(method, data), expected, strict=True):
        assert one.norm() > 1e-8 and (found - one).norm() <= 1e-10 * one.norm()


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_terms_are_the_true_losses(view: str) -> None:
    method, data = mpssl(gap=0.8, view=view), zoo.batch()
    with noise.seeded(*SEED):
        losses = method.outer(data)
    with noise.seeded(*SEED):
        both = true_outer(method, data, differentiable=False)
    method.gap = 0.0
    with noise.seeded(*SEED):
        validation = true_outer(method, data, differentiable=False)
    torch.testing.assert_close(losses.terms["validation"], validation, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(losses.terms["gap"], both - validation, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(losses.metrics["distance"], (both - validation) / 0.8)


def test_either_term_may_be_off() -> None:
    with noise.seeded(*SEED):
        assert list(mpssl(gap=0.0).outer(zoo.batch()).terms) == ["validation"]
        assert list(mpssl(look_ahead=False).outer(zoo.batch()).terms) == ["gap"]


@pytest.mark.parametrize("gap", [0.0, 0.8])
def test_ranks_average_to_the_gradient_of_one_process(gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = mpssl(gap=gap), zoo.batch(8)
    method.synthetic = 6
    whole = engine_gradient(method, data)
    method.synthetic = 3  # a rank's share
    parts = zoo.on_ranks(monkeypatch, 2, lambda rank: engine_gradient(copy.deepcopy(method), zoo.part(data, rank, 2)))
    for expected, *found in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(found) / 2, expected, atol=1e-10 * expected.norm().item(), rtol=0)


# ---- losses against loops --------------------------------------------------------------------------------------------

FEATURES = {
    "random": (zoo.normal(20, 5, 1.0, 0), zoo.normal(20, 5, 3.0, 1)),
    "equal": (zoo.normal(4, 5, 1.0, 0), 7 * zoo.normal(4, 5, 1.0, 0)),
    "opposite": (zoo.normal(4, 5, 1.0, 0), -zoo.normal(4, 5, 1.0, 0)),
    "one image": (zoo.normal(1, 5, 1e-3, 0), zoo.normal(1, 5, 1e3, 1)),
    "nothing": (torch.zeros(3, 5, dtype=torch.float64), zoo.normal(3, 5, 1.0, 1)),
}


def naive_consistency(strong: Tensor, weak: Tensor) -> float:
    def one(a: list[float], b: list[float]) -> float:
        norms = math.hypot(*a) * math.hypot(*b)
        return 1 - (sum(p * q for p, q in zip(a, b, strict=True)) / norms if norms else 0.0)

    return sum(map(one, strong.tolist(), weak.tolist())) / len(strong)


@pytest.mark.parametrize("strong, weak", FEATURES.values(), ids=FEATURES)
def test_consistency_is_that_of_a_loop(strong: Tensor, weak: Tensor) -> None:
    assert consistency(strong, weak).item() == pytest.approx(naive_consistency(strong, weak), abs=1e-12)


@pytest.mark.parametrize(
    "y_real, y_synthetic, value",
    [
        ([0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 0, 0, 2, 1], None),
        ([0, 0, 2, 2], [0, 1, 1, 3, 2], None),
        ([1, 1, 1], [1, 1], None),
        ([0, 1, 2], [2], None),
        ([0, 0, 1], [2, 3], 0.0),
    ],
    ids=["all classes", "classes missing on both sides", "a single class", "one image", "no class in common"],
)
def test_gap_loss_is_that_of_a_loop(y_real: list[int], y_synthetic: list[int], value: float | None) -> None:
    real, synthetic = zoo.normal(len(y_real), 5, 1.0, 0), zoo.normal(len(y_synthetic), 5, 2.0, 1)
    labels = torch.tensor(y_real), torch.tensor(y_synthetic)
    expected = naive_gap(real, labels[0], synthetic, labels[1]).item() if value is None else value
    found = gap_loss(real, labels[0], synthetic, labels[1], 4).item()
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_gap_loss_of_equal_features_is_zero() -> None:
    real, y = zoo.normal(6, 5, 1.0, 0), torch.arange(6) % 3
    assert gap_loss(real, y, real.flip(0), y.flip(0), 3).item() == pytest.approx(0, abs=1e-24)


def test_through_keeps_value_and_gradient_and_measures_it() -> None:
    phi = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    images = 1e8 * phi.exp()
    loss = images.sin().sum()  # of order 1, while its gradient times the images is of order 1e8
    found, norm = through(images, loss)
    assert found.item() == loss.item()
    expected = torch.autograd.grad(loss, phi, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(found, phi, retain_graph=True)[0], expected, atol=0, rtol=1e-12)
    torch.testing.assert_close(norm, torch.autograd.grad(loss, images)[0].norm())


@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("m", [1, 7])
def test_scr_is_that_of_a_loop(view: str, m: int) -> None:
    model, data = zoo.network("wrn-group-leaky"), zoo.batch(5, m)
    method = SCR(model, zoo.faint, zoo.mixed, weight=0.6, view=view)
    losses = method.loss(data)
    seen = {"weak": zoo.faint, "strong": zoo.mixed}[view]
    # One image at a time, so that each cross-entropy and cosine is of its own image.
    logits = [model(seen(x[None]))[0].tolist() for x in data.x]
    supervised = map(zoo.cross_entropy, logits, data.y.tolist())
    pairs = [(model.features(zoo.mixed(u[None])), model.features(zoo.faint(u[None]))) for u in data.u]
    assert losses.terms["supervised"].item() == pytest.approx(sum(supervised) / 5, rel=1e-12)
    expected = 0.6 * sum(naive_consistency(*pair) for pair in pairs) / m
    assert losses.terms["consistency"].item() == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_scr_s_target_is_constant() -> None:
    model = zoo.network("cnn-group-silu")
    data = zoo.batch(4, 5)
    found = torch.autograd.grad(
        SCR(model, zoo.faint, zoo.mixed).loss(data).terms["consistency"], list(model.features.parameters())
    )
    loss = consistency(model.features(zoo.mixed(data.u)), model.features(zoo.faint(data.u)).detach())
    torch.testing.assert_close(found, torch.autograd.grad(loss, list(model.features.parameters())))


def test_the_classifier_learns_from_samples_of_the_mapper_as_it_is() -> None:
    method, data = mpssl(), zoo.batch()
    with noise.seeded(*SEED):
        losses = method.inner(data)
    with noise.seeded(*SEED), torch.no_grad():
        s = method.mapped(noise.integers(zoo.CLASSES, SYNTHETIC), data.x)
        expected = SCR(method.model, zoo.WEAK, zoo.STRONG, weight=1.5).loss(Batch(data.x, data.y, s, data.y))
    assert losses.terms == expected.terms
    mapper = list(method.mapper.parameters())
    assert torch.autograd.grad(sum(losses.terms.values()), mapper, allow_unused=True) == (None,) * len(mapper)


# ---- what an update may write ---------------------------------------------------------------------------------------


def fit(method: Method, steps: int = 4) -> None:
    engine = Engine(device="cpu", log_every=0, evaluate_every=0, lr=0.01)
    engine.fit(method, lambda step: zoo.batch(6, 5, step=step), steps)


def only(method: MPSSL, name: str) -> MPSSL:
    updates = method.updates()
    method.updates = lambda: {name: updates[name]}  # type: ignore[method-assign]
    return method


@pytest.mark.parametrize("name", zoo.BATCHNORM)
def test_the_mapper_s_update_leaves_the_classifier_bitwise_as_it_was(name: str) -> None:
    method = only(mpssl(name), "mapper")
    classifier, mapper = zoo.copies(method.model), zoo.copies(method.mapper)
    fit(method)
    assert zoo.same(classifier, zoo.copies(method.model))
    assert not zoo.same(mapper, zoo.copies(method.mapper))


@pytest.mark.parametrize("name", zoo.BATCHNORM)
def test_the_classifier_s_update_leaves_the_mapper_bitwise_as_it_was(name: str) -> None:
    method = only(mpssl(name), "classifier")
    mapper = zoo.copies(method.mapper)
    fit(method)
    assert zoo.same(mapper, zoo.copies(method.mapper))


METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "fixmatch": lambda model: FixMatch(model, zoo.WEAK, zoo.STRONG),
    "meanteacher": lambda model: MeanTeacher(model, zoo.WEAK, zoo.STRONG),
    "scr": lambda model: SCR(model, zoo.WEAK, zoo.STRONG),
    "mpssl": lambda model: MPSSL(model, zoo.generator(), zoo.WEAK, zoo.STRONG, zoo.CLASSES, SYNTHETIC).double(),
}


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["cnn-batch-relu", "wrn-batch-leaky"])
def test_running_statistics_count_the_classifier_s_own_update_once_a_step(
    name: str, make: Callable[[nn.Module], Method]
) -> None:
    model = zoo.network(name)
    method = make(model)
    fit(method)
    norms = [module for module in method.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and {norm.num_batches_tracked.item() for norm in norms} == {4}
    assert all(norm.track_running_stats for norm in norms)


def test_the_updates_and_their_optimisers() -> None:
    method = mpssl(every=3, mapper_lr=2e-3)
    mapper, classifier = method.updates().values()
    assert list(method.updates()) == ["mapper", "classifier"]
    assert mapper.module is method.mapper and mapper.every == 3
    assert classifier.module is method.model and classifier.every == 1 and classifier.optimizer is None
    adam = mapper.optimizer(method.mapper.parameters())
    assert isinstance(adam, torch.optim.Adam) and adam.param_groups[0]["lr"] == 2e-3


def test_the_generator_is_no_part_of_the_method() -> None:
    assert not any("generator" in name for name in mpssl().state_dict())


def test_samples_are_uniform_and_of_the_target_classes_in_turn() -> None:
    method = mpssl()
    with noise.seeded(0):
        found = method.samples(7, zoo.batch().x)
    assert {name: tuple(images.shape) for name, images in found.items()} == {
        "uniform": (7, *zoo.SHAPE),
        "mapped": (7, *zoo.SHAPE),
    }
    with noise.seeded(0):
        z, y = noise.normal(7, zoo.LATENT, like=zoo.batch().x), noise.integers(zoo.FOUNDATION, 7)
        mapped = method.mapper(noise.normal(7, zoo.LATENT, like=z), torch.arange(7) % 3)
    assert found["uniform"].equal(method.generator(z, y)) and found["mapped"].equal(method.generator(*mapped))
