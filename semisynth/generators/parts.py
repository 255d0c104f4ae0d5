"""The parts of a folder that diffusers saved: configurations, networks and vocabularies, or what is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from semisynth import optional
from semisynth.errors import UserError, sentence
from semisynth.weights import read_json

TEXT = "a text-to-image model"
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # without one the library makes one up
WHOLE = "give the whole folder, as diffusers saved it"
# As diffusers and transformers call weights: of a variant, as fp16, in many files or in one.
SHARD = r"(?:-\d+-of-\d+)?"
WEIGHTS = re.compile(rf"(?:diffusion_pytorch_|pytorch_)?model{SHARD}(?:\.([a-z_0-9]+))?{SHARD}\.(safetensors|bin)")


def told(file: Path) -> dict[str, Any]:
    """What a configuration says; `UserError` if it is missing or damaged."""
    if not file.is_file():
        raise UserError(f"{file} is missing: {WHOLE}.")
    return read_json(file)


def network(kind: Any, path: Path, part: str, dtype: torch.dtype | None = None) -> Any:
    """The network in the folder `part`; `UserError` if it cannot be read, or its weights are not those it asks for.

    Pickles are read where there is nothing else, as tensors alone: both libraries ask torch for weights_only.
    """
    folder = path / part
    told(folder / "config.json")
    pickled, variant = _weights(folder)
    way = "convert its weights, where you trust them, to safetensors" if pickled else "give the whole folder"
    known: dict[str, Any] = {"use_safetensors": not pickled, "local_files_only": True, "output_loading_info": True}
    known |= {"variant": variant} if variant else {}
    if dtype is not None:  # as diffusers calls it, which spares memory only with another library
        known |= {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    try:
        with torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            found, info = kind.from_pretrained(folder, **known)
    except Exception as error:  # files fail in many ways
        raise UserError(f"{folder} cannot be read: {sentence(error)} Please {way}.") from error
    wrong = [*info["missing_keys"], *(key for key in info["unexpected_keys"] if key.endswith((".weight", ".bias")))]
    if wrong or info.get("mismatched_keys"):
        first = wrong[0] if wrong else info["mismatched_keys"][0]
        raise UserError(f"{folder}: config.json is not that of its weights, which differ in {first}: restore it.")
    return found


def _weights(folder: Path) -> tuple[bool, str | None]:
    """Whether the weights to be read are a pickle, and the variant that they are: what is no variant comes first."""
    files = [found for file in sorted(folder.iterdir()) if (found := WEIGHTS.fullmatch(file.name))]
    if not files:
        raise UserError(f"{folder} holds no weights (*.safetensors or *.bin): {WHOLE}.")
    first = min(files, key=lambda file: (file[1] is not None, file[2] == "bin"))
    return first[2] == "bin", first[1]


def tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder; `UserError` if it cannot be read."""
    if not any(all((folder / file).is_file() for file in files) for files in VOCABULARIES):
        raise UserError(f"{folder} has no vocabulary ({' or '.join(map(' and '.join, VOCABULARIES))}): restore it.")
    try:
        return optional.library("transformers", TEXT).CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # files fail in many ways
        raise UserError(f"{folder} cannot be read: {sentence(error)} Please give the whole folder.") from error
