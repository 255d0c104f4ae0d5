"""MGR: its losses against loops, its hypergradient against finite differences and against the naive unroll."""

from __future__ import annotations

import copy
from typing import Any

import bilevel
import pytest
import torch
import zoo
from bilevel import SEED, SYNTHETIC, engine_gradient, fit, only
from torch import Tensor, nn

from semisynth import noise
from semisynth.errors import UserError
from semisynth.method import Batch
from semisynth.methods import MGR
from semisynth.methods.mgr import consistency


def mgr(name: str = "cnn-group-silu", generator: str = "conditional", **options: Any) -> MGR:
    """In float64, and with a finder that has left its zero start, where most of its gradients vanish."""
    weak, strong = options.pop("views", (zoo.WEAK, zoo.STRONG))
    options = {"inner_lr": 0.4, "weight": 0.5, **options}
    method = MGR(zoo.network(name), zoo.generator(generator), weak, strong, SYNTHETIC, **options).double()
    nn.init.normal_(method.mapper.out.weight, std=0.1)
    return method


def images(method: MGR, like: Tensor, found: bool = True) -> Tensor:
    """What MPS samples, the noise drawn as the method draws it: z, then y."""
    generator = method.generator.module
    z = noise.normal(method.synthetic, *generator.latent_shape, like=like)
    y = noise.integers(zoo.FOUNDATION, method.synthetic) if generator.classes else None
    made: Tensor = generator(method.mapper(z) if found else z, y)
    return made


def true_outer(method: MGR, batch: Batch, differentiable: bool) -> Tensor:
    """What the mapper minimises, from the definition: L_val after one step down CE + weight L_PCR.

    After the images, the noise is drawn for the views of s, x and x.
    """
    model, s = method.model, images(method, batch.x)
    theta = dict(model.named_parameters())
    plain, strong = bilevel.features(model, theta, torch.cat([s, method.strong(s)])).split(SYNTHETIC)
    pcr = sum((a - b) @ (a - b) for a, b in zip(plain, strong, strict=True)) / SYNTHETIC
    inner = bilevel.cross_entropy(model, theta, method.view(batch.x), batch.y) + method.weight * pcr
    ahead = bilevel.one_step(theta, inner, method.inner_lr, differentiable)
    return bilevel.cross_entropy(model, ahead, method.view(batch.x), batch.y)


@pytest.mark.parametrize("name, generator", bilevel.CASES)
def test_the_mapper_s_gradient_is_that_of_finite_differences(name: str, generator: str) -> None:
    bilevel.assert_finite_differences(mgr(name, generator, views=(zoo.faint, zoo.mixed)), zoo.batch(), true_outer)


@pytest.mark.parametrize("generator", zoo.GENERATORS)
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_mapper_s_gradient_is_that_of_the_naive_unroll(name: str, generator: str) -> None:
    bilevel.assert_naive_unroll(mgr(name, generator), zoo.batch(), true_outer)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_mapper_s_loss_is_the_true_one(view: str) -> None:
    method, data = mgr(view=view), zoo.batch()
    with noise.seeded(*SEED):
        losses = method.outer(data)
    with noise.seeded(*SEED):
        expected = true_outer(method, data, differentiable=False)
    assert list(losses.terms) == ["validation"]
    torch.testing.assert_close(losses.terms["validation"], expected, atol=1e-12, rtol=1e-12)


def test_ranks_average_to_the_gradient_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = mgr(), zoo.batch(8)
    method.synthetic = 6
    whole = engine_gradient(method, data)
    method.synthetic = 3  # a rank's share
    parts = zoo.on_ranks(monkeypatch, 2, lambda rank: engine_gradient(copy.deepcopy(method), zoo.part(data, rank, 2)))
    for expected, *found in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(found) / 2, expected, atol=1e-10 * expected.norm().item(), rtol=0)


# ---- losses against loops -------------------------------------------------------------------------------------------

FEATURES = {
    "random": (zoo.normal(20, 5, 1.0, 0), zoo.normal(20, 5, 3.0, 1)),
    "equal": (zoo.normal(4, 5, 1.0, 0), zoo.normal(4, 5, 1.0, 0)),
    "opposite": (zoo.normal(4, 5, 1.0, 0), -zoo.normal(4, 5, 1.0, 0)),
    "one image": (zoo.normal(1, 5, 1e-3, 0), zoo.normal(1, 5, 1e3, 1)),
    "one dimension": (zoo.normal(6, 1, 1.0, 0), zoo.normal(6, 1, 1.0, 1)),
}


def naive_consistency(plain: Tensor, strong: Tensor) -> float:
    total = 0.0
    for a, b in zip(plain.tolist(), strong.tolist(), strict=True):
        total += sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
    return total / len(plain)


@pytest.mark.parametrize("plain, strong", FEATURES.values(), ids=FEATURES)
def test_consistency_is_that_of_a_loop(plain: Tensor, strong: Tensor) -> None:
    assert consistency(plain, strong).item() == pytest.approx(naive_consistency(plain, strong), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("generator", zoo.GENERATORS)
@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("m", [1, 7])
def test_the_classifier_s_losses_are_those_of_a_loop(view: str, m: int, generator: str) -> None:
    method, data = mgr("wrn-group-leaky", generator, views=(zoo.faint, zoo.mixed), view=view), zoo.batch(5)
    model, method.synthetic = method.model, m
    with noise.seeded(*SEED):
        losses = method.inner(data)
    with noise.seeded(*SEED):
        s = images(method, data.x)
    seen = {"weak": zoo.faint, "strong": zoo.mixed}[view]
    # One image at a time, so that each cross-entropy and distance is of its own image.
    logits = [model(seen(x[None]))[0].tolist() for x in data.x]
    supervised = map(zoo.cross_entropy, logits, data.y.tolist())
    pairs = [(model.features(image[None]), model.features(zoo.mixed(image[None]))) for image in s]
    assert losses.terms["supervised"].item() == pytest.approx(sum(supervised) / 5, rel=1e-12)
    expected = 0.5 * sum(naive_consistency(*pair) for pair in pairs) / m
    assert losses.terms["consistency"].item() == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_both_branches_have_a_gradient_and_the_mapper_has_none_of_it() -> None:
    method, data = mgr(views=(zoo.faint, zoo.mixed)), zoo.batch()
    with noise.seeded(*SEED):
        loss = method.inner(data).terms["consistency"]
    with noise.seeded(*SEED), torch.no_grad():
        s = images(method, data.x)
    features, parameters = method.model.features, list(method.model.features.parameters())
    expected = (features(s) - features(zoo.mixed(s))).square().sum() * 0.5 / SYNTHETIC
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters))
    mapper = list(method.mapper.parameters())
    assert torch.autograd.grad(loss, mapper, allow_unused=True) == (None,) * len(mapper)


# ---- what an update may write ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.BATCHNORM)
def test_each_update_leaves_the_other_s_module_bitwise_as_it_was(name: str) -> None:
    for update, own in (("mapper", "mapper"), ("classifier", "model")):
        method = only(mgr(name), update)
        before = zoo.copies(method)
        fit(method)
        moved = {key.partition(".")[0] for key, value in zoo.copies(method).items() if not value.equal(before[key])}
        assert moved == {own}


def test_the_updates_and_their_optimisers() -> None:
    method = mgr(every=3, mapper_lr=2e-3)
    mapper, classifier = method.updates().values()
    assert list(method.updates()) == ["mapper", "classifier"]
    assert mapper.module is method.mapper and mapper.every == 3
    assert classifier.module is method.model and classifier.every == 1 and classifier.optimizer is None
    adam = mapper.optimizer(method.mapper.parameters())
    assert isinstance(adam, torch.optim.Adam) and adam.param_groups[0]["lr"] == 2e-3


def test_the_generator_is_no_part_of_the_method() -> None:
    assert not any("generator" in name for name in mgr().state_dict())


@pytest.mark.parametrize("generator", zoo.GENERATORS)
def test_samples_are_those_of_the_generator_before_and_after_the_mapper(generator: str) -> None:
    method, like = mgr(generator=generator), zoo.batch().x
    with noise.seeded(0):
        found = method.samples(7, like)
    method.synthetic = 7
    for name in ("uniform", "mapped"):
        with noise.seeded(0):
            assert found[name].equal(images(method, like, found=name == "mapped"))
    assert not found["uniform"].equal(found["mapped"])


@pytest.mark.parametrize("option", ["weight", "inner_lr"])
def test_options_out_of_their_range_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"{option} is -1.0"):
        mgr(**{option: -1.0})
