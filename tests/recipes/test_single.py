"""One fit: its run directory, that it goes on or is left alone, and errors before anything is written."""

from __future__ import annotations

import json
import math
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pictures
import pytest
import tiny
import torch
from safetensors.torch import load_file

from semisynth import calibration, environment, insight, report, weights
from semisynth.cli import main
from semisynth.data import datasets
from semisynth.data import own as datasets_own
from semisynth.data.datasets import Reading
from semisynth.data.decode import Preparation
from semisynth.errors import UserError
from semisynth.evaluate import classify
from semisynth.recipes import cells, restore, single
from semisynth.recipes.config import Config
from semisynth.recipes.materials import Materials
from semisynth.weights import SHIPPED

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("supervised") / "deep" / "run"
    single.fit(tiny.config("supervised", checkpoint_every=2, evaluate_every=3), out, show=False)
    return out


@pytest.fixture(scope="module")
def mapped(generator, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mpssl") / "run"
    single.fit(tiny.config("mpssl", generator, steps=2), out, show=False)
    return out


def test_a_run_directory_is_whole(run):
    names = {"config.json", "data.json", "log.jsonl", "checkpoint.pt", "model.safetensors", "model-card.md"}
    assert {file.name for file in run.iterdir()} == {*names, "result.json"}
    config = tiny.config("supervised", checkpoint_every=2, evaluate_every=3)
    assert json.loads((run / "config.json").read_text()) == config.flat()
    log = tiny.log(run)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log if "validation/accuracy" in line] == [3, 6]
    assert all(math.isfinite(line["classifier/supervised"]) for line in log)


def test_the_result_is_that_of_the_averaged_weights(run):
    result, data = json.loads((run / "result.json").read_text()), datasets.load("digits")
    config, model, found = restore.trained(run, CPU)
    assert found is data and config == tiny.config("supervised", checkpoint_every=2, evaluate_every=3)
    assert not model.training
    assert result["test"] == classify(model, data.test, data.classes)
    assert result["validation"] == classify(model, data.validation, data.classes)
    told = calibration.conclude(model, {"validation": data.validation, "test": data.test}, data.classes, CPU)
    assert result["calibration"] == told["calibration"] and result["calibration"]["images"] == 300
    assert tiny.log(run)[-1]["validation/loss"] == result["validation"]["loss"]
    assert tiny.same(dict(model.state_dict()), dict(tiny.checkpoint(run)["ema"]))
    facts = {"method": "supervised", "task": "classify", "labels_per_class": 2, "seed": 0, "steps": 6, "finished": True}
    assert facts.items() <= result.items()
    assert list(result["environment"]) == list(environment.describe(CPU))
    assert 0 < result["seconds"] < 100 and (result["shape"], result["classes"]) == ([1, 16, 16], 10)


def test_the_same_configuration_gives_the_same_bytes(run, tmp_path):
    torch.manual_seed(5)
    again = single.fit(Config.of(json.loads((run / "config.json").read_text())), tmp_path / "run", show=False)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()
    assert tiny.log(tmp_path / "run") == tiny.log(run)
    assert again["test"] == json.loads((run / "result.json").read_text())["test"]


def test_a_finished_run_is_left_as_it_is(run):
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.iterdir()}
    config = tiny.config("supervised", checkpoint_every=2, evaluate_every=3)
    assert single.finished(config, run) == single.fit(config, run, show=False)
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.iterdir()} == before


def test_a_run_of_another_configuration_is_not_touched(run):
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    message = (
        r"--out \S+ holds a run of another configuration: lr \(0.03 there, 0.5 asked\), steps \(6 there, 9 asked\)\."
    )
    with pytest.raises(UserError, match=message):
        single.fit(tiny.config("supervised", checkpoint_every=2, evaluate_every=3, lr=0.5, steps=9), run, show=False)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_an_empty_directory_is_as_good_as_none(tmp_path):
    assert single.finished(tiny.config("supervised"), tmp_path) is None
    assert single.finished(tiny.config("supervised"), tmp_path / "deep" / "run") is None


def test_a_foreign_directory_and_a_file_are_not_touched(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    for out in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(UserError, match=r"exists and is not a run directory: give another one"):
            single.fit(tiny.config("supervised"), out, show=False)
    with pytest.raises(UserError, match=r"run cannot be written: Not a directory\. Give another --out"):
        single.fit(tiny.config("supervised"), tmp_path / "letter.txt" / "run", show=False)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("letter.txt", "dear")]


def test_a_run_that_lost_its_result_ends_again_without_a_step(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for name in ("result.json", "model.safetensors"):
        (copy / name).unlink()
    single.fit(tiny.config("supervised", checkpoint_every=2, evaluate_every=3), copy, show=False)
    for name in ("model.safetensors", "checkpoint.pt", "log.jsonl", "result.json"):
        assert (copy / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize(
    "name, message",
    [("config.json", "It must be JSON"), ("data.json", "It must be JSON"), ("checkpoint.pt", "is damaged")],
)
def test_a_damaged_run_is_named_and_not_touched(run, tmp_path, name, message):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()
    (copy / name).write_bytes((run / name).read_bytes()[:100])
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        single.fit(tiny.config("supervised", checkpoint_every=2, evaluate_every=3), copy, show=False)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "result.json"])
def test_a_damaged_generator_is_named(generator, tmp_path, name):
    copy = tmp_path / "generator"
    shutil.copytree(generator, copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:100])
    with pytest.raises(UserError, match=rf"generator/{name}"):
        single.fit(tiny.config("mpssl", str(copy)), tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


def test_samples_are_kept_for_the_report(mapped, generator, tmp_path):
    found = load_file(mapped / "samples.safetensors")
    assert {name: tuple(x.shape) for name, x in found.items()} == dict.fromkeys(("uniform", "mapped"), (100, 1, 16, 16))
    assert all(x.min() >= 0 and x.max() <= 1 for x in found.values())
    assert list(load_file(Path(generator) / "samples.safetensors")) == ["uniform"]
    assert (Path(generator) / "samples.png").read_bytes().startswith(b"\x89PNG")
    single.fit(tiny.config("fixmatch", generator, unlabeled="generator", steps=1), tmp_path / "run", show=False)
    assert list(load_file(tmp_path / "run" / "samples.safetensors")) == ["uniform"]


@pytest.mark.parametrize("name, lacks", [("mpssl", ""), ("transport", ""), ("mgr", "asked mixture")])
def test_a_study_is_kept_for_the_report(name, lacks, tmp_path):
    out = tmp_path / "run"
    single.fit(tiny.config(name, "letters", steps=2), out, show=False)
    found = load_file(out / "insight.safetensors")
    keys = {"angle", "mixture", "asked", "images", "neighbours", "effect", "error", "pixels/mapped", "features/uniform"}
    assert keys - found.keys() == set(lacks.split()) and all(x.isfinite().all() for x in found.values())
    assert (len(found["images"]), len(found["pixels/labeled"])) == (insight.SAMPLES, 20)
    assert (out / "insight.safetensors").stat().st_size < 2e5
    labeled = {image.tobytes() for image in Materials(tiny.config(name, "letters")).labeled.x.numpy()}
    assert {image.tobytes() for image in found["neighbours"].numpy()} <= labeled
    before = {file: (out / file).read_bytes() for file in ("insight.safetensors", "samples.safetensors")}
    (out / "result.json").unlink()
    single.fit(tiny.config(name, "letters", steps=2), out, show=False)
    assert {file: (out / file).read_bytes() for file in before} == before
    report.write([out], out / "report.html")
    page = (out / "report.html").read_text()
    assert "What the mapper learned" in page and ("What each class draws on" in page) == (not lacks)


def test_at_most_so_many_labeled_images_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(insight, "LABELED", 7)
    seen = []
    monkeypatch.setattr(insight, "study", lambda step, generator, s, batch: seen.append(batch) or {})
    single.fit(tiny.config("mpssl", "letters", steps=1), tmp_path / "run", show=False)
    assert len(seen[0].x) == len(seen[0].y) == 7 and len({image.numpy().tobytes() for image in seen[0].x}) == 7


def test_a_generator_is_the_average_of_the_trained_one(generator):
    kept = load_file(Path(generator) / "model.safetensors")
    assert tiny.same(kept, {name: tiny.checkpoint(Path(generator))["ema"][name] for name in kept})
    assert not tiny.same(kept, {name: tiny.checkpoint(Path(generator))["method"][f"model.{name}"] for name in kept})


def test_only_a_finished_classifier_is_trained(run, generator, tmp_path):
    with pytest.raises(UserError, match="holds a generator, not a classifier"):
        restore.trained(Path(generator), CPU)
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        restore.trained(tmp_path, CPU)
    shutil.copy(run / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"is not finished: the same fit goes on where it stopped"):
        restore.trained(tmp_path, CPU)
    shutil.copy(run / "result.json", tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors does not exist: it is written when a run ends"):
        restore.trained(tmp_path, CPU)
    (tmp_path / "result.json").write_text('{"data": {}}')
    with pytest.raises(
        UserError, match=r"result\.json is not as fit wrote it \(KeyError\('class_names'\)\): restore it"
    ):
        restore.classifier(tmp_path, CPU)


def test_a_run_of_an_earlier_version_is_still_read_and_left_as_it_is(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config, result = (json.loads((copy / f"{name}.json").read_text()) for name in ("config", "result"))
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in vars(Reading())}))
    (copy / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k not in ("data", "class_names")}))
    assert "data" not in single.fit(tiny.config("supervised", checkpoint_every=2, evaluate_every=3), copy, show=False)
    one, other = restore.classifier(copy, CPU), restore.classifier(run, CPU)
    preparation = Preparation((16, 16), 1, "crop")
    assert (one[0], one[2:]) == (other[0], other[2:]) == (Config.of(config), (tuple("0123456789"), preparation))
    assert tiny.same(dict(one[1].state_dict()), dict(other[1].state_dict()))


# ---- one's own images -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A run on a folder that has since changed."""
    root = tmp_path_factory.mktemp("own")
    data = pictures.folder(root / "set", 8, classes="ab", splits=("",), size=(12, 10))
    single.fit(tiny.config("supervised", data=str(data), steps=3, holdout=0.25, fit="pad"), root / "run", show=True)
    return root


def test_a_result_tells_of_the_data(own):
    result = json.loads((own / "run" / "result.json").read_text())
    assert result["class_names"] == ["a", "b"] and result["shape"] == [3, 32, 32]
    assert result["data"] == {
        "source": str(own / "set"),
        "hash": result["data"]["hash"],
        "size": [32, 32],
        "channels": 3,
        "fit": "pad",
        "images": {"train": 8, "validation": 4, "test": 4},
        "notes": [
            "resized to 32x32 (pad): 16 of 16 images",
            "4 of 16 labeled training images were set aside for validation (--holdout)",
            "4 of 16 labeled training images were set aside for test (--holdout)",
        ],
    }
    assert result["test"]["images"] == 4


def test_what_was_done_is_printed(tmp_path, capsys):
    data = str(pictures.folder(tmp_path / "set", 2))
    single.fit(tiny.config("supervised", data=data, steps=1, holdout=0.0), tmp_path / "run")
    told = capsys.readouterr().err
    assert f"{data}: resized to 32x32 (crop): 8 of 8 images\n{data}: there are no images for validation\n" in told


def test_a_classifier_is_used_without_its_data(own, tmp_path):
    config, model, names, preparation = restore.classifier(own / "run", CPU)
    assert names == ("a", "b") and preparation == Preparation((32, 32), 3, "pad") and not model.training
    again, same, data = restore.trained(own / "run", CPU)
    assert (
        again == config and data.shape == (3, 32, 32) and tiny.same(dict(same.state_dict()), dict(model.state_dict()))
    )
    result = json.loads((own / "run" / "result.json").read_text())
    assert result["test"] == classify(model, data.test, data.classes)
    moved = tmp_path / "moved"
    shutil.copytree(own / "run", moved)
    (moved / "config.json").write_text((moved / "config.json").read_text().replace(str(own), "/nowhere"))
    assert restore.classifier(moved, CPU)[2:] == (names, preparation)


def settled(root: Path, **fields: object) -> Config:
    return tiny.config("supervised", data=str(root / "set"), steps=2, size=8, holdout=0.25, **fields)


CHANGES = {
    "another image": (lambda s: pictures.save(s / "a" / "new.png", 99), "images (train 8, validation 4, test 4 there"),
    "another class": (lambda s: pictures.save(s / "c" / "0.png", 99), "class names (a, b there, a, b, c now)"),
    "an image of other pixels": (lambda s: pictures.save(s / "a" / "0.png", 99, (12, 10)), "differ: hash ("),
    "a class of another name": (lambda s: (s / "a").rename(s / "z"), "class names (a, b there, b, z now)"),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("state", ["finished", "cut off"])
def test_a_run_on_data_that_changed_is_neither_gone_on_with_nor_measured(state, change, message, tmp_path, monkeypatch):
    pictures.folder(tmp_path / "set", 8, classes="ab", splits=("",), size=(12, 10))
    out = tmp_path / "run"
    single.fit(settled(tmp_path), out, show=False)
    assert single.fit(settled(tmp_path), out, show=False) == json.loads((out / "result.json").read_text())
    if state == "cut off":
        (out / "result.json").unlink()
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.iterdir()}
    change(tmp_path / "set")
    told = re.escape(f"--out {out} holds a run on other data: {message.removeprefix('differ: ')}")
    with pytest.raises(UserError, match=f"{told}.*Give another --out"):
        single.fit(settled(tmp_path), out, show=False)
    monkeypatch.setattr(cells, "Materials", None)
    with pytest.raises(UserError, match=told):
        cells._check_data([cells.Cell(out, settled(tmp_path))])
    if state == "finished":
        told = re.escape(f"the data are not those of the run, {message.removeprefix('differ: ')}")
        with pytest.raises(UserError, match=f"{told}.*: give --data to measure on other images"):
            restore.trained(out, CPU)
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.iterdir()} == before


def test_a_run_that_does_not_tell_of_its_data_is_read_as_before(tmp_path):
    pictures.folder(tmp_path / "set", 4, classes="ab", splits=("",))
    result = single.fit(settled(tmp_path), tmp_path / "run", show=False)
    (tmp_path / "run" / "data.json").unlink()
    pictures.save(tmp_path / "set" / "a" / "new.png", 99)
    assert single.fit(settled(tmp_path), tmp_path / "run", show=False) == result


def test_the_generators_size_is_that_of_the_data_when_the_run_is_taken_up_again(generator, tmp_path):
    pictures.folder(tmp_path / "set", 4, classes="ab", splits=("",), size=(9, 9), mode="L")
    config = tiny.config("mpssl", generator, data=str(tmp_path / "set"), steps=1)
    result = single.fit(config, tmp_path / "run", show=False)
    assert result["shape"] == [1, 16, 16] and single.fit(config, tmp_path / "run", show=False) == result
    assert restore.trained(tmp_path / "run", CPU)[2].hash == result["data"]["hash"]


@pytest.mark.parametrize("method", ["fixmatch", "mpssl"])
def test_a_run_whose_generator_changed_is_neither_gone_on_with_nor_asked_for_images(method, generator, tmp_path):
    mine, run = tmp_path / "generator", tmp_path / "run"
    shutil.copytree(generator, mine)
    config = tiny.config(method, str(mine), **({"unlabeled": "generator"} if method == "fixmatch" else {}))
    result = single.fit(config, run, show=False)
    assert list(result["externals"]) == ["unlabeled" if method == "fixmatch" else "generator"]
    assert single.again(run, torch.device("cpu")).method is not None
    tensors = {name: value + 0.1 for name, value in load_file(mine / "model.safetensors").items()}
    weights.write_tensors(mine / "model.safetensors", tensors)
    with pytest.raises(UserError, match=r"run was made with another generator, .* than is there now: restore it"):
        single.again(run, torch.device("cpu"))
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="was made with another generator, teacher or autoencoder: use the same one"):
        single.fit(config, run, show=False)


def test_of_unlabeled_images_an_earlier_version_kept_no_generator(generator, tmp_path):
    config = tiny.config("fixmatch", generator, unlabeled="generator")
    single.fit(config, tmp_path, show=False)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**content, "externals": {}}, tmp_path / "checkpoint.pt")
    (tmp_path / "result.json").unlink()
    assert single.fit(config, tmp_path, show=False)["finished"]


def test_too_few_images_for_the_labels_name_the_class_and_what_was_set_aside(tmp_path):
    pictures.folder(tmp_path / "set", 8, classes="ab", splits=("",))
    message = "labels_per_class is 9, but class 'a' has only 4 images to train on (2 are for validation, 2 for test: "
    with pytest.raises(UserError, match=re.escape(message) + r"see --holdout\): give at most 4"):
        single.fit(settled(tmp_path, labels_per_class=9), tmp_path / "run", show=False)
    with pytest.raises(UserError, match=r"only 8 images to train on: give at most 8"):
        config = tiny.config("supervised", data=str(tmp_path / "set"), holdout=0.0, labels_per_class=9)
        single.fit(config, tmp_path / "run", show=False)


def test_a_configuration_of_an_earlier_version_is_read(tmp_path):
    config = tiny.config("supervised", steps=1)
    result = single.fit(config, tmp_path / "run", show=False)
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps({**config.flat(), "mirror": "auto"}))
    assert single.fit(config, tmp_path / "run", show=False) == result
    assert restore.classifier(tmp_path / "run", CPU)[0] == config
    assert main(["fit", "--config", str(file), "--out", str(tmp_path / "run")]) == 0


def test_a_run_without_validation_and_test_images_ends_well(tmp_path):
    data = str(pictures.folder(tmp_path / "set", 3, splits=("train",)))
    result = single.fit(tiny.config("supervised", data=data, steps=2, holdout=0.0), tmp_path / "run", show=False)
    assert not {"test", "validation"} & result.keys() and result["data"]["images"] == {"train": 6}
    assert "validation/accuracy" not in tiny.log(tmp_path / "run")[-1]
    report.write([tmp_path / "run"], tmp_path / "report.html")


def test_a_run_goes_on_and_gives_the_same_bytes_with_images_in_a_file(own, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_own, "IN_MEMORY", 10)
    config = tiny.config("supervised", data=str(own / "set"), steps=3, holdout=0.25, fit="pad")
    single.fit(config, tmp_path / "run", show=False)
    weights = "model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (own / "run" / weights).read_bytes()


def test_what_is_for_the_first_rank_is_not_done_by_another(tmp_path, monkeypatch):
    other = SimpleNamespace(joined=nullcontext, rank=lambda: 1, barrier=lambda: None)
    monkeypatch.setattr(single, "distributed", other)
    with pytest.raises(UserError, match=r"result\.json does not exist"):
        single.fit(tiny.config("supervised", steps=1), tmp_path, show=False)
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.pt", "log.jsonl"}  # the engine has its own rank


def test_the_progress_names_the_fit_and_the_method(tmp_path, capsys):
    single.fit(tiny.config("supervised", steps=1), tmp_path / "run", name="cell 3")
    assert capsys.readouterr().err.startswith("cell 3 supervised: step 1/1, ")


def test_features_start_from_a_run(run):
    found = Materials(tiny.config("supervised", init=str(run))).method.model
    assert torch.equal(found.features[1].weight, load_file(run / "model.safetensors")["features.1.weight"])


WRONG = {
    "data": (
        "supervised",
        {"data": "digit"},
        "unknown data set (and there is no such path) 'digit': did you mean",
    ),
    "labels": ("supervised", {"labels_per_class": 500}, "labels_per_class is 500, but class '8' has only 97 images"),
    "negative labels": ("supervised", {"labels_per_class": -1}, "labels_per_class is -1: give at least 1"),
    "model": ("supervised", {"model": "small-cn"}, "unknown model 'small-cn': did you mean 'small-cnn'?"),
    "init": ("supervised", {"init": "nowhere"}, "unknown init (or run directory) 'nowhere'"),
    "init of another": ("supervised", {"init": "foundation", "model": "small-cnn-bn"}, "--init foundation"),
    "device": ("supervised", {"device": "bogus"}, "--device bogus cannot be used here"),
    "generator": (
        "mpssl",
        {"generator": "glyps"},
        "unknown generator (or run directory) 'glyps': did you mean 'glyphs'?",
    ),
    "no generator": ("mpssl", {}, "method 'mpssl' needs --generator: glyphs, letters, the run directory of"),
    "no generator for u": ("fixmatch", {"unlabeled": "generator"}, "--unlabeled generator needs --generator"),
    "no u": (
        "fixmatch",
        {"unlabeled": "none"},
        "method 'fixmatch' needs unlabeled images: --unlabeled pool, generator or both",
    ),
    "too much u": ("supervised", {"unlabeled": "pool"}, "method 'supervised' reads no unlabeled images"),
    "no outer term": ("mpssl", {"generator": "glyphs", "options": {"gap": 0.0, "look_ahead": False}}, "gap is 0"),
    "threshold": ("fixmatch", {"options": {"threshold": 5.0}}, "threshold is 5.0: give a number from 0 to 1"),
    "source of other classes": (
        "gda",
        {"generator": "letters", "source": str(SHIPPED / "glyphs-source")},
        "is a classify run of 62 classes; generator 'letters' has 52: make one",
    ),
    "features that are trained anyway": ("pretext", {"tune_features": "lora"}, "leave it out, as it trains all"),
    "a source that nothing reads": (
        "mpssl",
        {"generator": "glyphs", "source": "x"},
        "method 'mpssl' does not read source: leave it out",
    ),
    "samples of nothing": ("supervised", {"data": "generator:glyps"}, "did you mean 'glyphs'?"),
    "shared but not refined": (
        "transport",
        {"generator": "glyphs", "options": {"refine": False, "shared": True}},
        "shared is true and refine false: there is no gradient to share",
    ),
    "temperature": ("mpssl", {"generator": "glyphs", "options": {"temperature": 0.0}}, "temperature is 0.0"),
    "width": ("gan", {"options": {"width": 0}}, "width is 0: give a number from 1"),
    "meta device": ("supervised", {"device": "meta"}, "--device meta cannot be used here"),
    "log_every": ("supervised", {"log_every": -5}, "log_every is -5"),
    "rate": ("gan", {"options": {"generator_lr": -1.0}}, "Invalid learning rate: -1.0: give another rate"),
}


@pytest.mark.parametrize("method, fields, message", WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_told_before_anything_is_written(method, fields, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        single.fit(tiny.config(method, **fields), tmp_path / "run", show=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["batch", "unlabeled_batch"])
def test_a_batch_that_ranks_cannot_share_is_refused(field, tmp_path, monkeypatch):
    monkeypatch.setattr(single.distributed, "world", lambda: 4)
    with pytest.raises(UserError, match=f"{field} is 6, which 4 processes cannot share evenly: choose a multiple of 4"):
        single.fit(tiny.config("fixmatch", **{field: 6}), tmp_path / "run", show=False)
    assert not list(tmp_path.iterdir())
