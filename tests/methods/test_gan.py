"""The hinge losses against loops, and which network each update moves."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import Tensor

from semisynth import noise
from semisynth.methods import GAN
from semisynth.methods.gan import discriminator_loss, generator_loss


def scores(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


SCORES = {
    "random": (2 * torch.randn(30, dtype=torch.float64), 2 * torch.randn(20, dtype=torch.float64)),
    "beyond the margin": (scores(1, 5, 1e3), scores(-1, -2, -1e3)),
    "all wrong": (scores(-4, -1e6), scores(4, 1e6)),
    "at zero": (scores(0.0), scores(0.0, 0.0)),
}


@pytest.mark.parametrize("real, fake", SCORES.values(), ids=SCORES)
def test_hinge_losses_are_those_of_a_loop(real: Tensor, fake: Tensor) -> None:
    on_real = sum(max(0.0, 1 - score) for score in real.tolist()) / len(real)
    on_fake = sum(max(0.0, 1 + score) for score in fake.tolist()) / len(fake)
    assert discriminator_loss(real, fake).item() == pytest.approx(on_real + on_fake, rel=1e-12, abs=1e-12)
    assert generator_loss(fake).item() == pytest.approx(-sum(fake.tolist()) / len(fake), rel=1e-12, abs=1e-12)


def gan() -> GAN:
    return GAN(zoo.SHAPE, zoo.CLASSES, latent=zoo.LATENT, width=8, generator_lr=1e-3, discriminator_lr=2e-3).double()


def test_the_discriminator_reads_real_and_generated_images_of_the_same_labels() -> None:
    method, data = gan(), zoo.batch()
    with noise.seeded(0):
        fake = method.model(noise.normal(6, zoo.LATENT, like=data.x), data.y)
    # Power iteration moves with every pass in training; both sides must see the same state of it.
    method.discriminator.eval()
    with noise.seeded(0):
        losses = method.criticise(data)
    real, made = method.discriminator(data.x, data.y), method.discriminator(fake, data.y)
    torch.testing.assert_close(losses.terms["hinge"], discriminator_loss(real, made))
    torch.testing.assert_close(losses.metrics["real"], real.mean())
    torch.testing.assert_close(losses.metrics["fake"], made.mean())
    with noise.seeded(0):
        torch.testing.assert_close(method.imitate(data).terms["adversarial"], generator_loss(made))


def test_each_update_moves_its_own_network_at_its_own_rate() -> None:
    method, data = gan(), zoo.batch()
    discriminator, generator = method.updates().values()
    assert list(method.updates()) == ["discriminator", "generator"]
    for update, own, other, lr in (
        (discriminator, method.discriminator, method.model, 2e-3),
        (generator, method.model, method.discriminator, 1e-3),
    ):
        assert update.module is own
        loss = sum(update.loss(data).terms.values())
        foreign = torch.autograd.grad(loss, list(other.parameters()), allow_unused=True, retain_graph=True)
        assert foreign == (None,) * len(foreign)
        assert sum(g.abs().sum() for g in torch.autograd.grad(loss, list(own.parameters()))) > 0
        (group,) = update.optimizer(own.parameters()).param_groups
        assert group["lr"] == lr and group["betas"] == (0.0, 0.99)


def test_the_generator_s_update_leaves_the_power_iteration_alone() -> None:
    method, data = gan(), zoo.batch()
    before = zoo.copies(method.discriminator)
    method.imitate(data)
    assert zoo.same(before, zoo.copies(method.discriminator))
    method.criticise(data)
    assert not zoo.same(before, zoo.copies(method.discriminator))


def test_samples_are_of_the_classes_in_turn() -> None:
    method, like = gan(), zoo.batch().x
    with noise.seeded(0):
        found = method.samples(7, like)["uniform"]
    with noise.seeded(0):
        z = noise.normal(7, zoo.LATENT, like=like)
    torch.testing.assert_close(found, method.model(z, torch.tensor([0, 1, 2, 0, 1, 2, 0])))
