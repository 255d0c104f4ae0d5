"""Whatever is wrong with one's own images is told by the command in one paragraph, with code 2, before a run begins."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pictures
import pytest
from PIL import Image

from semisynth import cli
from semisynth.data import catalog, datasets
from semisynth.data.datasets import Reading

FIT = ("fit", "--method=supervised", "--steps=1", "--batch=4", "--device=cpu")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A good folder of images, beside which there is nothing."""
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path / "cache"))
    return pictures.folder(tmp_path / "set", 4, size=(8, 8), mode="L")


def refused(root: Path, source: Path, capsys, *more: str) -> str:
    """What the commands say of it; there is no run then, and nothing half written."""
    out = root.parent / "run"
    assert cli.main([*FIT, "--data", str(source), "--out", str(out), *more]) == 2
    told = capsys.readouterr()
    assert re.fullmatch(r"semisynth: error: [^\n]+\.\n", told.err) and told.out == ""
    assert not out.exists() and not list(root.parent.rglob("*.part"))
    return told.err


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims so many pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


PNG = pictures.encoded(pictures.image())
UNREADABLE = {
    "zero bytes": (b"", r"is empty"),
    "truncated": (PNG[:-40], r"cannot be decoded \([^)]*\)"),
    "text": (b"no image, but text\n", r"is no image that can be read \(unknown format\)"),
    "enormous": (bomb(9_000), r"has 9000x9000 pixels, more than 64,000,000"),
    "a bomb": (bomb(200_000), r"has more than 64,000,000 pixels"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_image_that_cannot_be_read_is_named_and_left_out_only_if_asked(case, root, capsys):
    content, message = UNREADABLE[case]
    (root / "train" / "dog" / "1.png").write_bytes(content)
    error = refused(root, root, capsys)
    assert re.search(rf"set has images that cannot be read: train/dog/1\.png {message}\. Mend or remove them", error)
    assert "(semisynth data check lists all), or leave them out with --unreadable skip." in error
    assert cli.main(["data", "check", str(root), "--out", str(root.parent / "check.json")]) == 1
    found = json.loads((root.parent / "check.json").read_text())
    assert list(found["unreadable"]) == ["train/dog/1.png"] and found["looked_at"] == 16
    told = datasets.load(str(root), Reading(unreadable="skip", holdout=0)).told
    assert re.search(rf"left out, as they cannot be read: 1 images \(train/dog/1\.png {message}\)", " ".join(told))


def remade(kind: str, root: Path) -> Path:
    """The folder with one fault."""
    train = root / "train"
    if kind == "empty class":
        (train / "owl").mkdir()
    elif kind == "class gone":
        pictures.save(root / "test" / "owl" / "0.png")
    elif kind == "one class":
        for split in ("train", "test"):
            os.rename(root / split / "dog", root.parent / split)
    elif kind == "flat":
        pictures.save(root / "test" / "0.png")
    elif kind == "photos":
        (train / "owl").mkdir()
        (train / "owl" / "0.heic").write_bytes(b"0")
    elif kind == "a loop":
        (train / "owl").symlink_to(root, target_is_directory=True)
    elif kind == "nothing":
        return root / "nothing"
    return root


@pytest.mark.parametrize(
    "kind, message",
    [
        ("empty class", r"class folder \S+/train/owl holds no image: fill it or remove it\."),
        ("class gone", r"set: no labeled training image of class 'owl'\. Add some, or leave the class out\."),
        ("one class", r"set has one class only, 'cat': a classifier needs at least two classes\."),
        (
            "flat",
            r"set/test/0\.png is in no class folder: images for test need labels\. Move it to test/<class>, or to",
        ),
        ("photos", r"train/owl holds no image, only files of other names than \*\.png, \*\.jpg, .*\*\.pnm: fill it or"),
        ("a loop", r"class folder \S+/train/owl holds no image: fill it or remove it\."),
        ("nothing", r"set/nothing does not exist: give a folder, a file \(.*\) or hub:NAME\."),
    ],
)
def test_a_folder_that_cannot_be_learned_from_is_refused(kind, message, root, capsys):
    assert re.search(message, refused(root, remade(kind, root), capsys))


ROWS = ("train/cat/0.png,cat,train", "train/cat/1.png,cat,train", "train/dog/0.png,dog,train")


@pytest.mark.parametrize(
    "row, message",
    [
        (
            "/etc/passwd,cat,train",
            r"m\.csv, line 5: '/etc/passwd' leads out of the manifest's folder\. Give a path below",
        ),
        ("../set/train/cat/2.png,cat,train", r"m\.csv, line 5: '\.\./set/train/cat/2\.png' leads out of"),
        (
            "train/cat/0.png,dog,train",
            r"train/cat/0\.png is listed as 'cat' in train and 'dog' in train\. Keep the row",
        ),
        ("train/dog/1.png,Dog,train", r"the labels 'dog' and 'Dog' differ only in case, blanks or encoding"),
        ("train/dog/1.png, dog,train", r"the labels 'dog' and ' dog' differ only in case, blanks or encoding"),
        ("train/dog/9.png,dog,train", r"cannot be read: train/dog/9\.png: No such file or directory\. Mend or remove"),
        ("train/dog,dog,train", r"cannot be read: train/dog is no file\. Mend or remove"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(row, message, root, capsys):
    assert re.search(message, refused(root, pictures.manifest(root / "m.csv", *ROWS, row), capsys))


@pytest.mark.parametrize("head, lacking", [("path,class,split", "label"), ("file,label,split", "path")])
def test_a_column_that_is_missing_is_told_with_those_that_are_there(head, lacking, root, capsys):
    error = refused(root, pictures.manifest(root / "m.csv", *ROWS, head=head), capsys)
    assert f"the column '{lacking}' is missing. It has: {head.replace(',', ', ')}. A manifest needs path and" in error


def test_a_manifest_of_one_class_is_refused(root, capsys):
    assert "one class only, 'cat'" in refused(root, pictures.manifest(root / "m.csv", *ROWS[:2]), capsys)


# ---- what is read all the same, and told ----------------------------------------------------------------------------


def odd(kind: str) -> bytes:
    """An image of which a part must be converted."""
    image = pictures.image(3, (8, 8))
    if kind == "16 bits":
        return pictures.encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000))
    if kind == "animated":
        return pictures.encoded(image, "GIF", save_all=True, append_images=[pictures.image(4, (8, 8))])
    if kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        return pictures.encoded(image, "JPEG", exif=exif)
    return pictures.encoded(image.convert(kind), "JPEG" if kind == "CMYK" else "PNG")


@pytest.mark.parametrize(
    "kind, told",
    {
        "16 bits": "scaled from 16 bits to 8",
        "P": "palette made RGB",
        "CMYK": "CMYK made RGB",
        "RGBA": "composited on white where transparent",
        "animated": "of an animation the first frame is taken",
        "rotated": "turned as EXIF says",
    }.items(),
)
def test_an_image_of_another_kind_is_converted_and_told(kind, told, root, capsys):
    (root / "train" / "cat" / "0.png").write_bytes(odd(kind))
    assert f"{told}: 1 of 16 images" in datasets.load(str(root), Reading(holdout=0)).told
    assert cli.main(["data", "check", str(root), "--out", str(root.parent / "check.json")]) == 0
    assert f"{told} (1)" in capsys.readouterr().out


def test_rows_that_are_there_twice_links_and_names_that_are_no_text_are_read_and_told(root, capsysbinary):
    os.rename(root / "train" / "dog" / "0.png", os.fsencode(root) + b"/train/dog/caf\xe9.png")
    (root / "unlabeled").mkdir()
    (root / "unlabeled" / "loop").symlink_to(root, target_is_directory=True)
    (root / "train" / "cat" / "0.png").write_bytes(b"")
    assert cli.main(["data", "check", str(root), "--out", str(root.parent / "check.json")]) == 1
    printed = capsysbinary.readouterr().out.decode()
    assert "note: links not followed, as they lead to a folder that was read: 1" in printed
    manifest = pictures.manifest(root / "m.csv", *ROWS[:2], ROWS[1])
    with manifest.open("ab") as file:
        file.write(b"train/dog/caf\xe9.png,dog,train\n")
    found = catalog.read(str(manifest))
    assert found.notes == ("rows passed over, as they are there already: 1",) and len(found.items) == 3
    assert found.items[2].name == "train/dog/caf\\xe9.png"
    assert found.items[2].read().startswith(b"\x89PNG")


# ---- a full disk ----------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_when_images_are_kept_is_told(root, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    error = refused(root, root, capsys)
    assert re.search(r"images of \S+set cannot be kept in \S+: No space left on device\. Make room, or set SEMI", error)
    assert {file.name for file in (root.parent / "cache").rglob("*") if file.is_file()} == {"lock"}


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may become larger than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "fit": lambda root: [*FIT, "--data", str(root), "--out", str(root.parent / "run")],
    "check": lambda root: ["data", "check", str(root), "--out", str(root.parent / "check.json")],
    "predict": lambda root: ["predict", str(root.parent / "done"), str(root), "--out", str(root.parent / "table.csv")],
    "report": lambda root: ["report", str(root.parent / "done"), "--out", str(root.parent / "report.html")],
}


@pytest.mark.skipif(sys.platform != "linux", reason="the limit stands for a full disk")
@pytest.mark.parametrize("command, size", [("fit", s) for s in (100, 10_000, 300_000)] + [(c, 50) for c in COMMANDS])
def test_whatever_there_is_no_room_for_is_told_and_made_once_there_is(command, size, root, capsys):
    arguments = COMMANDS[command](root)
    if command in ("predict", "report"):
        assert cli.main([*FIT, "--data", str(root), "--out", str(root.parent / "done")]) == 0
    datasets.load(str(root))
    capsys.readouterr()
    before = {file for file in root.parent.rglob("*") if file.is_file()}
    with room(size):
        assert cli.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"semisynth: error: \S+ cannot be written \(.*\): make room", error), error
    new = {file.name for file in {file for file in root.parent.rglob("*") if file.is_file()} - before}
    assert new <= {"config.json", "log.jsonl", "checkpoint.pt", "model.safetensors", "samples.safetensors", "data.json"}
    assert cli.main(arguments) == 0
