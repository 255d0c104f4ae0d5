"""Arrays in an .npz file: what is read, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from semisynth.data import catalog
from semisynth.data.catalog import SPLITS
from semisynth.errors import UserError

IMAGES = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2)
LABELS = np.array([7, -1, 30, 7])


def rows(path) -> list[tuple[str, str, str]]:
    it = catalog.read(str(path))
    names = [*it.classes, ""]
    return [(i.name, names[c], SPLITS[s]) for i, c, s in zip(it.items, it.labels, it.splits, strict=True)]


def npz(path, **arrays):
    np.savez(path / "a.npz", **{"images": IMAGES, "labels": LABELS, **arrays})
    return path / "a.npz"


def test_arrays_have_labels_and_perhaps_splits_and_classes(tmp_path):
    assert rows(npz(tmp_path)) == [
        *(("images[0]", "7", "train"), ("images[1]", "", "unlabeled")),
        *(("images[2]", "30", "train"), ("images[3]", "7", "train")),
    ]
    given = npz(tmp_path, labels=np.array([1, -1, 0, 1]), classes=["b", "a"], split=["train", "", "train", "test"])
    assert [row[1:] for row in rows(given)] == [("a", "train"), ("", "unlabeled"), ("b", "train"), ("a", "test")]
    assert catalog.read(str(given)).classes == ("b", "a")
    assert np.array_equal(catalog.read(str(given)).items[2].read(), IMAGES[2])


def test_images_in_floating_point_are_rounded_to_bytes_and_told(tmp_path):
    it = catalog.read(str(npz(tmp_path, images=np.linspace(0, 1, 24).reshape(4, 3, 2))))
    assert it.items[0].read().tolist() == [[0, 11], [22, 33], [44, 55]] and it.items[3].read()[2, 1] == 255
    assert it.notes == ("images in floating point rounded to 8 bits",)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"images": IMAGES / 20}, r"images are float64 in \[0, 1.15\]: give uint8, or floats in \[0, 1\]"),
        ({"images": np.full((4, 3, 2), np.nan)}, r"float64 in \[nan, nan\]"),
        ({"images": IMAGES.astype(int)}, "images are int64: give uint8"),
        ({"images": IMAGES.reshape(4, 6)}, r"images have shape \(4, 6\), not \(n, h, w\)"),
        ({"images": np.zeros((4, 3, 8, 8), np.uint8)}, "It seems to have channels first"),
        ({"images": np.zeros((0, 3, 2), np.uint8), "labels": np.zeros(0, int)}, r"images have shape \(0, 3, 2\)"),
        ({"labels": LABELS[:3]}, "4 images, 3 labels: give each image one, -1 for none"),
        ({"labels": LABELS[:, None]}, r"labels have shape \(4, 1\)"),
        ({"labels": LABELS / 2}, "type float64: give a whole number each"),
        ({"labels": LABELS - 1}, r"labels\[1\] is -2: give a number from 0"),
        ({"classes": ["a", "b"]}, r"labels\[0\] is 7: give a number from 0, below"),
        ({"labels": np.array([0, 1, 0, 0]), "classes": ["a", "a"]}, "classes holds a name twice"),
        ({"split": np.array(["train"] * 3)}, r"split has shape \(3,\)"),
        (
            {"split": np.array(["train", "", "tset", ""])},
            r"unknown split in .*images\[2\]: 'tset': did you mean 'test'",
        ),
        ({"split": np.array(["train", "test", "", ""])}, r"images\[1\]: the label is blank, and an image for test"),
        ({"images": np.array([None] * 4)}, "must be an .npz file of plain arrays"),
    ],
)
def test_wrong_arrays_are_told(arrays, message, tmp_path):
    with pytest.raises(UserError, match=message):
        catalog.read(str(npz(tmp_path, **arrays)))


@pytest.mark.parametrize("name", ["images", "labels"])
def test_a_missing_array_is_told(name, tmp_path):
    np.savez(tmp_path / "a.npz", **{k: v for k, v in {"images": IMAGES, "labels": LABELS}.items() if k != name})
    with pytest.raises(UserError, match=f"the array '{name}' is missing"):
        catalog.read(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("keep", [0, 1, 30, 200, -30])
def test_a_damaged_archive_is_told(keep, tmp_path):
    path = npz(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        catalog.read(str(path))
