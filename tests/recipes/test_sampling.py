"""How many images a recipe has a generator make at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from semisynth import generators
from semisynth.generators import Options
from semisynth.generators.diffusion import Diffusion, denoiser_of
from semisynth.generators.gan import ConditionalGenerator
from semisynth.recipes import sampling, shards, single
from semisynth.recipes.generate import Generate, generate
from semisynth.recipes.sampling import Maker, together
from semisynth.recipes.shards import Sampler

CPU = torch.device("cpu")
DIGITS = tuple("0123456789")


@pytest.mark.parametrize(
    "shape, at_a_time",
    [((1, 16, 16), 256), ((3, 64, 64), 256), ((3, 128, 128), 85), ((3, 512, 512), 5), ((3, 2048, 2048), 1)],
)
def test_large_images_are_made_few_at_a_time(shape: tuple[int, int, int], at_a_time: int) -> None:
    assert together(shape) == at_a_time


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of a network was asked for, where 3 of 16x16 are the most."""
    found: list[int] = []

    def counted(kind: type) -> None:
        forward: Callable[..., Tensor] = kind.forward  # type: ignore[attr-defined]

        def counting(self: Any, z: Tensor, *given: Any) -> Tensor:
            found.append(len(z))
            return forward(self, z, *given)

        monkeypatch.setattr(kind, "forward", counting)

    for kind in (ConditionalGenerator, Diffusion):
        counted(kind)
    monkeypatch.setattr(sampling, "VALUES", 3 * 16 * 16 + 1)
    return found


def test_a_mix_and_dpt_make_them_so(calls: list[int]) -> None:
    maker = Maker.of("glyphs", Options(), "equal", DIGITS, (1, 8, 8), CPU)
    calls.clear()
    few = torch.stack(list(maker.sample([0, 1, 2, 3, 4], range(5))))
    assert calls == [3, 2] and few.shape == (5, 1, 8, 8)
    whole = Maker(maker.name, maker.generator, maker.asked, CPU)
    torch.testing.assert_close(torch.stack(list(whole.sample([0, 1, 2, 3, 4], range(5)))), few)


def test_generate_makes_them_so(calls: list[int], tmp_path: Path) -> None:
    generate(Generate("glyphs", count=7), tmp_path, show=False)
    assert calls[-3:] == [3, 3, 1]


def test_a_diffusion_model_of_ours_makes_them_so(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    made = Diffusion(denoiser_of((1, 16, 16), 10, "tiny", 4, 0.5, True), 1).eval()
    monkeypatch.setattr(shards, "loaded", lambda sampler: made)
    monkeypatch.setattr(generators, "class_names", lambda name: DIGITS)
    for conditional, hard in ((True, None), (False, None), (True, 0.5)):
        calls.clear()
        asked = Sampler("run", 1, 1.0, "heun", 0, "cpu", conditional, hard)
        x, classes = asked.images(range(5), range(5))
        assert calls == [3, 2] and x.shape == (5, 1, 16, 16) and classes == list("01234")


def test_a_run_s_samples_are_made_so(calls: list[int], generator: str, tmp_path: Path) -> None:
    config = tiny.config("fixmatch", generator, unlabeled="generator")
    single.fit(config, tmp_path, show=False)
    assert calls[-34:] == [3] * 33 + [1]
    assert len(load_file(tmp_path / "samples.safetensors")["uniform"]) == 100
