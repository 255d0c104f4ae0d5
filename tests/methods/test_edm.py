"""The loss of EDM against a loop, classes that are left out, and a run that is a generator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
import zoo
from torch import Tensor

from semisynth import generators, noise, weights
from semisynth.difficulty import Judge
from semisynth.errors import UserError
from semisynth.generators.diffusion import Diffusion
from semisynth.methods import EDM
from semisynth.methods.edm import weight
from semisynth.models.unet import UNet
from semisynth.recipes import single
from semisynth.recipes.mix import Mix, mix


def edm(judge: Judge | None = None, **options: Any) -> EDM:
    return EDM(zoo.SHAPE, zoo.CLASSES, judge, **{"patch": 4, **options}).double()


@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_the_loss_is_that_of_a_loop(drop: float) -> None:
    method, data = edm(drop=drop, deviation=0.6), zoo.batch()
    with noise.seeded("edm"):
        found = method.loss(data).terms["denoising"]
    with noise.seeded("edm"):
        levels = noise.normal(6, like=data.x)
        left_out = noise.uniform(6, like=data.x) < drop
        drawn = noise.normal(*data.x.shape, like=data.x)
    assert drop in (0, 1) or 0 < left_out.sum() < 6
    expected = 0.0
    for x, y, level, out, e in zip(data.x, data.y, levels.tolist(), left_out.tolist(), drawn, strict=True):
        sigma, image = math.exp(-1.2 + 1.2 * level), 2 * x - 1
        at = torch.tensor([sigma], dtype=torch.float64)
        denoised = method.model((image + sigma * e)[None], at, None if out else y[None])[0]
        by_pixel = [(a - b) ** 2 for a, b in zip(denoised.flatten().tolist(), image.flatten().tolist(), strict=True)]
        expected += (sigma**2 + 0.6**2) / (sigma * 0.6) ** 2 * sum(by_pixel) / len(by_pixel)
    assert found.item() == pytest.approx(expected / 6, rel=1e-10)


def test_the_weight_undoes_the_scale_of_the_network() -> None:
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    out = sigma * 0.5 / (sigma.square() + 0.25).sqrt()
    torch.testing.assert_close(weight(sigma, 0.5) * out.square(), torch.ones(3, dtype=torch.float64))


def test_one_update_moves_the_denoiser_by_adamw() -> None:
    method = edm(model_lr=3e-4)
    (update,) = method.updates().values()
    assert update.module is method.model and update.optimizer is not None
    optimizer = update.optimizer(update.module.parameters())
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.param_groups[0]["lr"] == 3e-4
    assert all(slope.abs().sum() > 0 for slope in zoo.gradients(method, "denoiser", zoo.batch()))


def test_samples_are_of_the_classes_in_turn() -> None:
    method, like = edm(sampler_steps=3, guidance=1.5), zoo.batch().x
    with noise.seeded(0), torch.no_grad():
        found: Tensor = method.samples(5, like)["uniform"]
    with noise.seeded(0), torch.no_grad():
        z = noise.normal(5, *zoo.SHAPE, like=like)
        assert found.equal(Diffusion(method.model, 3, 1.5)(z, torch.tensor([0, 1, 2, 0, 1])))


def test_options_are_checked() -> None:
    for options, told in (
        ({"drop": 2.0}, "drop is 2"),
        ({"patch": 3}, "patches of 3"),
        ({"network": "x"}, "network"),
        ({"network": "unet-tiny", "patch": 2}, "network 'unet-tiny' has no patches"),
        ({"sampler": "x"}, "unknown sampler"),
        ({"sampler_steps": 0}, "steps is 0"),
    ):
        with pytest.raises(UserError, match=told):
            edm(**options)


def test_a_short_run_is_a_generator_whose_classes_look_like_theirs(tmp_path) -> None:  # type: ignore[no-untyped-def]
    options = {"sampler_steps": 6, "guidance": 1.2}
    config = tiny.config("edm", options=options, labels_per_class=5, steps=250, batch=50, ema=0.95)
    result = single.fit(config, tmp_path / "run", show=False)
    assert result["task"] == "generate" and (tmp_path / "run" / "samples.png").exists()
    lines = tiny.log(tmp_path / "run")
    assert lines[-1]["denoiser/denoising"] < 0.7
    loaded = generators.load(str(tmp_path / "run"))
    assert isinstance(loaded, Diffusion) and (loaded.latent_shape, loaded.classes) == ((1, 16, 16), 10)
    assert (len(loaded.sigmas), loaded.guidance) == (7, 1.2) and not loaded.training
    mixed = mix(Mix("digits-pool", [str(tmp_path / "run")], images=20), tmp_path / "pool")
    assert mixed["sources"] == {"real": 12, str(tmp_path / "run"): 8}


def test_a_u_net_and_the_other_sampler_are_options(tmp_path) -> None:  # type: ignore[no-untyped-def]
    options = {"network": "unet-tiny", "sampler": "dpm++", "sampler_steps": 3}
    config = tiny.config("edm", options=options, steps=2)
    single.fit(config, tmp_path / "run", show=False)
    loaded = generators.load(str(tmp_path / "run"))
    assert isinstance(loaded, Diffusion) and isinstance(loaded.denoiser.network, UNet)
    z, y = torch.randn(2, *loaded.latent_shape), torch.tensor([0, 1])
    with torch.no_grad():
        assert loaded(z, y).equal(Diffusion(loaded.denoiser, 3, sampler="dpm++")(z, y))
    content = weights.read_json(tmp_path / "run" / "config.json")
    del content["method"]["sampler"]  # as an earlier version wrote it
    weights.write_json(tmp_path / "run" / "config.json", content)
    with torch.no_grad():
        assert generators.load(str(tmp_path / "run"))(z, y).equal(Diffusion(loaded.denoiser, 3)(z, y))
