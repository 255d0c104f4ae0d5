"""The two terms of the ELBO against loops and by chance, what is drawn from the prior, and that it learns."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
import zoo
from torch import Tensor

from semisynth import generators, noise
from semisynth.data import datasets
from semisynth.errors import UserError
from semisynth.methods import VAE
from semisynth.methods.vae import divergence, negative_log_likelihood
from semisynth.recipes import single


def vae(**options: float) -> VAE:
    return VAE(zoo.SHAPE, zoo.CLASSES, latent=zoo.LATENT, width=8, **options).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("log_scale", [-3.0, 0.0, 1.5])
def test_the_likelihood_is_that_of_a_loop(log_scale: float) -> None:
    x, decoded = zoo.normal(3, 8, 1.0, seed=0).view(3, 2, 2, 2), zoo.normal(3, 8, 1.0, seed=1).view(3, 2, 2, 2)
    sigma = math.exp(log_scale)
    expected = []
    for image, other in zip(x.flatten(1).tolist(), decoded.flatten(1).tolist(), strict=True):
        densities = [
            math.exp(-((a - b) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
            for a, b in zip(image, other, strict=True)
        ]
        if min(densities) == 0:  # underflow: by the logarithm
            expected.append(sum((a - b) ** 2 / (2 * sigma**2) for a, b in zip(image, other, strict=True)))
            expected[-1] += len(image) * (log_scale + math.log(2 * math.pi) / 2)
        else:
            expected.append(-sum(map(math.log, densities)))
    found = negative_log_likelihood(x, decoded, torch.tensor(log_scale, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def posterior() -> tuple[Tensor, Tensor]:
    return zoo.normal(4, 3, 1.0, seed=0), zoo.normal(4, 3, 0.7, seed=1)


def test_the_divergence_is_that_of_a_loop_and_zero_at_the_prior() -> None:
    means, logs = posterior()
    expected = [
        sum((m * m + math.exp(v) - v - 1) / 2 for m, v in zip(mean, log, strict=True))
        for mean, log in zip(means.tolist(), logs.tolist(), strict=True)
    ]
    torch.testing.assert_close(divergence(means, logs), torch.tensor(expected, dtype=torch.float64))
    assert divergence(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]


def test_the_divergence_is_the_mean_of_log_q_minus_log_p() -> None:
    means, logs = posterior()
    q, p = torch.distributions.Normal(means, (logs / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    z = q.sample((200_000,))
    values = (q.log_prob(z) - p.log_prob(z)).sum(2)
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - divergence(means, logs)).abs() < 5 * error).all() and error.max() < 0.02


def test_the_loss_is_the_negative_elbo_of_one_draw_per_image() -> None:
    method, data = vae(), zoo.batch()
    with noise.seeded("vae"):
        losses = method.loss(data)
    with noise.seeded("vae"):
        drawn = noise.normal(6, zoo.LATENT, like=data.x)
    method.requires_grad_(False)
    reconstruction = divergences = 0.0
    for x, y, e in zip(data.x, data.y, drawn, strict=True):
        mean, log = (part[0] for part in method.encoder(x[None], y[None]))
        z = torch.stack([m + math.sqrt(math.exp(v)) * n for m, v, n in zip(mean, log, e, strict=True)])
        image, sigma = method.model(z[None], y[None])[0], method.log_scale[0].exp().item()
        for a, b in zip(x.flatten().tolist(), image.flatten().tolist(), strict=True):
            reconstruction += (a - b) ** 2 / (2 * sigma**2) + math.log(sigma * math.sqrt(2 * math.pi))
        divergences += sum((m * m + math.exp(v) - v - 1) / 2 for m, v in zip(mean.tolist(), log.tolist(), strict=True))
    values = 6 * 64
    assert losses.terms["reconstruction"].item() == pytest.approx(reconstruction / values, rel=1e-9)
    assert losses.terms["divergence"].item() == pytest.approx(divergences / values, rel=1e-9)
    assert losses.metrics["scale"].item() == method.log_scale[0].exp().item()


def test_one_update_moves_both_networks_and_the_scale_by_adam() -> None:
    method = vae(model_lr=2e-3)
    (update,) = method.updates().values()
    named = dict(method.named_parameters())
    gradients = dict(zip(named, zoo.gradients(method, "autoencoder", zoo.batch()), strict=True))
    assert {name.split(".")[0] for name in named} == {"model", "encoder", "log_scale"}
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    assert update.optimizer is not None
    optimizer = update.optimizer(update.module.parameters())
    assert isinstance(optimizer, torch.optim.Adam) and optimizer.param_groups[0]["lr"] == 2e-3


def test_the_scale_goes_to_the_root_mean_square_of_the_residuals() -> None:
    x, decoded = zoo.normal(5, 12, 1.0, seed=0), zoo.normal(5, 12, 1.0, seed=1)
    best = (x - decoded).square().mean().sqrt().log().requires_grad_()
    (slope,) = torch.autograd.grad(negative_log_likelihood(x, decoded, best).mean(), best)
    assert abs(slope) < 1e-10


def test_samples_are_decoded_from_the_prior_of_the_classes_in_turn() -> None:
    method, like = vae(), zoo.batch().x
    with noise.seeded(0):
        found = method.samples(7, like)["uniform"]
    with noise.seeded(0):
        z = noise.normal(7, zoo.LATENT, like=like)
    torch.testing.assert_close(found, method.model(z, torch.tensor([0, 1, 2, 0, 1, 2, 0])))
    with noise.seeded(0):
        assert method.samples(7, like)["uniform"].equal(found)


def test_sizes_are_checked() -> None:
    with pytest.raises(UserError, match="latent is 0"):
        VAE(zoo.SHAPE, 3, latent=0)
    with pytest.raises(UserError, match="12x12: they must be square"):
        VAE((1, 12, 12), 3)


def test_a_run_on_few_digits_is_a_generator(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = tiny.config("vae", options={"width": 8, "latent": 4}, labels_per_class=3, steps=150, batch=30, ema=0.9)
    result = single.fit(config, tmp_path / "run", show=False)
    assert result["task"] == "generate" and (tmp_path / "run" / "samples.png").exists()
    lines = tiny.log(tmp_path / "run")
    assert sum(lines[-1][f"autoencoder/{name}"] for name in ("reconstruction", "divergence")) < 0.3
    loaded, digits = generators.load(str(tmp_path / "run")), datasets.load("digits").pool
    assert (loaded.latent_shape, loaded.classes) == ((4,), 10) and not loaded.training
    with torch.no_grad():
        images = loaded(torch.randn(100, 4), torch.arange(10).repeat(10)).view(10, 10, 1, 16, 16).mean(0)
    means = torch.stack([digits.x[digits.y == c].float().mean(0) / 255 for c in range(10)])
    nearest = torch.cdist(images.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == torch.arange(10)).sum() >= 8
