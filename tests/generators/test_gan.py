"""The small class-conditional generator and its discriminator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from semisynth.errors import UserError
from semisynth.generators.gan import ConditionalGenerator, Discriminator, Modulated


@pytest.mark.parametrize("side", [4, 8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_shape_asked_for_and_are_judged(side: int, channels: int) -> None:
    shape, y = (channels, side, side), torch.tensor([0, 4])
    images = ConditionalGenerator(shape, 5, latent=6, width=8)(torch.randn(2, 6), y)
    assert images.shape == (2, *shape)
    assert Discriminator(shape, 5, width=8)(images, y).shape == (2,)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 8), (3, 64, 64), (1, 2, 2)])
def test_other_sizes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=f"{shape[1]}x{shape[2]}.*4, 8, 16 or 32"):
        ConditionalGenerator(shape, 5)


def test_modulated_is_film_after_the_norm() -> None:
    block = Modulated(3, 16, 5).double()
    x, condition = torch.randn(4, 3, 6, 6).double(), torch.randn(4, 5).double()
    h = F.group_norm(F.conv2d(x, block.convolution.weight, padding=1), 2)
    scale, shift = block.style(condition).view(4, 2, 16, 1, 1).unbind(1)
    torch.testing.assert_close(block(x, condition), F.silu(h * (1 + scale) + shift))


def test_every_parameter_has_a_gradient() -> None:
    shape, y = (1, 16, 16), torch.arange(6) % 3
    generator, discriminator = ConditionalGenerator(shape, 3, width=8), Discriminator(shape, 3, width=8)
    loss = discriminator(generator(torch.randn(6, 32), y), y).square().sum()
    parameters = [*generator.parameters(), *discriminator.parameters()]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, parameters))


def test_the_class_enters_the_score_by_projection() -> None:
    model, x = Discriminator((1, 8, 8), 3, width=8).double().eval(), torch.rand(2, 1, 8, 8).double()
    h = 4 * model.features(2 * x - 1).mean((2, 3))
    for y in (torch.tensor([0, 2]), torch.tensor([1, 1])):
        own = model.real(h)[:, 0]
        expected = own + torch.stack([row @ model.embedding.weight[:, k] for row, k in zip(h, y, strict=True)])
        torch.testing.assert_close(model(x, y), expected)


def test_every_layer_of_the_discriminator_has_spectral_norm_one() -> None:
    torch.manual_seed(0)
    model, x, y = Discriminator((1, 16, 16), 3, width=8), torch.rand(2, 1, 16, 16), torch.tensor([0, 1])
    for _ in range(100):  # of power iteration
        model(x, y)
    layers = [m for m in model.modules() if "weight" in getattr(m, "parametrizations", {})]
    assert len(layers) == 6
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
