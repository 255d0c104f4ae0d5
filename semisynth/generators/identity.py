"""What determines the images of a generator from elsewhere besides its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from semisynth.generators.protocol import Generator
from semisynth.weights import read_json


def identify(generator: Generator, told: Mapping[str, Any]) -> None:
    """Keep a hash of this among the generator's buffers, so that `External.fingerprint` is of it too.

    told: what JSON can hold. Generators that were made here do without: the configuration of their run tells it.
    """
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()
    generator.register_buffer("identity", torch.tensor(list(digest), dtype=torch.uint8))


def configured(folder: Path, files: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What those of a folder's JSON files that are there say of the computation; versions and paths say nothing."""
    read = {file: read_json(folder / file) for file in files if (folder / file).is_file()}
    return {
        file: {name: value for name, value in content.items() if name == "_class_name" or not name.startswith("_")}
        for file, content in read.items()
    }
