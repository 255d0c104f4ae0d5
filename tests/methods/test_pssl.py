"""P-SSL: what its samples are conditioned on, by loops, and that each loss is the named method's on these samples."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor

from semisynth import noise
from semisynth.errors import UserError
from semisynth.method import Batch, External
from semisynth.methods import PSSL, SCR, UDA, Entropy, FixMatch

SEED, SYNTHETIC = ("a step", 3), 7
LEARNERS = {"scr": SCR, "fixmatch": FixMatch, "uda": UDA, "entropy": Entropy}


def pssl(name: str = "cnn-group-silu", **options: Any) -> PSSL:
    weak, strong = options.pop("views", (zoo.WEAK, zoo.STRONG))
    parts = (zoo.network(name), zoo.generator(), zoo.source(), weak, strong, SYNTHETIC)
    return PSSL(*parts, **options).double()


def asked(method: PSSL, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the generator is given for labeled images x, latents z and conditions y (m, foundation); what it makes."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = method.generator.module.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    with noise.seeded(*SEED):
        made = method.synthesize(x)
    hook.remove()
    ((z, y),) = seen
    return z, y, made


def test_a_sample_is_conditioned_on_what_one_labeled_image_is_read_as() -> None:
    method, data = pssl(views=(zoo.faint, zoo.mixed)), zoo.batch(5)
    z, y, made = asked(method, data.x)
    readings = [zoo.softmax(method.source.module(zoo.faint(image[None]))[0].tolist()) for image in data.x]
    with noise.seeded(*SEED):  # after the views' noise, that of the image and that of z
        chosen, latents = noise.integers(5, SYNTHETIC), noise.normal(SYNTHETIC, zoo.LATENT, like=data.x)
    assert y.tolist() == [pytest.approx(readings[i], abs=1e-12) for i in chosen.tolist()]
    assert z.equal(latents) and made.equal(method.generator(z, y)) and not made.requires_grad
    assert len({tuple(row) for row in y.tolist()}) > 1 and y.amax(1).min() < 0.99


def test_the_source_classifier_reads_weak_views() -> None:
    method, data = pssl(), zoo.batch(5)
    _, y, _ = asked(method, data.x)
    with noise.seeded(*SEED):
        read = method.source(zoo.WEAK(data.x)).softmax(1)
        torch.testing.assert_close(y, read[noise.integers(5, SYNTHETIC)])
    assert not torch.allclose(read, method.source(data.x).softmax(1))


def test_every_labeled_image_is_read_as_often() -> None:
    method, data = pssl(views=(zoo.faint, zoo.mixed)), zoo.batch(6)
    method.synthetic = 6000
    _, y, _ = asked(method, data.x)
    counts = y.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 6 and (counts - 1000).abs().max() < 150


@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("loss", LEARNERS)
def test_the_loss_is_that_of_the_named_method_on_the_samples(loss: str, view: str) -> None:
    method, data = pssl(loss=loss, weight=0.6, view=view), zoo.batch(6, 4)
    with noise.seeded(*SEED):
        found = method.loss(data)
    with noise.seeded(*SEED):
        s = method.synthesize(data.x)
        learner = LEARNERS[loss](method.model, zoo.WEAK, zoo.STRONG, weight=0.6, view=view)
        expected = learner.loss(Batch(data.x, data.y, s, torch.full((SYNTHETIC,), -1)))
    assert found.terms == expected.terms and found.metrics == expected.metrics and len(found.terms) == 2
    assert all(value != 0 for value in found.terms.values()) or loss in ("fixmatch", "uda")  # none may be confident


def test_the_first_choice_is_scr() -> None:
    assert list(pssl().loss(zoo.batch()).terms) == ["supervised", "consistency"]


@pytest.mark.parametrize("loss", LEARNERS)
def test_ranks_average_to_the_gradient_of_one_process(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = pssl(loss=loss), zoo.batch(8)

    def gradient(batch: Batch, synthetic: int) -> list[Tensor]:
        own = copy.deepcopy(method)
        own.synthetic = synthetic
        with noise.seeded(*SEED):
            return zoo.gradients(own, "classifier", batch)

    whole = gradient(data, 6)
    parts = zoo.on_ranks(monkeypatch, 2, lambda rank: gradient(zoo.part(data, rank, 2), 3))
    for expected, *found in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(found) / 2, expected, atol=1e-11, rtol=1e-10)


def test_the_model_is_what_moves() -> None:
    method = pssl()
    assert list(method.updates()) == ["classifier"] and method.updates()["classifier"].module is method.model
    assert all(g.abs().sum() > 0 for g in zoo.gradients(method, "classifier", zoo.batch()))


def test_generator_and_source_classifier_are_no_part_of_the_method() -> None:
    method = pssl()
    assert all(name.startswith("model.") for name in method.state_dict())
    assert isinstance(method.generator, External) and isinstance(method.source, External)


def test_samples_are_those_of_the_generator() -> None:
    method, like = pssl(), zoo.batch().x
    with noise.seeded(0):
        found = method.samples(5, like)
    with noise.seeded(0):
        z, y = noise.normal(5, zoo.LATENT, like=like), noise.integers(zoo.FOUNDATION, 5)
    assert list(found) == ["uniform"] and found["uniform"].equal(method.generator(z, y))


@pytest.mark.parametrize("loss", LEARNERS)
def test_a_weight_out_of_its_range_is_refused(loss: str) -> None:
    with pytest.raises(UserError, match=r"weight is -1\.0"):
        pssl(loss=loss, weight=-1.0)
