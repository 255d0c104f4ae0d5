"""The latents of an autoencoder: their scale, the way back, gray images, gradients, and what cannot be one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from autoencoders import saved

from semisynth.errors import UserError
from semisynth.models import autoencoder

SHAPE = (1, 8, 8)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(3, *(shape or SHAPE), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "options", [{}, {"shift_factor": 0.3}, {"latents_mean": (0.1, -0.2), "latents_std": (2.0, 0.5)}]
)
def test_moments_are_those_of_the_network_shifted_and_scaled(tmp_path, options) -> None:  # type: ignore[no-untyped-def]
    vae = autoencoder.load(saved(tmp_path / "vae", **options), SHAPE)
    assert vae.latent_shape == (2, 4, 4) and not vae.training
    mean, spread = vae(images()).chunk(2, 1)
    found = vae.network.encode(2 * images() - 1).latent_dist
    center = options.get("latents_mean", options.get("shift_factor", 0.0))
    scale = 0.5 / torch.tensor(options.get("latents_std", 1.0)).view(-1, 1, 1)
    torch.testing.assert_close(mean, (found.mean - torch.tensor(center).view(-1, 1, 1)) * scale)
    torch.testing.assert_close(spread, found.std * scale)
    back = ((vae.network.decode(found.mean).sample + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(vae.decoded(mean), back, rtol=1e-4, atol=1e-5)
    assert 0 <= back.min() < back.max() <= 1


def test_gray_images_are_repeated_and_averaged(tmp_path: Path) -> None:
    source = saved(tmp_path / "vae", in_channels=3, out_channels=3)
    gray, colours = autoencoder.load(source, SHAPE), autoencoder.load(source, (3, 8, 8))
    assert gray(images()).equal(colours(images().expand(-1, 3, -1, -1)))
    latent = torch.randn(3, *gray.latent_shape)
    raw = colours.network.decode(latent / 0.5).sample
    torch.testing.assert_close(gray.decoded(latent), ((raw.mean(1, keepdim=True) + 1) / 2).clamp(0, 1))
    assert colours.decoded(latent).shape == (3, 3, 8, 8)


def test_it_is_found_in_its_folder_and_in_that_of_a_pipeline(tmp_path: Path) -> None:
    saved(tmp_path / "vae")
    one, other = (autoencoder.load(str(place), SHAPE) for place in (tmp_path / "vae", tmp_path))
    assert one(images()).equal(other(images()))


def test_it_draws_nothing_from_what_others_draw_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    source, read = saved(tmp_path), diffusers.AutoencoderKL.from_pretrained

    def drawing(*arguments: object, **options: object) -> object:
        torch.rand(1)  # as earlier versions do
        return read(*arguments, **options)

    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", drawing)
    before = torch.random.get_rng_state()
    autoencoder.load(source, SHAPE)
    assert torch.random.get_rng_state().equal(before)


def test_the_hub_is_asked_only_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    asked = []

    def fetch(place: str, subfolder: str | None, **options: object) -> object:
        asked.append((place, subfolder))
        raise OSError("no network")

    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", fetch)
    for name in ("hub:owner/name", "hub:owner/name/vae"):
        with pytest.raises(UserError, match=f"latent {name} cannot be read: no network"):
            autoencoder.load(name, SHAPE)
    assert asked == [("owner/name", None), ("owner/name", "vae")]
    for name, told in (("hub:name", "is hub:OWNER/NAME"), ("owner/name", "no folder"), (str(tmp_path), "no folder")):
        with pytest.raises(UserError, match=told):
            autoencoder.load(name, SHAPE)
    assert len(asked) == 2


def test_what_does_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "vae")
    with pytest.raises(UserError, match="shrinks sides by 2, which does not divide 8x7"):
        autoencoder.load(source, (1, 8, 7))
    with pytest.raises(UserError, match="reads 1 channels and gives 1, the images have 3"):
        autoencoder.load(source, (3, 8, 8))
    config = tmp_path / "vae" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="no folder of an AutoencoderKL"):
        autoencoder.load(source, SHAPE)
    config.write_text(json.dumps(content))
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        autoencoder.load(source, SHAPE)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"latent needs .* pip install 'semisynth\[diffusers\]'"):
        autoencoder.load(source, SHAPE)
