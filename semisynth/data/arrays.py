"""Arrays as scikit-learn has them, made what a `Dataset` holds: images of 8 bits, and numbered classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from semisynth.errors import UserError

Array = npt.NDArray[Any]
Range = tuple[float, float]  # what is black, and what is white
SMALLEST = 8  # pixels of a side that rows of features are laid out in
BLOCK = 4096  # rows that are scaled at a time
UNNAMED = {"None", "nan", "<NA>", "-1", "-1.0"}  # how a label that there is not is written, if it is no string


def numbered(y: Any, n: int) -> tuple[npt.NDArray[np.int64], Array]:
    """Labels (n,) as numbers of classes, -1 for none, and the sorted classes.

    Missing are -1, None, nan and blank text. `UserError` for fewer than two classes; what scikit-learn refuses raises a
    ValueError of its own.
    """
    if y is None:
        raise UserError("SemiSynthClassifier requires y to be passed, but the target y is None.")
    # Of a list with text and nan, numpy would make the text "nan".
    y = column_or_1d(np.array(y, object) if isinstance(y, list) else y, warn=True)
    check_consistent_length(range(n), y)
    known = np.array([not _missing(value) for value in y.tolist()], bool)
    named = y[known]
    if not len(named):
        raise UserError("no label in y: all are -1, NaN, None or blank. Label an image of each class.")
    if named.dtype == object:
        if len({isinstance(value, str) for value in named}) > 1:
            raise UserError("y has both text and numbers as labels: give classes of one kind.")
        named = named if isinstance(named[0], str) else np.array(named.tolist())
    if named.dtype.kind == "f" and not np.isfinite(named).all():
        raise UserError("y holds infinity: give classes, and -1, NaN or None where there is no label.")
    check_classification_targets(named)
    classes, index = np.unique(named, return_inverse=True)
    if len(classes) < 2:
        only = classes.tolist()[0]
        raise UserError(f"y has one class only, {only!r} (-1 is no label): label images of another class too.")
    labels = np.full(n, -1, np.int64)
    labels[known] = index
    return labels, classes


def _missing(value: object) -> bool:
    return not value.strip() if isinstance(value, str) else str(value) in UNNAMED


def shape(given: Sequence[int] | None, features: int) -> tuple[int, int, int]:
    """Height, width and channels of an image of so many numbers.

    Unless they are given, it is a square of one channel: the smallest that holds the numbers, of at least 8x8.
    """
    if given is None:
        side = max(SMALLEST, math.isqrt(max(features - 1, 0)) + 1)
        return side, side, 1
    h, w, c = sizes if len(sizes := (*given, 1)[:3]) == 3 else (0, 0, 0)
    if c not in (1, 3) or min(h, w) < 1 or h * w * c != features:
        raise UserError(
            f"{features} numbers cannot be an image of shape {tuple(given)}: give (n, h, w) or (n, h, w, c) with 1 or "
            "3 channels c, or the right image_shape for rows of pixels."
        )
    return int(h), int(w), int(c)


def scale(rows: Array) -> Range:
    """0 and 255 for uint8; 0 and 1 where all numbers lie between; else the smallest and the largest."""
    if rows.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(rows.min()), float(rows.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def levels(rows: Array, black_white: Range) -> Array:
    """Rows in 256 levels from black to white, where what lies beyond is cut."""
    low, high = black_white
    if rows.dtype == np.uint8 and black_white == (0.0, 255.0):
        return rows
    found = np.empty(rows.shape, np.uint8)
    for first in range(0, len(rows), BLOCK):
        part = rows[first : first + BLOCK]
        part = part if part.dtype.kind == "f" else part.astype(np.float64)
        found[first : first + BLOCK] = np.rint((part - low) * (255 / (high - low or 1))).clip(0, 255)
    return found


def laid_out(rows: Array, size: tuple[int, int, int]) -> Array:
    """Rows (n, features) as images (n, c, h, w), where black follows what is too short; contiguous."""
    h, w, c = size
    padded = np.pad(rows, ((0, 0), (0, h * w * c - rows.shape[1])))
    return np.ascontiguousarray(padded.reshape(-1, h, w, c).transpose(0, 3, 1, 2))


def plain(value: Any) -> Any:
    """The same with numbers of Python in place of those of numpy, and lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value
