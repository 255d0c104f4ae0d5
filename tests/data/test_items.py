"""Where images are, what they are called, and how they are read."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from semisynth.data import items
from semisynth.data.items import Arrays, Files, joined, parent, shown
from semisynth.errors import UserError


@pytest.mark.parametrize(
    "name, text",
    [
        ("a/Ärger 1.png", "a/Ärger 1.png"),
        (os.fsdecode(b"caf\xe9.png"), "caf\\xe9.png"),
        ("two\nlines\x1b[1m", "two\\nlines\\x1b[1m"),
    ],
)
def test_a_name_can_always_be_printed(name, text):
    assert shown(name) == text
    shown(name).encode()


def test_files_are_kept_by_their_paths(tmp_path):
    paths = ["a.png", "b/ä.png", os.fsdecode(b"caf\xe9.png")]
    (tmp_path / "a.png").write_bytes(b"one")
    found = Files(str(tmp_path), paths)
    assert len(found) == 3 and [file.path for file in found] == paths
    assert [item.name for item in found[1:]] == ["b/ä.png", "caf\\xe9.png"]
    assert found[0].read() == b"one" and pickle.loads(pickle.dumps(found[-1])) == found[2]
    with pytest.raises(IndexError):
        found[3]


def test_a_stamp_tells_that_a_file_changed(tmp_path):
    file = Files(str(tmp_path), ["a.png"])[0]
    missing = file.stamp
    (tmp_path / "a.png").write_bytes(b"one")
    os.utime(tmp_path / "a.png", ns=(5, 5))
    first = file.stamp
    os.utime(tmp_path / "a.png", ns=(5, 6))
    second = file.stamp
    (tmp_path / "a.png").write_bytes(b"three")
    os.utime(tmp_path / "a.png", ns=(5, 6))
    assert len({missing, first, second, file.stamp}) == 4 and file.stamp == file.stamp


def test_what_is_no_file_is_told_by_its_name_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, message in {
        "pipe.png": "is no file",
        "folder.png": "is no file",
        "no.png": "No such file",
        "a.png/b": "No such",
    }.items():
        with pytest.raises(UserError, match=f"^{name}:? {message}"):
            Files(str(tmp_path), [name])[0].read()


def test_a_file_too_large_for_an_image_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "LARGEST", 3)
    (tmp_path / "a.png").write_bytes(b"four")
    with pytest.raises(UserError, match=r"a\.png has 4 bytes: more than 3 is no image"):
        Files(str(tmp_path), ["a.png"])[0].read()


def test_arrays_are_items_by_their_rows():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    found = Arrays(images, "stamp")
    assert [item.name for item in found] == ["images[0]", "images[1]"]
    assert found[0].stamp != found[1].stamp and np.array_equal(found[1].read(), images[1])


def test_paths_are_joined_where_they_are():
    assert joined("a/b", "c.png") == os.path.join("a/b", "c.png")
    assert joined("s3://bucket", "c.png") == joined("s3://bucket/", "c.png") == "s3://bucket/c.png"
    assert [parent(path) for path in ("m.csv", "a/m.csv", "s3://b/m.csv", "memory://m.csv")] == [
        *(".", "a", "s3://b/", "memory://")
    ]


def test_files_of_another_machine_are_read_through_fsspec():
    import fsspec

    with fsspec.open("memory://items/a.png", "wb") as file:
        file.write(b"far")
    found = Files("memory://items", ["a.png", "b.png"])
    assert found[0].read() == b"far" and found[0].stamp == found[0].stamp != found[1].stamp
    with pytest.raises(UserError, match=r"^b\.png cannot be read: it does not exist$"):
        found[1].read()
    with pytest.raises(UserError, match="nowhere://x cannot be reached"):
        items.filesystem("nowhere://x")


class ClientError(Exception):
    """As a library of a remote file system has them."""


def test_whatever_a_remote_file_system_raises_is_told(monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    def denied(*_, **__):
        raise ClientError("An error occurred (403)")

    with fsspec.open("memory://denied/a.png", "wb") as file:
        file.write(b"far")
    item = Files("memory://denied", ["a.png"])[0]
    first = item.stamp
    for name in ("cat_file", "ukey"):
        monkeypatch.setattr(MemoryFileSystem, name, denied)
    with pytest.raises(UserError, match=r"^a\.png cannot be read: ClientError: An error occurred \(403\)$"):
        item.read()
    assert item.stamp == item.stamp != first
    monkeypatch.setattr(fsspec.core, "url_to_fs", denied)
    with pytest.raises(UserError, match=r"memory://denied/a\.png cannot be reached: An error occurred"):
        item.read()


@pytest.mark.parametrize(
    "error, told",
    [
        (FileNotFoundError("/x"), "it does not exist"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (ValueError("no\nway"), "ValueError: no way"),
        (ClientError(), "ClientError"),
    ],
)
def test_a_reason_is_told_in_words(error, told):
    assert items.reason(error) == told
