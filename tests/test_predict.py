"""The table: what is in it, what is left out of it, and that it is whole or not there."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import made_up
import numpy as np
import pytest
import torch
from PIL import Image

from semisynth import predict as module
from semisynth.data import given
from semisynth.data.items import Pixels
from semisynth.errors import UserError
from semisynth.predict import Summary, predict
from semisynth.predictor import Predictor, answers

CLASSES = ("cat", "label", "confidence")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return made_up.classifier(tmp_path_factory.mktemp("predict") / "run", CLASSES)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images in folders of different depth, and two files that are none."""
    for i in range(8):
        file = tmp_path / "images" / ("deep/er" if i % 2 else ".") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels // (1 + i % 4)).save(file)
    (tmp_path / "images" / "deep" / "x.jpg").write_bytes(b"")
    (tmp_path / "images" / "z.png").write_text("no image")
    (tmp_path / "images" / "notes.txt").write_text("no image by its name")
    return tmp_path / "images"


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines, strict=True))


def label(run: Path, *sources: object, **options: object) -> tuple[Summary, list[dict[str, str]]]:
    out = run.parent / "out.csv"
    found = predict(run, [str(source) for source in sources], out, device="cpu", show=False, **options)
    return found, table(out)


def test_a_row_has_file_label_confidence_and_every_probability(run, images):
    found, rows = label(run, images)
    assert list(rows[0]) == ["file", "label", "confidence", *(f"probability_{name}" for name in CLASSES)]
    names = [f"{images}/{i}.png" for i in (0, 2, 4, 6)] + [f"{images}/deep/er/{i}.png" for i in (1, 3, 5, 7)]
    assert [row["file"] for row in rows] == names
    predictor = Predictor.of(run, "cpu")
    for row in rows:
        (answer,) = answers(predictor, given.images(row["file"]), 1, 1)
        p = dict(zip(CLASSES, predictor.probabilities(answer.logits).tolist(), strict=True))
        assert {name: float(row[f"probability_{name}"]) for name in CLASSES} == pytest.approx(p, abs=1e-5)
        assert row["label"] == max(p, key=p.get) and float(row["confidence"]) == pytest.approx(
            max(p.values()), abs=1e-5
        )
    assert len({row["label"] for row in rows}) > 1
    assert (found.images, found.rejected, sum(found.labels.values())) == (8, 0, 8)


def test_below_the_confidence_asked_for_the_label_is_blank(run, images):
    _, rows = label(run, images)
    bound = sorted(float(row["confidence"]) for row in rows)[3] + 5e-6
    found, rejected = label(run, images, reject=bound)
    assert [row["label"] for row in rejected] == [r["label"] if float(r["confidence"]) > bound else "" for r in rows]
    assert (found.images, found.rejected, sum(found.labels.values())) == (8, 4, 4)
    assert [{**row, "label": ""} for row in rejected] == [{**row, "label": ""} for row in rows]


def test_what_cannot_be_read_is_listed_and_the_list_goes_when_all_can(run, images, capsys):
    out = images.parent / "new" / "p.csv"
    found = predict(run, [str(images)], out, device="cpu")
    told = capsys.readouterr()
    listed = table(out.parent / "p.unreadable.csv")
    assert [row["file"] for row in listed] == [f"{images}/z.png", f"{images}/deep/x.jpg"]
    assert found.unreadable == listed and found.listing == str(out.parent / "p.unreadable.csv")
    assert "z.png is no image" in listed[0]["reason"] and "x.jpg is empty" in listed[1]["reason"]
    assert told.out == "" and all(f"left out: {row['reason']}\n" in told.err for row in listed)
    found = predict(run, [str(images / "deep" / "er")], out, device="cpu")
    assert (found.images, found.unreadable, found.listing) == (4, [], None)
    assert [file.name for file in out.parent.iterdir()] == ["p.csv"]


def test_sources_of_all_kinds_follow_one_another(run, images):
    (images.parent / "list.tsv").write_text("path\tsplit\nimages/deep/er/3.png\ttest\nimages/gone.png\t\n")
    np.savez(images.parent / "a.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    os.rename(images / "0.png", images / "without suffix")
    sources = [images.parent / "list.tsv", images.parent / "a.npz", images / "without suffix", images / "deep" / "er"]
    found, rows = label(run, *sources)
    first = ["images/deep/er/3.png", "images[0]", "images[1]", f"{images}/without suffix"]
    assert [row["file"] for row in rows] == [*first, *(f"{images}/deep/er/{i}.png" for i in (1, 3, 5, 7))]
    assert rows[0]["confidence"] == rows[5]["confidence"] and [e["file"] for e in found.unreadable] == [
        "images/gone.png"
    ]


def test_names_that_are_no_text_are_escaped(run, images):
    os.rename(images / "0.png", os.fsencode(images) + b'/\xff,"\n.png')
    _, rows = label(run, images)
    assert f'{images}/\\xff,"\\n.png' in {row["file"] for row in rows}


def files(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "sources, out, options, message",
    [
        (["images/z.png", "images/deep/x.jpg"], "p.csv", {}, "none of 2 images can be read. .*z.png is no image"),
        (["images", "nowhere"], "p.csv", {}, "nowhere does not exist"),
        (["images/deep/er", "none"], "p.csv", {}, "none holds no image: they are told by their names"),
        (["images"], "images", {}, "is a directory: give a file in it, such as .*images/predictions.csv"),
        (["list.csv"], "list.csv", {}, "list.csv would take the place of .*list.csv: give another file"),
        (["p.unreadable.csv"], "p.csv", {}, "p.csv would take the place of .*p.unreadable.csv"),
        (["images"], "images/2.png", {}, r"2\.png is called as an image is: give a table, such as .*images/2\.csv"),
        (["plain.csv"], "images/plain", {}, "images/plain would take the place of .*images/plain: give another file"),
        (["plain.csv"], "none/../images/plain", {}, "would take the place of .*images/plain"),
        (["images"], "list.csv/p.csv", {}, "p.csv cannot be written .(Not a directory|File exists)"),
        (["images"], "p.csv", {"reject": 1.5}, "reject is 1.5: give a number from 0 to 1"),
        (["images"], "p.csv", {"batch": 0}, "batch is 0: give a number from 1"),
        (["images"], "p.csv", {"device": "bogus"}, "--device bogus cannot be used"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(sources, out, options, message, run, images, tmp_path):
    (tmp_path / "none").mkdir()
    for name in ("list.csv", "p.unreadable.csv"):
        (tmp_path / name).write_text("path\nimages/2.png\n")
    (tmp_path / "plain.csv").write_text("path\nimages/plain\n")
    (images / "plain").write_bytes((images / "2.png").read_bytes())
    before = files(tmp_path)
    with pytest.raises(UserError, match=message):
        options = {"device": "cpu", "show": False, **options}
        predict(run, [str(tmp_path / source) for source in sources], tmp_path / out, **options)
    assert files(tmp_path) == before


def test_a_full_disk_leaves_the_old_table(run, images, monkeypatch):
    out = images.parent / "p.csv"
    out.write_text("old")
    monkeypatch.setattr(module.csv, "writer", lambda file, **options: Full())
    with pytest.raises(UserError, match=r"p\.csv cannot be written \(No space left on device\)"):
        predict(run, [str(images)], out, device="cpu", show=False)
    assert out.read_text() == "old" and not list(images.parent.glob("*.part"))


class Full:
    def writerow(self, row: object) -> None:
        raise OSError(28, "No space left on device")


class Stopped(Pixels):
    def read(self) -> np.ndarray:
        raise KeyboardInterrupt


def test_an_interruption_keeps_what_is_done_beside(run, tmp_path, monkeypatch):
    good = [Pixels(f"{i}", "", np.full((8, 8), i, np.uint8)) for i in range(3)]
    monkeypatch.setattr(given, "images", lambda source: [*good, Stopped("3", "", good[0].pixels)])
    with pytest.raises(KeyboardInterrupt, match=r"what was predicted until then is in .*p\.csv\.part"):
        predict(run, ["any"], tmp_path / "p.csv", batch=1, device="cpu")
    assert [file.name for file in tmp_path.iterdir()] == ["p.csv.part"]
    assert [row["file"] for row in table(tmp_path / "p.csv.part")] == ["0", "1", "2"]
