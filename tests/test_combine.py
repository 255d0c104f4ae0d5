"""The gradients that are applied: sums, and Frank-Wolfe's mixtures against a naive float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import Parameter

from semisynth import distributed, functional
from semisynth.combine import Combined, FrankWolfe, total
from semisynth.engine import Engine
from semisynth.errors import Diverged, UserError
from semisynth.frankwolfe import minimum_norm
from semisynth.method import Batch, Losses, Method, Update

TASKS = ("one", "two", "three")
PLACES: tuple[Any, ...] = ("shared", "parameters")


def test_total_is_the_gradient_of_the_sum_of_the_terms_alone() -> None:
    a, b = Parameter(torch.tensor([1.0, 2.0])), Parameter(torch.tensor(3.0))
    losses = Losses({"one": a.square().sum(), "two": b * a[0]}, {"logged": 100 * a.sum() * b})
    found, metrics = total(losses, [a, b])
    assert found[0].tolist() == [2 * 1 + 3, 2 * 2] and found[1].item() == 1 and not metrics
    assert a.grad is None and b.grad is None


def test_total_is_zero_for_a_parameter_without_a_part() -> None:
    a, b = Parameter(torch.ones(2)), Parameter(torch.ones(2, 3))
    found = total(Losses({"one": a.sum()}), [b, a]).gradients
    assert found[0].equal(torch.zeros(2, 3)) and found[1].equal(torch.ones(2))


class Tasks(Method):
    """A trunk and three heads, each with its own target and size of loss; `extra` may add terms."""

    def __init__(self, combine: Callable[..., Combined], trunk: nn.Module | None = None, width: int = 32) -> None:
        super().__init__()
        self.trunk = trunk or zoo.network("cnn-group-silu").features
        self.heads = nn.ModuleDict({name: nn.Linear(width, 3) for name in TASKS}).double()
        self.model = nn.ModuleDict({"trunk": self.trunk, "heads": self.heads})
        self.combine = combine
        self.extra: Callable[[Tensor], dict[str, Tensor]] = lambda z: {}

    def updates(self) -> dict[str, Update]:
        return {"model": Update(self.model, self.loss, self.combine)}

    def loss(self, batch: Batch) -> Losses:
        z = self.trunk(batch.x)
        terms = {
            name: (k + 1) * F.cross_entropy(self.heads[name](z), (batch.y + k) % 3) for k, name in enumerate(TASKS)
        }
        return Losses(terms | self.extra(z), {"width": torch.tensor(z.shape[1])}, shared=z)

    def combined(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients by the names of parameters, and metrics."""
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        gradients, metrics = self.combine(self.loss(batch), list(parameters))
        return dict(zip(names, gradients, strict=True)), dict(metrics)

    def alone(self, batch: Batch, name: str) -> dict[str, Tensor]:
        """The gradient of one term, by a backward pass of its own; and at z as "z"."""
        self.model.zero_grad()
        losses = self.loss(batch)
        assert losses.shared is not None
        losses.shared.retain_grad()
        losses.terms[name].backward()
        found = {key: p.grad for key, p in self.model.named_parameters() if p.grad is not None}
        return found | ({} if losses.shared.grad is None else {"z": losses.shared.grad})


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


def products(rows: list[Tensor]) -> Tensor:
    """A Gram matrix by loops."""
    return torch.tensor([[float((a * b).sum()) for b in rows] for a in rows], dtype=torch.float64)


def flat(gradients: dict[str, Tensor], part: str) -> Tensor:
    return torch.cat([g.flatten() for name, g in gradients.items() if name.startswith(part)])


def naive(method: Tasks, batch: Batch, at: str, scaled: bool) -> tuple[dict[str, Tensor], Tensor]:
    """From one backward pass of everything for each term."""
    alone = {name: method.alone(batch, name) for name in TASKS}
    weights, _ = minimum_norm(products([flat(alone[name], "z" if at == "shared" else "trunk") for name in TASKS]))
    expected = {
        key: sum(
            w * alone[name][key] if scaled or key.startswith("trunk") else alone[name][key]
            for w, name in zip(weights, TASKS, strict=True)
            if key in alone[name]
        )
        for key, _ in method.model.named_parameters()
    }
    return expected, weights  # type: ignore[return-value]


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("scaled", [False, True])
def test_frank_wolfe_is_the_naive_mixture(at: Any, scaled: bool) -> None:
    method, batch = Tasks(FrankWolfe(scaled, at)), zoo.batch()
    found, metrics = method.combined(batch)
    expected, weights = naive(method, batch, at, scaled)
    close(found, expected)
    assert [metrics[f"weight/{name}"] for name in TASKS] == pytest.approx(weights.tolist(), rel=1e-9)
    assert 0 <= metrics["gap"] < 1e-9 and len(metrics) == len(TASKS) + 1
    assert ((weights > 0.05).sum() > 1) and weights.max() < 0.95  # a mixture, or the test would say little
    plain, _ = Tasks(total).combined(batch)
    assert plain.keys() == found.keys() and all(p.grad is None for p in Tasks(total).parameters())


def test_the_two_ways_of_heads_differ_in_heads_alone() -> None:
    one, two = Tasks(FrankWolfe()), Tasks(FrankWolfe(scaled=True))
    two.load_state_dict(one.state_dict())
    (plain, metrics), (scaled, _) = one.combined(zoo.batch()), two.combined(zoo.batch())
    for name, gradient in plain.items():
        weight = metrics[f"weight/{name.split('.')[1]}"] if name.startswith("heads") else 1.0
        torch.testing.assert_close(scaled[name], weight * gradient)


def test_shared_weights_go_where_no_term_rises() -> None:
    """<g_t, mixture> >= |mixture|^2 for every term: what makes it a common direction of descent."""
    method, batch = Tasks(FrankWolfe(at="parameters")), zoo.batch()
    mixture = flat(method.combined(batch)[0], "trunk")
    for name in TASKS:
        assert flat(method.alone(batch, name), "trunk") @ mixture >= (1 - 1e-9) * mixture.square().sum()


def test_both_places_agree_where_the_rows_that_a_linear_trunk_reads_are_orthonormal() -> None:
    """Of z = x W': d/dW = g' x, and <g' x, h' x> = tr(g' h (x x')) = <g, h> where x x' = 1."""
    x = torch.linalg.qr(zoo.normal(64, 6, 1.0, seed=0))[0].T.reshape(6, 1, 8, 8)
    batch = replace(zoo.batch(), x=x)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False)).double()
    shared, parameters = (Tasks(FrankWolfe(at=at), trunk, width=5) for at in PLACES)
    parameters.load_state_dict(shared.state_dict())
    (one, metrics), (other, others) = shared.combined(batch), parameters.combined(batch)
    close(one, other)
    close(metrics, others)
    assert max(metrics[f"weight/{name}"] for name in TASKS) < 0.95
    skewed = replace(batch, x=x * torch.arange(1, 7)[:, None, None, None])
    assert shared.combined(skewed)[1]["weight/one"] != pytest.approx(parameters.combined(skewed)[1]["weight/one"])


@pytest.mark.parametrize("scaled", [False, True])
def test_what_does_not_depend_on_the_representation_has_weight_one(scaled: bool) -> None:
    """A regulariser of everything, and a term that reads the trunk without its output."""
    plain, method = Tasks(FrankWolfe(scaled)), Tasks(FrankWolfe(scaled))
    method.load_state_dict(plain.state_dict())
    weights = list(method.model.parameters())
    method.extra = lambda z: {"decay": sum(w.square().sum() for w in weights), "constant": torch.tensor(1.0)}  # type: ignore[dict-item]
    (before, metrics), (after, others) = plain.combined(zoo.batch()), method.combined(zoo.batch())
    close(metrics, others)
    close(after, {name: before[name] + 2 * w.detach() for name, w in method.model.named_parameters()})


def test_what_reaches_the_trunk_around_the_representation_is_not_lost() -> None:
    plain, method = Tasks(FrankWolfe()), Tasks(FrankWolfe())
    method.load_state_dict(plain.state_dict())
    first = next(method.trunk.parameters())
    method.extra = lambda z: {"both": z.square().mean() + first.sum()}
    plain.extra = lambda z: {"both": z.square().mean()}
    (before, metrics), (after, others) = plain.combined(zoo.batch()), method.combined(zoo.batch())
    close(metrics, others)
    name = next(name for name, p in method.model.named_parameters() if p is first)
    before[name] = before[name] + 1
    close(after, before)


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_single_term_is_the_total(at: Any, scaled: bool) -> None:
    method = Tasks(FrankWolfe(scaled, at))
    losses = method.loss(zoo.batch())
    parameters = list(method.model.parameters())
    one = losses._replace(terms={"one": losses.terms["one"]})
    expected = torch.autograd.grad(one.terms["one"], parameters, None, True, allow_unused=True, materialize_grads=True)
    found = method.combine(one, parameters)
    for gradient, other in zip(found.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=0)
    assert found.metrics == ({"weight/one": 1, "gap": 0} if at == "shared" else {})


def test_a_term_without_a_gradient_takes_the_whole_weight() -> None:
    method = Tasks(FrankWolfe())
    method.extra = lambda z: {"masked": (0 * z).sum()}
    found, metrics = method.combined(zoo.batch())
    assert metrics["weight/masked"] == 1 and metrics["gap"] == 0
    assert not flat(found, "trunk").any() and flat(found, "heads").all()


def test_what_gives_nothing_to_compare_at_is_the_users_mistake() -> None:
    method = Tasks(FrankWolfe())
    losses, parameters = method.loss(zoo.batch()), list(method.model.parameters())
    assert losses.shared is not None
    for shared, told in (
        (None, "gives no shared representation, at which Frank-Wolfe could compare gradients: use `total`"),
        (losses.shared.detach(), "nothing trained is behind"),
        (losses.shared * 1, "no term of the loss depends on what it gives as `shared`"),
    ):
        with pytest.raises(UserError, match=told):
            FrankWolfe()(losses._replace(shared=shared), parameters)
    assert FrankWolfe(at="parameters")(losses._replace(shared=None), parameters).metrics


def test_the_representation_is_as_it_was_afterwards() -> None:
    method = Tasks(FrankWolfe())
    losses, parameters = method.loss(zoo.batch()), list(method.model.parameters())
    kept = method.loss(zoo.batch())
    assert losses.shared is not None and kept.shared is not None
    with pytest.raises(RuntimeError):
        method.combine(kept, [*parameters, torch.ones(1)])
    assert not kept.shared._backward_hooks
    method.combine(losses, parameters)
    assert not losses.shared._backward_hooks


@pytest.mark.parametrize("at", PLACES)
def test_no_step_waits_for_a_value(at: Any) -> None:
    """Tensors without values: what would read one raises."""
    with FakeTensorMode():
        parameters = [Parameter(torch.rand(4, 5)), *(Parameter(torch.rand(5, 3)) for _ in TASKS)]
        z = torch.rand(6, 4) @ parameters[0]
        losses = {name: (z @ head).square().mean() for name, head in zip(TASKS, parameters[1:], strict=True)}
        gradients, metrics = FrankWolfe(at=at)(Losses(losses, shared=z), parameters)
    assert metrics["gap"].shape == ()
    assert [gradient.shape for gradient in gradients] == [parameter.shape for parameter in parameters]


# ---- in the engine -------------------------------------------------------------------------------------------------


def by_step(step: int) -> Batch:
    return zoo.batch(step=step)


FIT: dict[str, Any] = {"device": "cpu", "lr": 0.1, "log_every": 2}


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("scaled", [False, True])
def test_two_ranks_weigh_as_one(monkeypatch: pytest.MonkeyPatch, at: Any, scaled: bool) -> None:
    start = Tasks(FrankWolfe(scaled, at)).state_dict()

    def one(rank: int, world: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        method = Tasks(FrankWolfe(scaled, at))
        method.load_state_dict(start)
        batch = zoo.part(zoo.batch(8), rank, world)
        gradients, metrics = method.combined(batch)
        return dict(zip(gradients, distributed.average(list(gradients.values())), strict=True)), metrics

    alone = one(0, 1)
    for gradients, metrics in zoo.on_ranks(monkeypatch, 2, lambda rank: one(rank, 2)):
        close(gradients, alone[0])
        close(metrics, alone[1])


def test_the_weights_and_the_gap_are_logged_beside_the_metrics_of_the_loss(tmp_path: Path) -> None:
    Engine(**FIT).fit(Tasks(FrankWolfe()), by_step, 4, tmp_path)
    for line in tiny.log(tmp_path):
        assert sum(line[f"model/weight/{name}"] for name in TASKS) == pytest.approx(1, abs=1e-6)
        assert 0 <= line["model/gap"] < 1e-6 and line["model/width"] == 32 and line["model/one"] > 0


@pytest.mark.parametrize("at", PLACES)
def test_a_loss_that_is_not_finite_is_named_and_not_its_weight(at: Any, tmp_path: Path) -> None:
    method, steps = Tasks(FrankWolfe(at=at)), iter(range(9))
    method.extra = lambda z: {"odd": z.mean() * (math.nan if next(steps) == 2 else 1.0)}
    with pytest.raises(Diverged, match=r"the loss term 'model/odd' was not finite at step 2\."):
        Engine(**FIT).fit(method, by_step, 6, tmp_path)
    assert len(tiny.log(tmp_path)) == 1


def test_a_gradient_that_is_not_finite_is_told(tmp_path: Path) -> None:
    """A finite term with an infinite slope."""
    method = Tasks(FrankWolfe())
    method.extra = lambda z: {"odd": (z.mean() * 0).sqrt()}
    with pytest.raises(Diverged, match="the norm of the weights of 'model' was not finite"):
        Engine(**FIT).fit(method, by_step, 1, tmp_path)


@pytest.mark.parametrize("scaled", [False, True])
def test_under_autocast_it_is_near_what_float32_gives(scaled: bool) -> None:
    method = Tasks(FrankWolfe(scaled)).float()
    data = zoo.batch(24)
    batch = replace(data, x=data.x.float())
    exact, metrics = method.combined(batch)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        losses = method.loss(batch)
    assert losses.shared is not None and losses.shared.dtype == torch.bfloat16
    gradients, rough = method.combine(losses, list(method.model.parameters()))
    for (name, one), two in zip(exact.items(), gradients, strict=True):
        assert two.dtype == torch.float32 and functional.cosine(one.flatten(), two.flatten()) > 0.98, name
    for name in TASKS:
        assert rough[f"weight/{name}"] == pytest.approx(float(metrics[f"weight/{name}"]), abs=0.03)


def test_in_the_engine_bf16_trains_every_parameter() -> None:
    method = Tasks(FrankWolfe()).float()
    before = zoo.copies(method)
    Engine(**FIT, precision="bf16").fit(method, lambda step: replace(by_step(step), x=by_step(step).x.float()), 2)
    assert not any(value.equal(before[name]) for name, value in method.state_dict().items())
