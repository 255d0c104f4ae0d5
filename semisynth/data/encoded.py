"""What a network makes of images, computed once, into a file that is read as if it were memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from semisynth import weights
from semisynth.data import cache
from semisynth.data.datasets import Images
from semisynth.data.stored import Stored
from semisynth.data.stream import to_float
from semisynth.errors import UserError
from semisynth.method import External

TOGETHER = 16  # images at a time


def encoded(images: Images, encoder: External[Any], device: torch.device) -> Images:
    """The images with, in place of their pixels, what the encoder makes of them in [0, 1]: float32, in a file.

    It lies where decoded images do (see `cache`), under a hash of the encoder and of the pixels, and so serves every
    run on them. Cut off, it is made anew. `UserError` if there is no room for it.
    """
    place = cache.folder() / f"encoded-{_key(images, encoder)}"
    file = place / "encoded.npy"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):  # another rank or process may be at it
            if not file.exists():
                _write(images, encoder.to(device), device, file)
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror or error}): set SEMISYNTH_CACHE.") from error
    return Images(_stored(file), images.y)


def _key(images: Images, encoder: External[Any]) -> str:
    digest = hashlib.blake2b(f"{encoder.fingerprint()} {tuple(images.x.shape)}".encode(), digest_size=12)
    for x in images.batches(1000):
        digest.update(x.numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _write(images: Images, encoder: nn.Module, device: torch.device, file: Path) -> None:
    """An array of NumPy's format, written from its first row to its last: a full disk is an error, not a signal."""
    with weights.replacing(file) as beside, beside.open("wb") as out, cache.Bar("encoding", len(images), 0) as bar:
        for x in images.batches(TOGETHER):
            found = encoder(to_float(x.to(device))).float().cpu()
            if out.tell() == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), *found.shape[1:])}
                np.lib.format.write_array_header_1_0(out, header)
            out.write(found.numpy().astype("<f4").tobytes())
            bar.step(len(x))


def _stored(file: Path) -> Stored:
    try:
        there = np.load(file, mmap_mode="r")
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): delete it, and it will be made again.") from error
    return Stored(file, there.shape[1:], torch.arange(len(there)), torch.float32, there.offset)
