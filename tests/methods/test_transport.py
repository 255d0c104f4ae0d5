"""Label transport: its readings and losses against loops, its hypergradient as MP-SSL's is tested."""

from __future__ import annotations

import copy
import math
from typing import Any

import bilevel
import pytest
import torch
import zoo
from bilevel import SEED, SYNTHETIC, engine_gradient, fit, only, true_outer
from torch import Tensor, nn

from semisynth import noise
from semisynth.errors import UserError
from semisynth.method import Batch
from semisynth.methods import MPSSL, Transport

FAINT = (zoo.faint, zoo.mixed)


def transport(name: str = "cnn-group-silu", **options: Any) -> Transport:
    """In float64, with a prior, and a mapper that has left its zero start, where most of its gradients vanish."""
    weak, strong = options.pop("views", (zoo.WEAK, zoo.STRONG))
    options = {"inner_lr": 0.4, "weight": 1.5, "supervise": 0.7, **options}
    parts = (zoo.generator(), zoo.source(), weak, strong, zoo.CLASSES, SYNTHETIC)
    method = Transport(zoo.network(name), *parts, **options).double()
    nn.init.normal_(method.mapper.out.weight, std=0.1)
    nn.init.normal_(method.mapper.prior)
    return method


@pytest.mark.parametrize("gap", [0.0, 0.8])
@pytest.mark.parametrize("name", zoo.SMOOTH)
def test_the_mapper_s_gradient_is_that_of_finite_differences(name: str, gap: float) -> None:
    # Soft classes, because hard draws are constant almost everywhere and have the soft gradient by decree.
    bilevel.assert_finite_differences(transport(name, gap=gap, hard=False, views=FAINT), zoo.batch(), true_outer)


@pytest.mark.parametrize("gap", [0.0, 0.8])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_mapper_s_gradient_is_that_of_the_naive_unroll(name: str, hard: bool, gap: float) -> None:
    bilevel.assert_naive_unroll(transport(name, gap=gap, hard=hard), zoo.batch(), true_outer)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_mapper_s_terms_are_the_true_losses(view: str) -> None:
    method, data = transport(gap=0.8, view=view), zoo.batch()
    with noise.seeded(*SEED):
        losses = method.updates()["mapper"].loss(data)
    with noise.seeded(*SEED):
        validation, gap = bilevel.true_terms(method, data, *bilevel.asked(method, data.x), differentiable=False)
    assert list(losses.terms) == ["gap", "validation"]
    torch.testing.assert_close(losses.terms["validation"], validation, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(losses.terms["gap"], 0.8 * gap, atol=1e-12, rtol=1e-12)


def test_ranks_average_to_the_gradient_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = transport(gap=0.8), zoo.batch(8)
    bilevel.resize(method, 6)
    whole = engine_gradient(method, data)
    bilevel.resize(method, 3)  # a rank's share
    parts = zoo.on_ranks(monkeypatch, 2, lambda rank: engine_gradient(copy.deepcopy(method), zoo.part(data, rank, 2)))
    for expected, *found in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(found) / 2, expected, atol=1e-10 * expected.norm().item(), rtol=0)


# ---- the classifier's losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("m", [1, 7])
def test_the_classifier_s_losses_are_those_of_a_loop(view: str, m: int) -> None:
    method, data = transport("wrn-group-leaky", views=FAINT, view=view), zoo.batch(5)
    bilevel.resize(method, m)
    with noise.seeded(*SEED):
        losses = method.inner(data)
    with noise.seeded(*SEED), torch.no_grad():
        s, y = bilevel.asked(method, data.x)
    model, seen = method.model, {"weak": zoo.faint, "strong": zoo.mixed}[view]
    # One image at a time, so that each loss is of its own image.
    logits = [model(seen(x[None]))[0].tolist() for x in data.x]
    supervised = sum(map(zoo.cross_entropy, logits, data.y.tolist())) / 5
    consistency = synthetic = 0.0
    for image, label in zip(s, y.tolist(), strict=True):
        a, b = (model.features(see(image[None]))[0].tolist() for see in (zoo.mixed, zoo.faint))
        consistency += 1 - sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
        confidence = zoo.softmax(model(zoo.faint(image[None]))[0].tolist())[label]
        synthetic += confidence * zoo.cross_entropy(model(zoo.mixed(image[None]))[0].tolist(), label)
    assert list(losses.terms) == ["supervised", "consistency", "synthetic"]
    assert losses.terms["supervised"].item() == pytest.approx(supervised, rel=1e-12)
    assert losses.terms["consistency"].item() == pytest.approx(1.5 * consistency / m, rel=1e-11, abs=1e-12)
    assert losses.terms["synthetic"].item() == pytest.approx(0.7 * synthetic / m, rel=1e-12)


def test_the_confidence_is_no_way_to_lower_the_classifier_s_loss() -> None:
    method, data = transport(views=FAINT), zoo.batch()
    with noise.seeded(*SEED):
        losses = method.inner(data)
    with noise.seeded(*SEED), torch.no_grad():
        s, y = bilevel.asked(method, data.x)
        confidence = method.model(zoo.faint(s)).softmax(1)[torch.arange(SYNTHETIC), y]
    chosen = method.model(zoo.mixed(s)).log_softmax(1)[torch.arange(SYNTHETIC), y]
    parameters = list(method.model.parameters())
    expected = torch.autograd.grad(-0.7 * (confidence * chosen).mean(), parameters)
    torch.testing.assert_close(torch.autograd.grad(losses.terms["synthetic"], parameters), expected)


def test_without_a_prior_and_the_samples_classes_it_is_mpssl() -> None:
    method, data = transport(supervise=0.0, gap=0.8), zoo.batch()
    nn.init.zeros_(method.mapper.prior)
    options = {"weight": 1.5, "inner_lr": 0.4, "gap": 0.8, "hard": True, "temperature": 0.3}
    parts = (method.generator.module, zoo.WEAK, zoo.STRONG, zoo.CLASSES, SYNTHETIC)
    other = MPSSL(method.model, *parts, **options).double()
    other.mapper.load_state_dict(method.mapper.state_dict())
    for name in ("mapper", "classifier"):
        found = []
        for one in (method, other):
            with noise.seeded(*SEED):
                losses = one.updates()[name].loss(data)
            found.append(losses.terms)
        assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_shared_gradient_is_that_of_the_classifier_s_own_loss(view: str) -> None:
    # Views without draws, because the two losses draw theirs in another order.
    method, data = transport(shared=True, views=FAINT, view=view), zoo.batch()
    with noise.seeded(*SEED):
        losses, gradients = method.updates()["mapper"].loss(data).ready["classifier"]
    with noise.seeded(*SEED):
        own = method.inner(data)
    assert list(losses.terms) == list(own.terms) == ["supervised", "consistency", "synthetic"]
    torch.testing.assert_close(dict(losses.terms), dict(own.terms), atol=0, rtol=1e-12)
    expected = torch.autograd.grad(sum(own.terms.values()), list(method.model.parameters()))
    for found, one in zip(gradients, expected, strict=True):
        assert one.norm() > 1e-8 and (found - one).norm() <= 1e-10 * one.norm()


# ---- the reading ----------------------------------------------------------------------------------------------------


def readings(method: Transport, batches: list[Batch]) -> list[list[float]]:
    """The mean over batches of each class's mean posterior, by loops over images."""
    means: list[list[list[float]]] = [[] for _ in range(zoo.CLASSES)]
    for batch in batches:
        for c, found in enumerate(means):
            own = [image for image, label in zip(batch.x, batch.y.tolist(), strict=True) if label == c]
            each = [zoo.softmax(method.reader.source(zoo.faint(image[None]))[0].tolist()) for image in own]
            if each:
                found.append([sum(column) / len(each) for column in zip(*each, strict=True)])
    return [[sum(column) / len(found) for column in zip(*found, strict=True)] for found in means]


@pytest.mark.parametrize("refine, every", [(True, 1), (True, 3), (False, 1)])
def test_the_prior_is_the_logarithm_of_what_was_read(refine: bool, every: int) -> None:
    method = transport(views=FAINT, refine=refine, every=every)
    fit(method, 5)
    seen = [zoo.batch(6, 5, step=step) for step in range(0, 5, every)]
    expected = torch.tensor(readings(method, seen), dtype=torch.float64)
    torch.testing.assert_close(method.reader.transport, expected)
    torch.testing.assert_close(method.mapper.prior, expected.clamp_min(1e-4).log())
    assert (expected.amax(1) - expected.amin(1)).min() > 0.05


def test_a_class_that_is_never_read_can_still_be_asked_for() -> None:
    method = transport(refine=False, views=FAINT)
    method.reader.source.module.head.bias.copy_(torch.tensor([900.0, 0, 0, 0]))
    fit(method, 1)
    assert method.reader.transport[:, 1:].max() < 1e-30
    torch.testing.assert_close(
        method.mapper.prior.exp(), torch.tensor([1, 1e-4, 1e-4, 1e-4]).double().expand(zoo.CLASSES, -1)
    )


def test_samples_are_of_what_the_labeled_images_were_read_as() -> None:
    method = transport(refine=False, views=FAINT)
    nn.init.zeros_(method.mapper.out.weight)
    asked: list[Tensor] = []
    method.generator.module.register_forward_hook(lambda module, inputs, output: asked.append(inputs[1]))
    classes = torch.tensor([3, 1, 0])
    method.mapper.prior.copy_((torch.eye(zoo.FOUNDATION)[classes].double()).clamp_min(1e-4).log())
    bilevel.resize(method, 300)
    with noise.seeded(*SEED):
        _, y = method.latents(zoo.batch())
    assert (asked[0].argmax(1) == classes[y]).double().mean() > 0.99


# ---- what an update may write ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("refine", [True, False])
def test_the_mapper_moves_from_its_prior_only_if_it_is_refined(refine: bool) -> None:
    method = transport(refine=refine)
    assert list(method.updates()) == (["mapper", "classifier"] if refine else ["classifier"])
    before = copy.deepcopy(method)
    fit(method)
    for name, value in method.mapper.named_parameters():
        assert value.equal(before.mapper.get_parameter(name)) != refine
    assert not method.mapper.prior.equal(before.mapper.prior)
    assert not zoo.same(zoo.copies(before.model), zoo.copies(method.model))


def test_one_update_alone_reads() -> None:
    method, data = transport(), zoo.batch()
    assert set(method.refined(data).memory) == {"reader.transport", "reader.count", "mapper.prior"}
    assert not method.inner(data).memory
    assert set(transport(refine=False).inner(data).memory) == {"reader.transport", "reader.count", "mapper.prior"}


@pytest.mark.parametrize("name", zoo.BATCHNORM)
def test_the_mapper_s_update_leaves_the_classifier_bitwise_as_it_was(name: str) -> None:
    method = only(transport(name), "mapper")
    classifier, mapper = zoo.copies(method.model), zoo.copies(method.mapper)
    fit(method)
    assert zoo.same(classifier, zoo.copies(method.model))
    assert not zoo.same(mapper, zoo.copies(method.mapper))


def test_the_classifier_s_update_has_no_gradient_for_the_mapper() -> None:
    method = transport()
    mapper, losses = list(method.mapper.parameters()), method.inner(zoo.batch())
    assert torch.autograd.grad(sum(losses.terms.values()), mapper, allow_unused=True) == (None,) * len(mapper)


def test_the_updates_and_their_optimisers() -> None:
    method = transport(every=3, mapper_lr=2e-3)
    mapper, classifier = method.updates().values()
    assert mapper.module is method.mapper and mapper.every == 3 and mapper.second_order
    assert classifier.module is method.model and classifier.every == 1 and classifier.optimizer is None
    adam = mapper.optimizer(method.mapper.parameters())
    assert isinstance(adam, torch.optim.Adam) and adam.param_groups[0]["lr"] == 2e-3
    assert not transport(refine=False).updates()["classifier"].second_order


def test_generator_and_source_classifier_are_no_part_of_the_method() -> None:
    method = transport()
    assert not any("generator" in name or "source" in name for name in method.state_dict())
    assert not any(p.requires_grad for p in method.reader.source.module.parameters())


def test_samples_are_uniform_and_of_the_target_classes_in_turn() -> None:
    method, like = transport(), zoo.batch().x
    with noise.seeded(0):
        found = method.samples(7, like)
    with noise.seeded(0):
        uniform = method.generator(noise.normal(7, zoo.LATENT, like=like), noise.integers(zoo.FOUNDATION, 7))
        mapped = method.mapper(noise.normal(7, zoo.LATENT, like=like), torch.arange(7) % zoo.CLASSES)
    torch.testing.assert_close(found, {"uniform": uniform, "mapped": method.generator(*mapped)}, atol=0, rtol=1e-12)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["weight", "supervise", "gap", "inner_lr", "temperature"])
def test_options_out_of_their_range_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"{option} is -1.0"):
        transport(**{option: -1.0})


def test_sharing_needs_a_mapper_update_and_no_batch_statistics() -> None:
    with pytest.raises(UserError, match="shared is true and refine false: there is no gradient to share; leave shared"):
        transport(shared=True, refine=False)
    with pytest.raises(UserError, match=r"BatchNorm.*: leave shared out, or choose a model with GroupNorm"):
        transport("cnn-batch-relu", shared=True)
