"""From arrays to images of 8 bits and numbered classes."""

from __future__ import annotations

import numpy as np
import pytest

from semisynth.data import arrays
from semisynth.errors import UserError


@pytest.mark.parametrize(
    "y, numbers, classes",
    [
        ([3, -1, 7, 3], [0, -1, 1, 0], [3, 7]),
        (np.array([0.0, np.nan, 2.0, -1.0]), [0, -1, 1, -1], [0.0, 2.0]),
        (np.array([False, True]), [0, 1], [False, True]),
        (np.array(["b", "", "a", " "]), [1, -1, 0, -1], ["a", "b"]),
        (["b", None, "a", float("nan"), -1], [1, -1, 0, -1, -1], ["a", "b"]),
        ([10, None, 9], [1, -1, 0], [9, 10]),
        (("x", "y"), [0, 1], ["x", "y"]),
    ],
)
def test_labels_are_numbers_of_sorted_classes_and_what_is_missing_is_minus_one(y, numbers, classes):
    found, names = arrays.numbered(y, len(numbers))
    assert found.dtype == np.int64 and found.tolist() == numbers
    assert names.tolist() == classes and [type(name) for name in names.tolist()] == [type(name) for name in classes]


@pytest.mark.parametrize(
    "y, message",
    [
        (None, "requires y to be passed, but the target y is None"),
        ([1, 1, -1], r"y has one class only, .*1"),
        ([None, "", -1], "no label in y"),
        ([1, "a", 2], "both text and numbers"),
        ([0.5, 1.5, 2.5], "Unknown label type"),
        ([1, 2], "inconsistent numbers of samples"),
        ([[1, 2], [1, 2], [2, 1]], "1d array"),
    ],
)
def test_labels_that_cannot_be_are_told(y, message):
    with pytest.raises(ValueError, match=message):
        arrays.numbered(y, 3)


@pytest.mark.parametrize(
    "given, features, size",
    [
        (None, 784, (28, 28, 1)),
        (None, 64, (8, 8, 1)),
        (None, 65, (9, 9, 1)),
        (None, 2, (8, 8, 1)),
        (None, 1, (8, 8, 1)),
        ((4, 6), 24, (4, 6, 1)),
        ((4, 6, 3), 72, (4, 6, 3)),
    ],
)
def test_the_shape_of_an_image(given, features, size):
    assert arrays.shape(given, features) == size


@pytest.mark.parametrize("given", [(4, 5), (2, 6, 2), (12,), (3, 2, 2, 1), (3, 32, 32), (-4, -6)])
def test_a_shape_that_cannot_be_is_told(given):
    with pytest.raises(UserError, match="24 numbers cannot be an image of shape"):
        arrays.shape(given, 24)


def test_the_scale_is_that_of_the_type_or_of_the_numbers():
    assert arrays.scale(np.array([[3, 200]], np.uint8)) == (0, 255)
    assert arrays.scale(np.array([[0.2, 1.0]])) == (0, 1) and arrays.scale(np.array([[True, False]])) == (0, 1)
    assert arrays.scale(np.array([[0, 16]])) == (0, 16) and arrays.scale(np.array([[-2.5, 0.5]])) == (-2.5, 0.5)


def test_levels_are_rounded_and_cut():
    eight = np.array([[0, 7, 255]], np.uint8)
    assert arrays.levels(eight, (0.0, 255.0)) is eight
    assert arrays.levels(np.array([[0.0, 0.1, 1.0, 1.7, -3.0]]), (0.0, 1.0)).tolist() == [[0, 26, 255, 255, 0]]
    assert arrays.levels(np.array([[-2, 0, 2]]), (-2.0, 2.0)).tolist() == [[0, 128, 255]]
    assert arrays.levels(eight, (0.0, 510.0)).tolist() == [[0, 4, 128]]
    assert arrays.levels(np.array([[5.0, 5.0]]), (5.0, 5.0)).tolist() == [[0, 0]]


def test_blocks_are_one_whole(monkeypatch):
    rows = np.linspace(0, 1, 70).reshape(7, 10)
    whole = arrays.levels(rows, (0.0, 1.0))
    monkeypatch.setattr(arrays, "BLOCK", 3)
    assert np.array_equal(arrays.levels(rows, (0.0, 1.0)), whole) and whole[6, 9] == 255


def test_rows_are_laid_out_line_by_line_and_black_follows():
    rows = np.arange(1, 11, dtype=np.uint8)[None]
    found = arrays.laid_out(rows, (3, 4, 1))
    assert found.flags.c_contiguous and found.tolist() == [[[[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]]]
    assert arrays.laid_out(rows[:, :6], (1, 2, 3)).tolist() == [[[[1, 4]], [[2, 5]], [[3, 6]]]]


def test_what_is_of_numpy_becomes_plain():
    found = arrays.plain({"a": np.float64(0.1), "b": (np.int64(2), "c", None), "d": {"e": np.bool_(True)}})
    assert found == {"a": 0.1, "b": [2, "c", None], "d": {"e": True}}
    assert [type(value) for value in (found["a"], found["b"][0], found["d"]["e"])] == [float, int, bool]
