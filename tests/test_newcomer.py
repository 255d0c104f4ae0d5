"""A newcomer's session: a folder of pictures, checked, trained on in three ways, reported, and predicted with.

`pytest tests/test_newcomer.py -s` shows the seconds of each command.
"""

from __future__ import annotations

import csv
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semisynth.cli import main

CLASSES = ("bar", "cross", "dot", "frame", "stripes")
FITS = {
    "mpssl": ("--generator", "glyphs", "--steps", "6"),
    "fixmatch": ("--steps", "6"),
    "supervised": ("--steps", "100", "--ema", "0.9"),
}
Command = Callable[..., int]


def drawing(name: str, source: np.random.Generator) -> np.ndarray:
    """One of five figures, bright on dark, somewhere in an image (h, w) of a size of its own."""
    h, w = source.integers(24, 41, 2)
    y, x = np.mgrid[:h, :w]
    cy, cx = (0.5 + source.uniform(-0.08, 0.08, 2)) * (h, w)
    dy, dx = abs(y - cy) / h, abs(x - cx) / w
    figure = {
        "bar": (dy < 0.12) & (dx < 0.4),
        "cross": abs(dy - dx) < 0.09,
        "dot": np.hypot(dy, dx) < 0.15,
        "frame": (np.maximum(dy, dx) < 0.42) & (np.maximum(dy, dx) > 0.3),
        "stripes": (x * 6 // w) % 2 == 0,
    }[name]
    return (source.uniform(150, 230) * figure + source.uniform(0, 40, (h, w))).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images in 5 classes, PNG and JPEG, gray and in colour; and 10 new ones, of which a file is no image."""
    root, source = tmp_path_factory.mktemp("newcomer"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for folder, count in ((root / "pictures" / name, 40), (root / "new" / name, 2)):
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(drawing(name, source))
                image = image.convert("RGB") if (i + label) % 3 == 0 else image
                image.save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    (root / "new" / "notes.png").write_text("no image")
    return root


@pytest.fixture(scope="module")
def timed() -> Command:
    """Runs a command and prints how long it took."""

    def run(*arguments: object) -> int:
        began = time.perf_counter()
        code = main([str(argument) for argument in arguments])
        print(f"{time.perf_counter() - began:6.1f} s  semisynth {shlex.join(map(str, arguments[:3]))}")
        return code

    return run


@pytest.fixture(scope="module")
def runs(pictures: Path, timed: Command) -> Path:
    """The check, and a run of each method."""
    assert timed("data", "check", pictures / "pictures", "--out", pictures / "check.json") == 0
    for method, options in FITS.items():
        out = pictures / "runs" / method
        assert timed("fit", "--method", method, "--data", pictures / "pictures", *options, "--out", out) == 0
    return pictures / "runs"


def rows(file: Path) -> Sequence[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_the_check_finds_all_images_and_nothing_to_mend(runs):
    found = json.loads((runs.parent / "check.json").read_text())
    assert found["classes"] == {name: {"train": 40, "validation": 0, "test": 0} for name in CLASSES}
    assert found["channels"] == {"gray": 133, "RGB": 67} and found["unreadable"] == {}


@pytest.mark.parametrize("method", FITS)
def test_a_run_has_its_card_which_names_data_and_command(runs, method):
    result = json.loads((runs / method / "result.json").read_text())
    assert result["class_names"] == list(CLASSES)
    assert result["data"]["images"] == {"train": 120, "validation": 40, "test": 40} and result["shape"][0] == 3
    assert result["shape"][1:] == ([16, 16] if method == "mpssl" else [32, 32])
    card = (runs / method / "model-card.md").read_text()
    assert result["data"]["hash"] in card and f"semisynth fit --method {method} --data={runs.parent}/pictures" in card
    assert all(f"\n| {name} | 8 | " in card for name in CLASSES)


def test_what_is_easy_is_learned_and_measured_again_on_other_images(runs, timed, capsys):
    result = json.loads((runs / "supervised" / "result.json").read_text())
    assert result["test"]["accuracy"] > 0.6  # chance is 0.2
    assert timed("evaluate", runs / "supervised", "--data", runs.parent / "new", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[0])
    assert found["images"] == 10 and list(found["per_class"]) == list(CLASSES) and found["accuracy"] > 0.5


def test_the_report_has_its_sections(runs, timed):
    out = runs.parent / "report.html"
    assert timed("report", runs, "--out", out) == 0
    page = out.read_text()
    for title in ("Test accuracy", "Calibration", "Curves", "Classes", "Confusion", "Synthetic images", "Setup"):
        assert f"<h2>{title}</h2>" in page
    assert all(method in page for method in FITS) and "Runs left out" not in page


@pytest.mark.parametrize("method", FITS)
def test_every_file_is_in_the_predictions_once(runs, timed, method):
    out = runs.parent / f"{method}.csv"
    assert timed("predict", runs / method, runs.parent / "new", "--out", out, "--reject", "0.3") == 0
    found = rows(out)
    files = [str(runs.parent / "new" / name / file) for name in CLASSES for file in ("0.jpg", "1.png")]
    assert sorted(row["file"] for row in found) == files
    assert list(found[0]) == ["file", "label", "confidence", *(f"probability_{name}" for name in CLASSES)]
    for row in found:
        p = [float(row[f"probability_{name}"]) for name in CLASSES]
        assert sum(p) == pytest.approx(1, abs=1e-5) and float(row["confidence"]) == max(p)
        assert row["label"] == (CLASSES[p.index(max(p))] if max(p) >= 0.3 else "")
    [left_out] = rows(runs.parent / f"{method}.unreadable.csv")
    assert left_out["file"] == str(runs.parent / "new" / "notes.png") and "is no image" in left_out["reason"]
