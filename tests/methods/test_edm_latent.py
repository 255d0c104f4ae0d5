"""EDM in the latent space of an autoencoder: what it learns from, runs from end to end, and the generator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import test_resume
import tiny
import torch
from autoencoders import saved
from torch import Tensor

from semisynth import cli, generators, noise, weights
from semisynth.errors import UserError
from semisynth.generators.diffusion import Diffusion, heun
from semisynth.method import Batch
from semisynth.methods import EDM
from semisynth.methods.edm import weight
from semisynth.models import autoencoder
from semisynth.models.autoencoder import Autoencoder
from semisynth.recipes import single
from semisynth.recipes.materials import Materials

OPTIONS = {"deviation": 1.0, "sampler_steps": 3}


@pytest.fixture
def vae(tmp_path: Path) -> str:
    return saved(tmp_path / "vae")


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass of an encoder had, where nothing was encoded before."""
    found: list[int] = []
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path / "cache"))
    forward = Autoencoder.forward
    monkeypatch.setattr(Autoencoder, "forward", lambda self, x: found.append(len(x)) or forward(self, x))
    return found


def test_a_batch_holds_moments_and_each_step_draws_other_latents_from_them(vae: str) -> None:
    materials = Materials(tiny.config("edm", options={"latent": vae, **OPTIONS}))
    method, batch = materials.method, materials.stream(0)
    assert isinstance(method, EDM) and batch.x.shape == (8, 4, 8, 8)
    rows = [(materials.labeled.y == y).nonzero()[:, 0].tolist() for y in batch.y]
    expected = autoencoder.load(vae, (1, 16, 16))(materials.labeled.x[:].float() / 255)
    assert all(any(x.allclose(expected[i], atol=1e-5) for i in at) for x, at in zip(batch.x, rows, strict=True))
    mean, spread = batch.x.chunk(2, 1)
    draws = []
    for step in range(2000):
        with noise.seeded(step):
            draws.append((method.clean(batch.x) - mean) / spread)
    drawn = torch.stack(draws)
    assert drawn[0].ne(drawn[1]).all()
    assert drawn.mean(0).abs().max() < 6 / 2000**0.5 and (drawn.std(0) - 1).abs().max() < 6 / 4000**0.5


def test_the_loss_is_that_of_latents(vae: str) -> None:
    method = EDM((1, 16, 16), 3, None, latent=vae, drop=0.0, deviation=0.8)
    x, y = torch.rand(5, 4, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    with noise.seeded("latents"):
        found = method.loss(Batch(x, y, x[:0], y[:0])).terms["denoising"]
    with noise.seeded("latents"):
        latent = x[:, :2] + x[:, 2:] * noise.normal(5, 2, 8, 8, like=x)
        sigma = (-1.2 + 1.2 * noise.normal(5, like=x)).exp()
        noise.uniform(5, like=x)
        noisy = latent + sigma.view(-1, 1, 1, 1) * noise.normal(5, 2, 8, 8, like=x)
    error = (method.model(noisy, sigma, y) - latent).square().mean((1, 2, 3))
    torch.testing.assert_close(found, (weight(sigma, 0.8) * error).mean())
    assert not any("vae" in name for name in method.state_dict())


def test_images_are_encoded_once_and_a_run_resumes_bitwise(vae: str, tmp_path: Path, seen: list[int]) -> None:
    config = tiny.config("edm", options={"latent": vae, **OPTIONS}, steps=4, checkpoint_every=1)
    test_resume.assert_resumes(config, tmp_path, cuts=(1, 3))
    assert sum(seen) == 20  # labels_per_class is 2: once for all four starts
    kept = tiny.checkpoint(tmp_path / "whole")
    assert set(kept["externals"]) == {"vae"} and not any("vae" in name for name in kept["method"])
    longer = replace(config, setting=replace(config.setting, steps=6))
    saved(Path(vae), seed=1)
    with pytest.raises(UserError, match="another generator, teacher or autoencoder"):
        test_resume.fit(longer, tmp_path / "whole")


@pytest.fixture
def run(vae: str, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    given = tiny.content("edm", options={"latent": vae, "network": "unet-tiny", **OPTIONS}, steps=2)
    assert cli.main(["fit", *tiny.options(given), "--out", str(out)]) == 0
    return out


def test_a_run_is_a_generator_of_decoded_latents(run: Path, vae: str) -> None:
    assert weights.read_tensors(run / "samples.safetensors")["uniform"].shape == (100, 1, 16, 16)
    assert not any("vae" in name for name in weights.read_tensors(run / "model.safetensors"))
    loaded = generators.load(str(run))
    assert isinstance(loaded, Diffusion) and loaded.latent_shape == (2, 8, 8)
    assert generators.shape(loaded) == (1, 16, 16) and not any(p.requires_grad for p in loaded.parameters())
    z, y = torch.randn(3, 2, 8, 8), torch.tensor([0, 4, 9])
    with torch.no_grad():
        latent = heun(lambda x, s: loaded.denoiser(x, torch.full((3,), s), y), loaded.sigmas[0] * z, loaded.sigmas)
        decoded = autoencoder.load(vae, (1, 16, 16)).decoded(latent)
        torch.testing.assert_close(loaded(z, y), decoded, rtol=1e-4, atol=1e-5)
    assert 0 <= decoded.min() < decoded.max() <= 1


def test_a_generator_wants_the_autoencoder_of_its_run(run: Path, vae: str) -> None:
    saved(Path(vae), scaling_factor=0.4)
    with pytest.raises(UserError, match=r"trained with another autoencoder than lies at .*vae now"):
        generators.load(str(run))
    Path(vae, "config.json").unlink()
    with pytest.raises(UserError, match="no folder of an AutoencoderKL"):
        generators.load(str(run))


@pytest.mark.parametrize("sampler", ["heun", "dpm++"])
def test_it_is_differentiable_through_all_steps_and_the_decoder(vae: str, sampler: str) -> None:
    method = EDM((1, 16, 16), 3, None, latent=vae, sampler=sampler, **OPTIONS).double()  # type: ignore[arg-type]
    generator = method.generator_of(method.model)
    z, y = torch.randn(1, 2, 8, 8, dtype=torch.float64), torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)

    def value(z: Tensor, y: Tensor) -> Tensor:
        return (generator(z, y) * torch.linspace(-1, 1, 256, dtype=torch.float64).view(1, 1, 16, 16)).sum()

    z.requires_grad_(), y.requires_grad_()
    slopes = torch.autograd.grad(value(z, y), (z, y))
    for which, at in ((0, (0, 1, 2, 3)), (0, (0, 0, 7, 0)), (1, (0, 1))):
        ends = []
        for sign in (1, -1):
            moved = [z.detach().clone(), y.detach().clone()]
            moved[which][at] += sign * 1e-5
            ends.append(value(*moved).item())
        assert abs(slopes[which][at].item()) > 1e-7
        assert slopes[which][at].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_of_the_decoder_nothing_is_kept_for_the_way_back(vae: str) -> None:
    method = EDM((1, 16, 16), 3, None, latent=vae, **OPTIONS)  # type: ignore[arg-type]
    generator, z, kept = method.generator_of(method.model), torch.randn(2, 2, 8, 8, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        generator(z, torch.tensor([0, 2]))
    assert [size for size in kept if size > 1] == [z.numel()] * 4  # three steps and the decoder


def test_mistakes_are_told_before_anything_is_written(vae: str, tmp_path: Path) -> None:
    for options, told in (
        ({"latent": str(tmp_path)[:-1] + "?"}, "no folder of an AutoencoderKL"),
        ({"latent": saved(tmp_path / "deep", block_out_channels=(8,) * 6, down_block_types=("DownEncoderBlock2D",) * 6,
                          up_block_types=("UpDecoderBlock2D",) * 6)}, "shrinks sides by 32"),
        ({"latent": vae, "patch": 3}, "patches of 3 do not divide images of 8x8"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            single.fit(tiny.config("edm", options=options), tmp_path / "out", show=False)
        assert not (tmp_path / "out").exists()
