"""Arrays in an .npz file: `images`, `labels` with -1 for unlabeled, and perhaps `split` and `classes`."""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from semisynth.data import items
from semisynth.data.catalog import SPLITS, Listing
from semisynth.data.items import Arrays, shown
from semisynth.data.manifests import placed
from semisynth.errors import UserError, line


def read(path: str, labels: bool = True) -> Listing:
    """The listing of such a file; labels: whether there must be any."""
    found = loaded(path, ("images", "labels", "split", "classes"))
    if not labels and "images" in found:
        found.setdefault("labels", np.full(len(found["images"]), -1))
    for name in ("images", "labels"):
        if name not in found:
            raise UserError(f"{path}: the array '{name}' is missing. It needs images and labels (-1 for unlabeled).")
    return listing(path, items.stamp(path), **found)


def loaded(path: str, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of these names that there are."""
    try:
        with _binary(path) as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file.files}
    except UserError:
        raise
    except Exception as error:  # damaged archives raise nearly anything
        raise UserError(f"{path} cannot be read ({line(error)}): it must be an .npz file of plain arrays.") from error


def _binary(path: str) -> IO[bytes]:
    return io.BytesIO(items.listed(path)) if items.remote(path) else open(path, "rb")


def listing(
    source: str,
    stamp: str,
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    split: npt.NDArray[Any] | None = None,
    classes: npt.NDArray[Any] | Sequence[str] | None = None,
) -> Listing:
    """The listing of images (n, h, w) or (n, h, w, c), uint8 or float in [0, 1], and labels (n,), -1 for unlabeled."""
    images, notes = eight_bits(source, images)
    if labels.ndim == 1 and len(labels) != len(images):
        raise UserError(f"{source}: {len(images)} images, {len(labels)} labels: give each image one, -1 for none.")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{source}: labels have shape {labels.shape} and type {labels.dtype}: give a whole number each."
        )
    if split is not None and (split.shape != labels.shape or split.dtype.kind not in "US"):
        raise UserError(f"{source}: split has shape {split.shape} and type {split.dtype}: give one of {SPLITS} each.")
    names = None if classes is None else tuple(shown(str(name).strip()) for name in np.asarray(classes).reshape(-1))
    if names is not None and len(set(names)) < len(names):
        raise UserError(f"{source}: classes holds a name twice: give each class a name of its own.")
    high = math.inf if names is None else len(names)
    rows = []
    for row, label in enumerate(labels.tolist()):
        if not -1 <= label < high:
            raise UserError(f"{source}: labels[{row}] is {label}: give a number from 0, below that of classes, or -1.")
        text = None if label < 0 else names[label] if names else str(label)
        part = "" if split is None else np.asarray(split[row], str).item()
        rows.append(placed(f"{source}, images[{row}]", text, part))
    splits = array("B", (number for _, number in rows))
    return Listing(Arrays(images, stamp), [text for text, _ in rows], splits, notes, names)


def _check_shape(source: str, images: npt.NDArray[Any]) -> None:
    if images.ndim not in (3, 4) or not images.size or images.shape[3:] not in ((), (1,), (3,), (4,)):
        first = " It seems to have channels first." if images.ndim == 4 and images.shape[1] in (1, 3, 4) else ""
        raise UserError(f"{source}: images have shape {images.shape}, not (n, h, w) or (n, h, w, channels).{first}")


def eight_bits(source: str, images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Images (n, h, w) or (n, h, w, c) in uint8, and what was done; `UserError` for other shapes, types or values."""
    _check_shape(source, images)
    if images.dtype == np.uint8:
        return images, []
    low, high = (float(images.min()), float(images.max())) if images.dtype.kind == "f" else (math.nan, math.nan)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{source}: images are {images.dtype}"
            + (f" in [{low:g}, {high:g}]" if images.dtype.kind == "f" else "")
            + ": give uint8, or floats in [0, 1]."
        )
    scaled = np.empty(images.shape, np.uint8)
    for row, image in enumerate(images):  # one by one: the whole in floats would take eight times the memory
        scaled[row] = np.rint(255 * image)
    return scaled, ["images in floating point rounded to 8 bits"]
