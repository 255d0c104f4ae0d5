"""Difficulty: what a judge says, that the denoiser is told, and that images are asked for by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import zoo
from torch import Tensor

from semisynth import generators, noise
from semisynth.difficulty import Judge
from semisynth.errors import UserError
from semisynth.generators.diffusion import MEDIUM, Denoiser, Diffusion, denoiser_of, guided
from semisynth.methods import EDM
from semisynth.recipes import restore, single
from semisynth.recipes.materials import Materials

SIGMA = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
Y = torch.tensor([2, 0, -1])


def denoiser(told: bool = True) -> Denoiser:
    torch.manual_seed(0)
    return denoiser_of(zoo.SHAPE, zoo.CLASSES, "tiny", 4, 0.5, told).double()


def at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_difficulty_is_the_doubt_of_the_classifier_about_the_label() -> None:
    logits = zoo.normal(5, 4, 2.0, 0)
    judge = Judge(zoo.Reader(4), torch.tensor([3, 0, 2]))
    y = torch.tensor([0, 1, 2, 0, 1])
    found = judge(logits[:, :, None, None], y)
    for row, label, value in zip(logits.tolist(), y.tolist(), found.tolist(), strict=True):
        total = sum(torch.tensor(row, dtype=torch.float64).exp().tolist())
        assert value == pytest.approx(
            1 - float(torch.tensor(row[[3, 0, 2][label]], dtype=torch.float64).exp()) / total, abs=1e-12
        )
    assert not found.requires_grad and not judge.state_dict()


def test_the_denoiser_is_told_class_and_difficulty_but_nothing_without_a_class() -> None:
    model, x = denoiser(), zoo.normal(3, 64, 1.0, 0).view(3, *zoo.SHAPE)
    easy, hard = model(x, SIGMA, Y, at(0.1, 0.1, 0.1)), model(x, SIGMA, Y, at(0.9, 0.9, 0.9))
    assert (easy[:2] - hard[:2]).abs().amax() > 1e-6 and easy[2].equal(hard[2])
    assert model(x, SIGMA, Y).equal(model(x, SIGMA, Y, at(MEDIUM, MEDIUM, MEDIUM)))
    assert model(x, SIGMA).equal(model(x, SIGMA, torch.full((3,), -1)))
    soft = torch.eye(3, dtype=torch.float64)[[2, 0, 1]]
    torch.testing.assert_close(
        model(x, SIGMA, soft, at(0.3, 0.3, 0.3)), model(x, SIGMA, torch.tensor([2, 0, 1]), at(0.3, 0.3, 0.3))
    )
    assert denoiser(told=False).tell is None


def test_the_sampler_asks_for_the_difficulty_of_each_image() -> None:
    model, z = denoiser(), zoo.normal(2, 64, 1.0, 1).view(2, *zoo.SHAPE)
    y = torch.tensor([1, 2])
    generator = Diffusion(model, steps=3, guidance=1.5, hard=0.9)
    assert generator(z, y).equal(generator(z, y, at(0.9, 0.9)))
    mixed = generator(z, y, at(0.9, 0.1))
    torch.testing.assert_close(mixed[:1], generator(z[:1], y[:1]))
    assert (mixed[1] - generator(z, y)[1]).abs().amax() > 1e-9
    level, hard = torch.full((2,), 2.0, dtype=torch.float64), at(0.9, 0.1)
    expected = model(z, level) + 1.5 * (model(z, level, y, hard) - model(z, level))
    torch.testing.assert_close(guided(model, y, 1.5, (0, 80), hard)(z, 2.0), expected)
    with pytest.raises(UserError, match="hard"):
        Diffusion(model, hard=1.5)


def test_the_loss_tells_what_the_judge_says() -> None:
    judge = Judge(zoo.network("cnn-group-silu"), torch.arange(3))
    method, data = EDM(zoo.SHAPE, zoo.CLASSES, judge, patch=4, drop=0.0).double(), zoo.batch()
    seen: list[Tensor] = []
    inner = method.model.forward
    method.model.forward = lambda x, s, y, hard: seen.append(hard) or inner(x, s, y, hard)  # type: ignore[assignment]
    with noise.seeded(0):
        method.loss(data)
    assert seen[0].equal(judge(data.x, data.y)) and seen[0].std() > 0


def test_a_run_with_a_judge_is_a_generator_that_asks(tmp_path: Path) -> None:
    single.fit(tiny.config("supervised", steps=3), tmp_path / "judge", show=False)
    config = tiny.config("edm", None, {"patch": 8, "sampler_steps": 2, "hard": 0.2}, judge=str(tmp_path / "judge"))
    single.fit(config, tmp_path / "run", show=False)
    generator = generators.load(str(tmp_path / "run"))
    assert isinstance(generator, Diffusion) and generator.hard == 0.2
    with noise.seeded(0):
        z = noise.normal(2, *generator.latent_shape, like=torch.empty(0))
    y = torch.tensor([0, 1])
    assert generator(z, y).equal(generator(z, y, torch.full((2,), 0.2)))
    judge = Materials(config).method.judge
    _, classifier, names, _ = restore.classifier(tmp_path / "judge", torch.device("cpu"))
    x = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(judge(x, torch.tensor([4, 4, 0])), 1 - classifier(x).softmax(1)[range(3), [4, 4, 0]])
    assert names == tuple("0123456789")


def test_a_judge_of_other_classes_or_images_is_refused(tmp_path: Path) -> None:
    for name, data in (("letters", "letters"), ("own", "digits")):
        single.fit(tiny.config("supervised", steps=1, data=data), tmp_path / name, show=False)
    with pytest.raises(UserError, match=r"--judge .*letters knows no class '0': give a classifier of these images"):
        Materials(tiny.config("edm", judge=str(tmp_path / "letters")))
    with pytest.raises(UserError, match="method 'fixmatch' does not read judge"):
        Materials(tiny.config("fixmatch", judge=str(tmp_path / "own")))
