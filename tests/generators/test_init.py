"""Generators from a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from safetensors.torch import save_file

from semisynth import generators
from semisynth.data import datasets
from semisynth.data.through import Through
from semisynth.errors import UserError
from semisynth.generators.gan import ConditionalGenerator
from semisynth.recipes.restore import trained
from semisynth.separable import auroc
from semisynth.weights import SHIPPED


def run(path: Path, method: dict[str, Any], width: int = 8) -> ConditionalGenerator:
    """A run directory of this method, and the generator whose weights lie there."""
    made = ConditionalGenerator(zoo.SHAPE, zoo.FOUNDATION, zoo.LATENT, width=width)
    (path / "config.json").write_text(json.dumps({"method": method}))
    (path / "result.json").write_text(json.dumps({"shape": zoo.SHAPE, "classes": zoo.FOUNDATION}))
    save_file(made.state_dict(), path / "model.safetensors")
    return made


GAN = {"name": "gan", "latent": zoo.LATENT, "width": 8}


def test_a_run_of_the_gan_is_loaded_constant_and_in_eval_mode(tmp_path: Path) -> None:
    made, loaded = run(tmp_path, GAN), generators.load(str(tmp_path))
    z, y = torch.randn(4, zoo.LATENT), torch.arange(4)
    assert loaded(z, y).equal(made(z, y))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert (loaded.latent_shape, loaded.classes) == ((zoo.LATENT,), zoo.FOUNDATION)


def test_what_is_not_a_generator_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown generator .* 'glyph': did you mean 'glyphs'"):
        generators.load("glyph")
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        generators.load(str(tmp_path))
    run(tmp_path, {"name": "mpssl"})
    with pytest.raises(UserError, match=f"{tmp_path} is not a run of --method gan, vae or edm"):
        generators.load(str(tmp_path))
    run(tmp_path, GAN, width=16)
    with pytest.raises(UserError, match=r"model\.safetensors does not fit"):
        generators.load(str(tmp_path))


def test_a_record_without_its_sizes_is_named(tmp_path: Path) -> None:
    run(tmp_path, {"name": "gan"})
    with pytest.raises(UserError, match=r"config\.json or result\.json is not as fit wrote it"):
        generators.load(str(tmp_path))


@pytest.mark.parametrize("name, classes", [("glyphs", 62), ("letters", 52)])
def test_the_shipped_generators_make_characters_of_their_class(name: str, classes: int) -> None:
    """A classifier that never saw a synthetic image reads most of them as what was asked for."""
    shipped, data = generators.load(name), datasets.load(name)
    _, reader, _ = trained(SHIPPED / "glyphs-small-cnn", torch.device("cpu"))
    y = torch.arange(classes).repeat(4)
    with torch.no_grad():
        read = reader(shipped(torch.randn(len(y), *shipped.latent_shape), y)).argmax(1) - (62 - classes)
    assert shipped.classes == len(data.classes) == classes and (read == y).float().mean() > 0.8
    assert (SHIPPED / f"{name}-generator" / "model.safetensors").stat().st_size < 2**20


@pytest.mark.parametrize("name", generators.OF_DIGITS)
def test_the_shipped_generators_of_digits_make_digits_that_are_hard_to_tell_from_others(name: str) -> None:
    """The nearest image of the pool is of the class that was asked for, and the simple detector is unsure."""
    shipped, pool = generators.load(name), datasets.load("digits-pool").pool
    y = torch.arange(300) % 10
    with torch.no_grad():
        images = Through.parse("8x8:17")(shipped(torch.randn(300, *shipped.latent_shape), y))
    nearest = torch.cdist(images.flatten(1).float(), pool.x.flatten(1).float()).argmin(1)
    assert (pool.y[nearest] == y).float().mean() > 0.95 and generators.class_names(name) == tuple("0123456789")
    assert 0.5 < auroc(pool.x, images) < 0.9
