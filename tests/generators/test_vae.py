"""The encoder of the variational autoencoder, and the draw from what it finds."""

from __future__ import annotations

import pytest
import torch

from semisynth.generators.vae import Encoder, sampled


@pytest.mark.parametrize("side", [4, 8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_variance_are_of_the_latent_and_move_every_weight(side: int, channels: int) -> None:
    encoder = Encoder((channels, side, side), 5, latent=6, width=8)
    x, y = torch.rand(3, channels, side, side), torch.tensor([0, 4, 2])
    mean, log_variance = encoder(x, y)
    assert mean.shape == log_variance.shape == (3, 6)
    gradients = torch.autograd.grad((mean.square() + log_variance.square()).sum(), list(encoder.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_it_reads_image_and_class() -> None:
    encoder = Encoder((1, 8, 8), 3, latent=2, width=8).double()
    x = torch.rand(2, 1, 8, 8).double()
    one = encoder(x, torch.tensor([0, 1]))[0]
    assert (one - encoder(x, torch.tensor([2, 1]))[0]).abs().sum(1).gt(1e-6).tolist() == [True, False]
    assert (one - encoder(x.roll(1, 3), torch.tensor([0, 1]))[0]).abs().min() > 1e-6
    assert torch.allclose(one, encoder(x, torch.eye(3).double()[:2])[0])


def test_a_draw_has_the_mean_and_the_variance() -> None:
    mean, log_variance = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.0, 2.0]]).double()
    noise = torch.tensor([[0.5, -1.0]]).double()
    expected = torch.tensor([[1.5, -2.0 - torch.e]]).double()
    torch.testing.assert_close(sampled(mean, log_variance, noise), expected)
