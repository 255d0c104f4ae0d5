"""What is found in each kind of source, under which name, and what is told where nothing is."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import numpy as np
import pytest

from semisynth.data import given
from semisynth.errors import UserError


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def found(source: object) -> dict[str, object]:
    return {item.name: item.read() for item in given.images(str(source))}


def test_a_folder_of_any_depth_is_named_as_it_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(
        fill(tmp_path, "d/b.png", "d/a.JPG", "d/x/y/c.webp", "d/text.txt", "d/.hidden.png", "d/x/.h/a.png")
    )
    names = ["d/a.JPG", "d/b.png", "d/x/y/c.webp"]
    assert found("d") == {name: name.encode() for name in names}
    assert list(found("d/")) == names and list(found(tmp_path / "d")) == [f"{tmp_path}/{name}" for name in names]


def test_a_loop_of_links_is_followed_once(tmp_path):
    fill(tmp_path, "d/x/a.png")
    os.symlink("..", tmp_path / "d" / "x" / "up")
    assert list(found(tmp_path / "d")) == [f"{tmp_path}/d/x/a.png"]


def test_a_name_that_cannot_be_printed_is_escaped(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"it")
    assert found(tmp_path) == {f"{tmp_path}/\\xff.png": b"it"}


def test_a_file_needs_no_suffix(tmp_path):
    fill(tmp_path, "photo")
    assert found(tmp_path / "photo") == {f"{tmp_path}/photo": b"photo"}


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", "path\nx/1.png\n2.png\n"),
        ("a.tsv", "split\tlabel\tpath\ntest\t\tx/1.png\ntest\tcat\t2.png\n"),
    ],
)
def test_a_manifest_needs_paths_alone(name, content, tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path, "x/1.png", "2.png"))
    (tmp_path / name).write_text(content)
    assert found(name) == found(tmp_path / name) == {"x/1.png": b"x/1.png", "2.png": b"2.png"}


def test_parquet_has_paths_or_images(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    fill(tmp_path, "1.png")
    parquet.write_table(pyarrow.table({"path": ["1.png"]}), tmp_path / "paths.parquet")
    parquet.write_table(pyarrow.table({"image": [b"one", b"two"]}), tmp_path / "images.parquet")
    assert found(tmp_path / "paths.parquet") == {"1.png": b"1.png"}
    assert found(tmp_path / "images.parquet") == {"row 0": b"one", "row 1": b"two"}


def test_arrays_need_no_labels(tmp_path):
    images = np.linspace(0, 1, 2 * 4 * 4).reshape(2, 4, 4)
    np.savez(tmp_path / "a.npz", images=images)
    there = found(tmp_path / "a.npz")
    assert list(there) == ["images[0]", "images[1]"]
    assert np.array_equal(np.stack(list(there.values())), np.rint(255 * images).astype(np.uint8))


def test_a_remote_folder_and_file(tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("given/a.png", "given/deep/b.png", "given/c.txt"):
        memory.pipe(f"/{name}", name.encode())
    assert found("memory://given") == {
        "memory://given/a.png": b"given/a.png",
        "memory://given/deep/b.png": b"given/deep/b.png",
    }
    assert found("memory://given/a.png") == {"memory://given/a.png": b"given/a.png"}


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere", r"nowhere does not exist: give images, folders"),
        ("empty", r"empty holds no image: they are told by their names, which end in \.png, "),
        ("no.csv", r"no\.csv: the column 'path' is missing"),
        ("out.csv", r"out\.csv, line 2: '\.\./secret\.png' leads out of the manifest's folder"),
        ("nothing.csv", r"nothing\.csv holds no image"),
        ("no.npz", r"no\.npz: the array 'images' is missing"),
        ("flat.npz", r"flat\.npz: images have shape \(3,\)"),
        ("text.npz", r"text\.npz cannot be read"),
    ],
)
def test_what_holds_no_image_is_told(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.csv").write_text("file\na.png\n")
    (tmp_path / "out.csv").write_text("path\n../secret.png\n")
    (tmp_path / "nothing.csv").write_text("path\n")
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "no.npz", labels=np.zeros(3))
    np.savez(tmp_path / "flat.npz", images=np.zeros(3))
    with pytest.raises(UserError, match=message):
        given.images(source)
