"""Parquet manifests, and images that lie in one."""

from __future__ import annotations

import pickle

import pictures
import pyarrow
import pytest
from pyarrow import parquet

from semisynth.data import catalog
from semisynth.data.catalog import SPLITS
from semisynth.data.parquet import text
from semisynth.errors import UserError

BYTES = [pictures.encoded(pictures.image(i)) for i in range(5)]


def written(root, group=2, **columns):
    parquet.write_table(pyarrow.table(columns), root / "m.parquet", row_group_size=group)
    return str(root / "m.parquet")


def rows(path):
    it = catalog.read(path)
    names = [*it.classes, ""]
    return [(i.name, names[c], SPLITS[s]) for i, c, s in zip(it.items, it.labels, it.splits, strict=True)]


def test_a_manifest_names_files(tmp_path):
    path = written(
        tmp_path, path=["a.png", "b.png", "./c.png"], label=["cat", "dog", None], split=["train", None, None]
    )
    assert rows(path) == [("a.png", "cat", "train"), ("b.png", "dog", "train"), ("c.png", "", "unlabeled")]
    with pytest.raises(UserError, match=r"row 1: '\.\./b' leads out"):
        catalog.read(written(tmp_path, path=["a", "../b"], label=["x", "y"]))
    with pytest.raises(UserError, match=r"row 1: the path is blank"):
        catalog.read(written(tmp_path, path=["a", None], label=["x", "y"]))


@pytest.mark.parametrize("struct", [False, True])
def test_images_lie_in_the_file(struct, tmp_path):
    images = [{"bytes": each, "path": None} for each in BYTES] if struct else BYTES
    path = written(tmp_path, image=images, label=[3, None, 20, 3, 20], split=["train"] * 3 + ["test"] * 2)
    assert rows(path)[:3] == [("row 0", "3", "train"), ("row 1", "", "unlabeled"), ("row 2", "20", "train")]
    it = catalog.read(path)
    assert [item.read() for item in it.items] == BYTES
    assert pickle.loads(pickle.dumps(it.items[3])).read() == BYTES[3]
    assert len({item.stamp for item in it.items}) == 5


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"path": ["a"]}, "the column 'label' is missing"),
        ({"label": ["a"]}, "the column 'path' is missing"),
        ({"image": BYTES[:1]}, "the column 'label' is missing. It has: image"),
        ({"path": ["a", "b"], "label": [["x"], ["y"]]}, "row 0 holds list: it must be text or a number"),
    ],
)
def test_wrong_columns_are_told(columns, message, tmp_path):
    with pytest.raises(UserError, match=message):
        catalog.read(written(tmp_path, **columns))


def test_a_cell_without_an_image_is_told_when_it_is_read(tmp_path):
    path = written(tmp_path, image=[{"bytes": None, "path": "/etc/passwd"}] * 2, label=["x", "y"])
    with pytest.raises(UserError, match="row 1 holds no image"):
        catalog.read(path).items[1].read()


@pytest.mark.parametrize("keep", [0, 50, -20])
def test_a_damaged_file_is_told(keep, tmp_path):
    path = tmp_path / "m.parquet"
    path.write_bytes((tmp_path / written(tmp_path, path=["a"], label=["x"])).read_bytes()[:keep])
    with pytest.raises(UserError, match=r"m\.parquet cannot be read .*: it must be a Parquet file"):
        catalog.read(str(path))


def test_pages_that_are_damaged_are_told(tmp_path):
    path = tmp_path / "m.parquet"
    whole = bytearray((tmp_path / written(tmp_path, image=BYTES, label=list("abcde"))).read_bytes())
    whole[4:200] = bytes(196)
    path.write_bytes(whole)
    it = catalog.read(str(path))
    with pytest.raises(UserError, match="row 0"):
        it.items[0].read()


@pytest.mark.parametrize(
    "value, expected", [(None, None), (float("nan"), None), (3.0, "3"), (2.5, "2.5"), ("a ", "a "), (7, "7")]
)
def test_cells_are_text(value, expected):
    assert text(value, "here") == expected


def test_a_file_on_another_machine_is_read_through_fsspec(tmp_path):
    import fsspec

    fsspec.filesystem("memory").put(written(tmp_path, image=BYTES, label=list("ababa")), "/far/m.parquet")
    assert [item.read() for item in catalog.read("memory://far/m.parquet").items] == BYTES
