"""MP-SSL: its losses against loops, its hypergradient against finite differences and against the naive unroll."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import bilevel
import pytest
import torch
import zoo
from bilevel import SEED, SYNTHETIC, engine_gradient, fit, naive_gap, only, true_outer
from torch import Tensor, nn

from semisynth import noise
from semisynth.errors import UserError
from semisynth.method import Batch, Losses
from semisynth.methods import MPSSL, SCR
from semisynth.methods.mpssl import gap_loss


def mpssl(name: str = "cnn-group-silu", generator: str = "conditional", **options: Any) -> MPSSL:
    """In float64, and with a mapper that has left its zero start, where most of its gradients vanish."""
    weak, strong = options.pop("views", (zoo.WEAK, zoo.STRONG))
    model, parts = zoo.network(name), (weak, strong, zoo.CLASSES, SYNTHETIC)
    method = MPSSL(model, zoo.generator(generator), *parts, inner_lr=0.4, weight=1.5, **options).double()
    nn.init.normal_(method.mapper.out.weight, std=0.1)
    return method


@pytest.mark.parametrize("gap", [0.0, 0.8])
@pytest.mark.parametrize("name, generator", bilevel.CASES)
def test_the_mapper_s_gradient_is_that_of_finite_differences(name: str, generator: str, gap: float) -> None:
    # Soft classes, because hard draws are constant almost everywhere and have the soft gradient by decree.
    method = mpssl(name, generator, gap=gap, hard=False, views=(zoo.faint, zoo.mixed))
    bilevel.assert_finite_differences(method, zoo.batch(), true_outer)


@pytest.mark.parametrize("gap", [0.0, 0.8])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("generator", zoo.GENERATORS)
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_mapper_s_gradient_is_that_of_the_naive_unroll(name: str, generator: str, hard: bool, gap: float) -> None:
    bilevel.assert_naive_unroll(mpssl(name, generator, gap=gap, hard=hard), zoo.batch(), true_outer)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_terms_are_the_true_losses(view: str) -> None:
    method, data = mpssl(gap=0.8, view=view), zoo.batch()
    with noise.seeded(*SEED):
        losses = method.outer.losses(data)
    with noise.seeded(*SEED):
        validation, gap = bilevel.true_terms(method, data, *bilevel.asked(method, data.x), differentiable=False)
    assert list(losses.terms) == ["gap", "validation"]
    torch.testing.assert_close(losses.terms["validation"], validation, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(losses.terms["gap"], 0.8 * gap, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(losses.metrics["distance"], gap, atol=1e-12, rtol=1e-12)
    assert not losses.metrics["distance"].requires_grad and not losses.ready


def test_either_term_may_be_off() -> None:
    for options, term in (({"gap": 0.0}, "validation"), ({"look_ahead": False}, "gap")):
        losses = mpssl(**options).outer.losses(zoo.batch())
        assert list(losses.terms) == [term] and set(losses.metrics) == {"distance", f"{term}_gradient"}


@pytest.mark.parametrize("gap", [0.0, 0.8])
def test_ranks_average_to_the_gradient_of_one_process(gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = mpssl(gap=gap), zoo.batch(8)
    bilevel.resize(method, 6)
    whole = engine_gradient(method, data)
    bilevel.resize(method, 3)  # a rank's share
    parts = zoo.on_ranks(monkeypatch, 2, lambda rank: engine_gradient(copy.deepcopy(method), zoo.part(data, rank, 2)))
    for expected, *found in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(found) / 2, expected, atol=1e-10 * expected.norm().item(), rtol=0)


# ---- the norms of both gradients ------------------------------------------------------------------------------------


def measured(method: MPSSL, batch: Batch) -> dict[str, Tensor]:
    with noise.seeded(*SEED):
        found = method.outer.losses(batch)
    return {key: value for key, value in found.metrics.items() if key != "distance"}


def test_the_norms_are_those_of_the_true_gradients_at_the_images() -> None:
    method, data = mpssl(gap=0.8), zoo.batch()
    with noise.seeded(*SEED):
        s, y = bilevel.asked(method, data.x)
        validation, gap = bilevel.true_terms(method, data, s, y, differentiable=True)
    found = measured(method, data)
    for name, term in {"validation": validation, "gap": 0.8 * gap}.items():
        expected = torch.autograd.grad(term, s, retain_graph=True)[0].norm()
        assert expected > 1e-6
        torch.testing.assert_close(found.pop(f"{name}_gradient"), expected, atol=0, rtol=1e-10)
    assert not found


@pytest.mark.parametrize("every", [1, 4])
def test_the_norms_are_measured_at_every_tenth_update_of_the_mapper(every: int) -> None:
    method = mpssl(every=every)
    steps = [step for step in range(0, 31 * every, every) if measured(method, zoo.batch(step=step))]
    assert steps == [0, 10 * every, 20 * every, 30 * every]


def test_measuring_changes_no_gradient() -> None:
    method, data = mpssl(gap=0.8), zoo.batch()
    one, other = (engine_gradient(method, replace(data, step=step)) for step in (0, 1))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_the_norms_of_ranks_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = mpssl(gap=0.8), zoo.batch(8)
    bilevel.resize(method, 6)
    whole = measured(method, data)
    bilevel.resize(method, 3)
    for part in zoo.on_ranks(monkeypatch, 2, lambda rank: measured(copy.deepcopy(method), zoo.part(data, rank, 2))):
        torch.testing.assert_close(part, whole, atol=0, rtol=1e-10)


# ---- losses against loops --------------------------------------------------------------------------------------------


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


def test_the_classifier_learns_from_samples_of_the_mapper_as_it_is() -> None:
    method, data = mpssl(), zoo.batch()
    with noise.seeded(*SEED):
        losses = method.inner(data)
    with noise.seeded(*SEED), torch.no_grad():
        s = method.latents.of(noise.integers(zoo.CLASSES, SYNTHETIC), data.x)
        expected = SCR(method.model, zoo.WEAK, zoo.STRONG, weight=1.5).loss(Batch(data.x, data.y, s, data.y))
    assert losses.terms == expected.terms
    mapper = list(method.mapper.parameters())
    assert torch.autograd.grad(sum(losses.terms.values()), mapper, allow_unused=True) == (None,) * len(mapper)


# ---- the inner gradient shared with the classifier ------------------------------------------------------------------

GROUPNORM = [name for name in zoo.NETWORKS if "group" in name]


@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("name", GROUPNORM)
def test_the_shared_gradient_is_that_of_the_classifier_s_own_loss(name: str, view: str) -> None:
    # Views without draws, because the two losses draw theirs in another order.
    method, data = mpssl(name, shared=True, views=(zoo.faint, zoo.mixed), view=view), zoo.batch()
    with noise.seeded(*SEED):
        losses, gradients = method.outer.losses(data).ready["classifier"]
    with noise.seeded(*SEED), torch.no_grad():
        s, _ = method.latents(data)
    own = method.problem.losses(data, s)
    assert not any(term.requires_grad for term in losses.terms.values())
    torch.testing.assert_close(dict(losses.terms), dict(own.terms), atol=0, rtol=1e-12)
    expected = torch.autograd.grad(sum(own.terms.values()), list(method.model.parameters()))
    for found, one in zip(gradients, expected, strict=True):
        assert one.norm() > 1e-8 and (found - one).norm() <= 1e-10 * one.norm()


@pytest.mark.parametrize("shared", [True, False])
def test_the_classifier_takes_the_look_ahead_s_gradient_where_there_is_one(shared: bool) -> None:
    method = mpssl(shared=shared, every=2)
    steps, own = [], method.inner

    def inner(batch: Batch) -> Losses:
        steps.append(batch.step)
        return own(batch)

    method.inner = inner  # type: ignore[method-assign]
    fit(method, 5)
    assert steps == ([1, 3] if shared else [0, 1, 2, 3, 4])


def test_sharing_needs_a_look_ahead_and_no_batch_statistics() -> None:
    with pytest.raises(UserError, match="look_ahead false: there is no gradient to share; leave shared out"):
        mpssl(shared=True, look_ahead=False)
    with pytest.raises(UserError, match=r"BatchNorm.*: leave shared out, or choose a model with GroupNorm"):
        mpssl("cnn-batch-relu", shared=True)


# ---- what an update may write ---------------------------------------------------------------------------------------


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


def test_the_updates_and_their_optimisers() -> None:
    method = mpssl(every=3, mapper_lr=2e-3)
    mapper, classifier = method.updates().values()
    assert list(method.updates()) == ["mapper", "classifier"]
    assert mapper.module is method.mapper and mapper.every == 3
    assert classifier.module is method.model and classifier.every == 1 and classifier.optimizer is None
    adam = mapper.optimizer(method.mapper.parameters())
    assert isinstance(adam, torch.optim.Adam) and adam.param_groups[0]["lr"] == 2e-3


@pytest.mark.parametrize("option", ["weight", "gap", "inner_lr", "temperature"])
def test_options_out_of_their_range_are_refused(option: str) -> None:
    values = {"weight": 1.0, "inner_lr": 0.4, option: -1.0}
    with pytest.raises(UserError, match=rf"{option} is -1\.0"):
        MPSSL(zoo.network("cnn-group-silu"), zoo.generator(), zoo.WEAK, zoo.STRONG, zoo.CLASSES, SYNTHETIC, **values)


def test_an_outer_problem_without_terms_is_refused() -> None:
    with pytest.raises(UserError, match="gap is 0 and look_ahead false: nothing is left to train the mapper by"):
        mpssl(gap=0.0, look_ahead=False)


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
    torch.testing.assert_close(found["uniform"], method.generator(z, y), atol=0, rtol=0)
    torch.testing.assert_close(found["mapped"], method.generator(*mapped), atol=0, rtol=1e-12)


def test_a_meta_batch_has_its_own_size() -> None:
    method, data = mpssl(meta=4), zoo.batch()
    with noise.seeded(*SEED):
        found = method.outer.losses(data).terms["validation"]
    small = mpssl()
    small.load_state_dict(method.state_dict())
    small.generator.module.load_state_dict(method.generator.module.state_dict())
    with noise.seeded(*SEED):
        expected = replace(small.outer, latents=replace(small.latents, synthetic=4)).losses(data).terms["validation"]
    assert found.equal(expected) and len(method.latents(data)[0]) == SYNTHETIC


def test_what_cannot_go_with_a_meta_batch_is_refused() -> None:
    with pytest.raises(UserError, match="shared is true and meta given"):
        mpssl(meta=4, shared=True)
    with pytest.raises(UserError, match="meta"):
        mpssl(meta=-1)
    with pytest.raises(UserError, match=f"meta is {SYNTHETIC + 1}, more than the classifier's own samples"):
        mpssl(meta=SYNTHETIC + 1)


def test_the_temperature_follows_the_training() -> None:
    method, data = mpssl(cooling=0.01, temperature=3.0), zoo.batch()
    largest = []
    for progress in (0.0, 1.0):
        with noise.seeded(*SEED):
            _, chosen = method.mapper(noise.normal(6, zoo.LATENT, like=data.x), data.y, progress)
        assert chosen is not None
        largest.append(chosen.max(1).values.mean())
    assert largest[0] < 0.6 and largest[1] > 0.95
    seen: list[float] = []
    method.mapper.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    method.inner(replace(data, progress=0.25))
    method.outer.losses(replace(data, progress=0.5))
    assert seen == [0.25, 0.5]
