"""Image files for tests, each another one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def image(seed: int = 0, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> Image.Image:
    """Noise of this width and height."""
    w, h = size
    pixels = np.random.RandomState(seed).randint(256, size=(h, w, 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of its file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def save(path: Path, seed: int = 0, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> Path:
    """Write such an image, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image(seed, size, mode).save(path)
    return path


def folder(
    root: Path,
    per_class: int = 4,
    classes: Sequence[str] = ("cat", "dog"),
    splits: Sequence[str] = ("train", "test"),
    size: tuple[int, int] = (9, 7),
    mode: str = "RGB",
) -> Path:
    """A folder of images by split and class."""
    for s, split in enumerate(splits):
        for c, name in enumerate(classes):
            for i in range(per_class):
                save(root / split / name / f"{i}.png", 1000 * s + 100 * c + i, size, mode)
    return root


def manifest(path: Path, *rows: str, head: str = "path,label,split") -> Path:
    """A manifest of such rows."""
    path.write_text("\n".join([head, *rows]) + "\n")
    return path
