"""From a folder of images to predictions, as Python; each docstring's example is run."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import semisynth
from semisynth import PUBLIC, Trained, UserError, fit, load_data
from semisynth.cli import main

SMALL = {"steps": 2, "batch": 8, "unlabeled_batch": 8, "show": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and light, and two files to be classified, of which one is no image."""
    out = tmp_path_factory.mktemp("images")
    for name, light in (("dark", 20), ("light", 220)):
        (out / "train" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.full((12, 10), light + i, np.uint8)
            Image.fromarray(pixels).save(out / "train" / name / f"{i}.png")
    (out / "new").mkdir()
    Image.fromarray(np.full((20, 20), 230, np.uint8)).save(out / "new" / "a.jpg")
    (out / "new" / "b.png").write_text("no image")
    return out


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("api") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMISYNTH_CACHE", str(out.parent / "cache"))
        sizes = {**SMALL, "steps": 20}
        return fit(folder / "train", out, "supervised", method_options={"view": "weak"}, size=8, ema=0.5, **sizes)


def test_a_folder_becomes_predictions(run, folder):
    assert run.classes == ("dark", "light") and run.result["data"]["images"]["train"] > 4
    image, broken = run.predict(folder / "new")
    assert Path(image.file).name == "a.jpg" and image.label == "light" and image.reason == ""
    assert image.confidence == image.probabilities["light"] == max(image.probabilities.values())
    assert sum(image.probabilities.values()) == pytest.approx(1)
    assert (broken.label, broken.confidence, broken.probabilities) == (None, 0, {}) and "b.png" in broken.reason


def test_what_is_predicted_is_what_the_command_writes(run, folder, tmp_path):
    out = tmp_path / "p.csv"
    assert main(["predict", str(run.path), str(folder / "train"), "--out", str(out)]) == 0
    rows = [f"{p.file},{p.label},{p.confidence:.6f}" for p in run.predict(folder / "train", batch=5)]
    assert rows == [line.rsplit(",", 2)[0] for line in out.read_text().splitlines()[1:]] and len(rows) == 12


def test_a_doubtful_image_has_no_label(run):
    [doubtful] = run.predict(np.full((1, 8, 8), 225, np.uint8), reject=1.0)
    [sure] = run.predict(np.full((1, 8, 8), 225, np.uint8), reject=doubtful.confidence)
    assert doubtful.label is None and sure.label == "light" and doubtful.probabilities == sure.probabilities
    with pytest.raises(UserError, match=r"reject is 1\.5"):
        run.predict(np.zeros((1, 8, 8)), reject=1.5)


def test_a_run_is_opened_again_evaluated_and_reported(run, folder, tmp_path):
    again = Trained(str(run.path))
    assert again.result == run.result and again.evaluate(folder / "train")["images"] == 12
    assert "supervised" in again.report(tmp_path / "new" / "report.html").read_text()
    with pytest.raises(UserError, match=r"result\.json does not exist"):
        Trained(tmp_path)


def test_it_is_the_run_of_the_command_line(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path / "cache"))
    data = load_data(folder / "train", size=8, holdout=0.0)
    assert data.shape == (1, 8, 8) and len(data.pool) == 12
    one = fit(folder / "train", tmp_path / "one", "fixmatch", size=8, holdout=0.0, **SMALL)
    other = fit(data, tmp_path / "other", "fixmatch", size=8, **SMALL)
    options = ["--size", "8", "--holdout", "0", "--steps", "2", "--batch", "8", "--unlabeled-batch", "8"]
    data_and_out = ["--data", str(folder / "train"), "--out", str(tmp_path / "third")]
    assert main(["fit", "--method", "fixmatch", *options, *data_and_out]) == 0
    for name in ("model.safetensors", "config.json"):
        assert len({(tmp_path / run / name).read_bytes() for run in ("one", "other", "third")}) == 1
    assert one.result["data"] == other.result["data"]


def test_data_that_were_read_otherwise_come_with_how(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path / "cache"))
    data = load_data(folder / "train", holdout=0.1, size=12, mirror="yes")
    run = fit(data, tmp_path / "run", "mpssl", generator="glyphs", **SMALL)
    config = json.loads((run.path / "config.json").read_text())
    assert {"holdout": 0.1, "size": 12, "mirror": "yes", "data": str(folder / "train")}.items() <= config.items()
    assert main(["fit", "--config", str(run.path / "config.json"), "--out", str(tmp_path / "again")]) == 0
    for name in ("model.safetensors", "data.json"):
        assert (tmp_path / "again" / name).read_bytes() == (run.path / name).read_bytes()
    left_open = fit(load_data(folder / "train"), tmp_path / "open", "mpssl", generator="glyphs", **SMALL)
    assert json.loads((left_open.path / "config.json").read_text())["size"] == left_open.result["shape"][1] == 32
    assert main(["evaluate", str(left_open.path)]) == 0
    with pytest.raises(UserError, match=r"size is 16, but the data were read with 12: give it to load_data"):
        fit(data, tmp_path / "no", "supervised", size=16, **SMALL)


def test_other_data_are_not_a_finished_run(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path / "cache"))
    data = load_data(folder / "train", size=8, holdout=0.0)
    fit(data, tmp_path / "run", "supervised", **SMALL)
    assert fit(data, tmp_path / "run", "supervised", **SMALL).result["data"]["images"] == {"train": 12}
    fewer = replace(data, pool=data.pool.subset(torch.arange(11)), hash="")
    with pytest.raises(UserError, match=r"run holds a run on other data: images \(train 12 there, train 11 now\)"):
        fit(fewer, tmp_path / "run", "supervised", **SMALL)


ARRAYS = {
    "levels as floats": (np.full((1, 8, 8), 200.0), "float64 in \\[200, 200\\]: give uint8, or floats in"),
    "levels as int64": (np.full((1, 8, 8), 200), "images are int64: give uint8"),
    "negative": (np.full((1, 8, 8), -0.1), "in \\[-0.1, -0.1\\]"),
    "not a number": (np.full((1, 8, 8), np.nan), "in \\[nan, nan\\]"),
    "of no dimension": (np.array(3.0), "images have shape \\(\\)"),
    "empty": (np.zeros((0, 8, 8)), "array of shape \\(0, 8, 8\\) holds no image"),
    "one image": (np.zeros((8, 8)), "images have shape \\(8, 8\\), not"),
    "channels first": (np.zeros((2, 3, 8, 8)), "seems to have channels first"),
    "two channels": (np.zeros((2, 8, 8, 2)), "images have shape \\(2, 8, 8, 2\\)"),
}


@pytest.mark.parametrize("array, message", ARRAYS.values(), ids=ARRAYS)
def test_an_array_that_is_no_image_is_told(run, array, message):
    with pytest.raises(UserError, match=message):
        run.predict(array)


def test_floats_are_as_the_levels_that_they_stand_for(run):
    pixels = np.arange(2 * 64).reshape(2, 8, 8).astype(np.uint8)
    assert list(run.predict(pixels / 255)) == list(run.predict(pixels))


KINDS = {
    "channels": (lambda run: load_data("digits", channels="grey"), "'channels' in load_data is 'grey': it must be"),
    "holdout": (lambda run: load_data("digits", holdout="0.1"), "'holdout' in load_data is '0.1'.* of type float"),
    "misspelled": (lambda run: load_data("digits", sise=8), "field in load_data: 'sise': did you mean 'size'"),
    "reject": (lambda run: run.predict("x", reject="0.8"), "'reject' in predict is '0.8'"),
    "no batch": (lambda run: run.predict("x", batch=0), "batch is 0: give a number from 1"),
    "half a batch": (lambda run: run.predict("x", batch=1.5), "'batch' in predict is 1.5: .* type int"),
}


@pytest.mark.parametrize("call, message", KINDS.values(), ids=KINDS)
def test_what_is_of_another_kind_is_told(run, call, message):
    with pytest.raises(UserError, match=message):
        call(run)


def test_a_number_of_numpy_will_do(run):
    assert next(run.predict(np.zeros((1, 8, 8)), reject=np.float64(0.0))).label == "dark"


def test_a_wrong_option_is_told(tmp_path):
    with pytest.raises(UserError, match="did you mean 'steps'"):
        fit("digits", tmp_path / "run", "supervised", step=3)
    assert not list(tmp_path.iterdir())


def test_every_public_name_is_there_and_typed():
    assert sorted(PUBLIC) == sorted(semisynth.__all__) and set(PUBLIC) < set(dir(semisynth))
    for name, module in PUBLIC.items():
        assert getattr(semisynth, name) is getattr(import_module(f"semisynth.{module}"), name)
    with pytest.raises(AttributeError, match="module 'semisynth' has no attribute 'fitt'"):
        _ = semisynth.fitt
    assert (Path(semisynth.__file__).parent / "py.typed").exists()


def test_importing_the_package_loads_nothing_heavy():
    script = "import sys, json, semisynth; semisynth.UserError; dir(semisynth); print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not {"torch", "numpy", "sklearn", "PIL", "rich"} & set(json.loads(done.stdout))


@pytest.mark.parametrize("module", sorted(set(PUBLIC.values())))
def test_the_examples_of_the_docstrings_work(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(import_module(f"semisynth.{module}"), raise_on_error=True)
    assert found.failed == 0 and (found.attempted > 0) == (module != "errors")
