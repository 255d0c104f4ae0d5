"""The parts of a folder of diffusers: which weights are read, and what is said of those that are missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import folders
import pytest
import torch
from safetensors.torch import load_file, save_file

from semisynth import generators
from semisynth.errors import UserError
from semisynth.generators import Options, parts

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return Path(folders.text(tmp_path_factory.mktemp("made") / "folder"))


@pytest.fixture
def folder(text: Path, tmp_path: Path) -> Path:
    """One that may be changed."""
    return Path(shutil.copytree(text, tmp_path / "folder"))


def images(folder: Path) -> torch.Tensor:
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("a bee")
    generator = generators.load(folder, Options(prompts=str(prompts), sampler_steps=2))
    z = torch.randn(2, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    made: torch.Tensor = generator(z, torch.zeros(2, dtype=torch.int64))
    return made


def safetensors(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def test_weights_of_a_variant_are_read_where_there_are_no_others(text: Path, folder: Path) -> None:
    for file in safetensors(folder):
        save_file({key: value.half() for key, value in load_file(file).items()}, file, {"format": "pt"})
    rounded = images(folder)
    assert not rounded.equal(images(text))
    for file in safetensors(folder):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert images(folder).equal(rounded) and rounded.dtype == torch.float32


def test_so_they_are_in_many_files(text: Path, folder: Path) -> None:
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="5KB")
    assert len(list((folder / "unet").glob("*fp16-00002-of*.safetensors"))) == 1
    assert images(folder).equal(images(text))


def test_whole_weights_come_before_those_of_a_variant(text: Path, folder: Path) -> None:
    for file in safetensors(folder):
        torch.save(load_file(file), file.with_name("pytorch_model.bin" if file.stem == "model" else f"{file.stem}.bin"))
        save_file({key: value.half() for key, value in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))
        file.unlink()
    assert images(folder).equal(images(text))


@pytest.mark.parametrize(
    "missing, told",
    [
        ("unet", r"unet/config\.json is missing: give the whole folder, as diffusers saved it"),
        ("unet/config.json", r"unet/config\.json is missing"),
        ("unet/diffusion_pytorch_model.safetensors", r"unet holds no weights \(\*\.safetensors or \*\.bin\): give the"),
        ("scheduler", r"scheduler/scheduler_config\.json is missing: give the whole folder"),
        ("vae", r"vae/config\.json is missing: give the whole folder"),
        ("text_encoder", r"text_encoder/config\.json is missing: give the whole folder"),
        ("tokenizer", r"tokenizer has no vocabulary"),
    ],
)
def test_what_is_missing_is_told(missing: str, told: str, folder: Path) -> None:
    part = folder / missing
    (shutil.rmtree if part.is_dir() else Path.unlink)(part)
    with pytest.raises(UserError, match=told):
        images(folder)


@pytest.mark.parametrize(
    "names, found",
    [
        (["model.safetensors", "model.fp16.safetensors"], (False, None)),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"], (True, None)),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.fp16.safetensors"], (False, "fp16")),
        (["pytorch_model.fp16.bin"], (True, "fp16")),
        (["model-00001-of-00002.fp16.safetensors", "other.safetensors"], (False, "fp16")),
        (["diffusion_pytorch_model-00001-of-00002.safetensors", "tf_model.h5"], (False, None)),
    ],
)
def test_of_several_files_the_whole_ones_and_safe_ones_come_first(
    names: list[str], found: tuple[bool, str | None], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert parts._weights(tmp_path) == found
