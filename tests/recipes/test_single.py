"""A configuration and what is made of it: the parts of a method, a run directory, errors before anything is written."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from semisynth import generators, methods
from semisynth.data import datasets
from semisynth.data.stream import to_float
from semisynth.errors import UserError
from semisynth.evaluate import classify
from semisynth.recipes import single
from semisynth.recipes.single import Config, Materials, Setting

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


# ---- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", single.method_names())
def test_a_flat_configuration_comes_back(method):
    options = single.method_options(method)
    config = Config.of({"method": {"name": method}, "steps": 7, "lr": 0.5})
    assert (config.method, config.options, config.setting.steps, config.engine.lr) == (method, options, 7, 0.5)
    assert Config.of(json.loads(json.dumps(config.flat()))) == config
    assert config.flat()["method"] == {"name": method, **options}


def test_options_that_are_given_replace_defaults():
    config = Config.of({"method": {"name": "fixmatch", "threshold": 0.5}})
    assert config.options == {**single.method_options("fixmatch"), "threshold": 0.5}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"stepz": 3}, "unknown field in a.json: 'stepz': did you mean 'steps'?"),
        ({"steps": "x"}, "'steps' in a.json is 'x': it must be of type int"),
        ({"schedule": "linear"}, "'schedule' in a.json is 'linear': it must be of type Literal"),
        ({"method": {"name": "fixmatch", "treshold": 1}}, "did you mean 'threshold'?"),
        ({"method": {"name": "fixmatch", "threshold": "x"}}, "'method.threshold' in a.json is 'x'"),
        ({"method": {"name": "fixmatsh"}}, "unknown method 'fixmatsh': did you mean 'fixmatch'?"),
        ({"method": "fixmatch"}, "'method' in a.json is 'fixmatch': it must be of type dict"),
        ({"steps": 0}, "steps is 0: give at least 1"),
        ({"batch": -1}, "batch is -1: give at least 1"),
        ({"lr": -1}, "lr is -1: give a number from 0"),
    ],
)
def test_a_wrong_configuration_is_told_with_its_file(content, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Config.of({"method": {"name": "supervised"}, **content}, "a.json")


def test_methods_are_known_by_their_class_in_lower_case():
    assert {"supervised", "fixmatch", "meanteacher", "scr", "mpssl", "gan"} <= set(single.method_names())
    assert single.method_names() == sorted(single.method_names())
    assert single.method_class("mpssl") is methods.MPSSL


def test_parts_have_no_default_and_options_have_one():
    assert single.method_parts("fixmatch") == {"model", "weak", "strong"}
    assert single.method_options("fixmatch") == {"threshold": 0.95, "weight": 1.0, "view": "weak"}


# ---- materials -------------------------------------------------------------------------------------------------------


def rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


def test_labels_are_drawn_from_the_pool_and_the_rest_is_unlabeled():
    found, pool = Materials(tiny.config("fixmatch", labels_per_class=3)), datasets.load("digits").pool
    assert found.labeled.y.bincount().tolist() == [3] * 10
    assert len(found.labeled) + len(found.rest) == len(pool)
    assert rows(found.labeled.x) | rows(found.rest.x) == rows(pool.x)
    assert len(rows(found.labeled.x) & rows(found.rest.x)) <= len(pool) - len(rows(pool.x))
    batch = found.stream(0)
    assert rows(batch.x) <= rows(to_float(found.labeled.x))
    assert torch.equal(batch.u, to_float(found.rest.x[batch.index]))
    assert (len(batch.x), len(batch.u), batch.progress) == (8, 8, 0.0)


def test_no_number_of_labels_means_all_of_them():
    found, pool = Materials(tiny.config("fixmatch", labels_per_class=0)), datasets.load("digits").pool
    assert torch.equal(found.labeled.y, pool.y) and torch.equal(found.rest.x, pool.x)


def test_labels_weights_batches_and_classes_come_from_the_seed_alone(generator):
    def content(seed):
        torch.manual_seed(int(torch.randint(99, ())))
        found = Materials(tiny.config("mpssl", generator, seed=seed))
        return [found.labeled.y, found.labeled.x, found.method.state_dict(), found.stream(3).x, found.generator.order]

    one, again, other = content(0), content(0), content(1)
    assert tiny.same(one, again)
    assert not any(map(tiny.same, one[1:], other[1:]))


def test_the_generator_has_its_classes_shuffled(generator):
    found = Materials(tiny.config("mpssl", generator))
    z, y = torch.randn(10, *found.generator.latent_shape), torch.arange(10)
    plain = generators.load(generator)
    torch.testing.assert_close(found.generator(z, y), plain(z, found.generator.order[y]))
    assert found.method.generator.module is found.generator


def test_features_start_from_the_foundation_and_the_head_anew():
    found, fresh = (Materials(tiny.config("supervised", init=init)).method.model for init in ("foundation", "none"))
    shipped = load_file(Path(single.__file__).parents[1] / "shipped" / "glyphs-small-cnn" / "model.safetensors")
    for name, value in found.features.state_dict().items():
        assert torch.equal(value, shipped[f"features.{name}"])
    assert found.head.weight.shape == (10, 128) and not tiny.same(found.state_dict(), fresh.state_dict())


def test_features_start_from_a_run(run):
    found = Materials(tiny.config("supervised", init=str(run))).method.model
    assert torch.equal(found.features[1].weight, load_file(run / "model.safetensors")["features.1.weight"])


@pytest.mark.parametrize(
    "method, fields, generated",
    [
        ("fixmatch", {}, False),
        ("fixmatch", {"generator": True}, True),
        ("fixmatch", {"generator": True, "unlabeled": "pool"}, False),
        ("fixmatch", {"generator": True, "unlabeled": "generator"}, True),
        ("supervised", {"generator": True}, None),
        ("supervised", {"unlabeled": "none"}, None),
        ("mpssl", {"generator": True}, None),
    ],
)
def test_unlabeled_images_come_from_where_the_setting_says(method, fields, generated, generator):
    named = {"generator": generator} if "generator" in fields else {}
    batch = Materials(Config.of({**tiny.content(method), **fields, **named})).stream(0)
    assert len(batch.u) == (0 if generated is None else 8)
    assert generated is None or bool((batch.index < 0).all()) == generated
    assert generated is None or bool(((batch.u >= 0) & (batch.u <= 1)).all())


WRONG = {
    "data": ("supervised", {"data": "digit"}, "unknown data set 'digit': did you mean 'digits'?"),
    "labels": ("supervised", {"labels_per_class": 500}, "labels_per_class is 500, but class 8 has only 97 images"),
    "negative labels": ("supervised", {"labels_per_class": -1}, "labels_per_class is -1: give at least 1"),
    "model": ("supervised", {"model": "small-cn"}, "unknown model 'small-cn': did you mean 'small-cnn'?"),
    "init": ("supervised", {"init": "nowhere"}, "--init nowhere: no trained features for 'small-cnn' there"),
    "init of another": ("supervised", {"init": "foundation", "model": "small-cnn-bn"}, "--init foundation"),
    "device": ("supervised", {"device": "bogus"}, "--device bogus cannot be used here"),
    "generator": (
        "mpssl",
        {"generator": "glyps"},
        "unknown generator (or run directory) 'glyps': did you mean 'glyphs'?",
    ),
    "no generator": ("mpssl", {}, "method 'mpssl' needs --generator: glyphs, letters or a run directory"),
    "no generator for u": ("fixmatch", {"unlabeled": "generator"}, "--unlabeled generator needs --generator"),
    "no u": ("fixmatch", {"unlabeled": "none"}, "method 'fixmatch' needs unlabeled images: --unlabeled pool or"),
    "too much u": ("supervised", {"unlabeled": "pool"}, "method 'supervised' reads no unlabeled images"),
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


# ---- the run directory -----------------------------------------------------------------------------------------------


def test_a_run_directory_is_whole(run):
    names = {"config.json", "log.jsonl", "checkpoint.pt", "model.safetensors", "result.json"}
    assert {file.name for file in run.iterdir()} == names
    config = tiny.config("supervised", checkpoint_every=2, evaluate_every=3)
    assert json.loads((run / "config.json").read_text()) == config.flat()
    log = tiny.log(run)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log if "validation/accuracy" in line] == [3, 6]
    assert all(math.isfinite(line["classifier/supervised"]) for line in log)


def test_the_result_is_that_of_the_averaged_weights(run):
    result, data = json.loads((run / "result.json").read_text()), datasets.load("digits")
    config, model, found = single.trained(run, CPU)
    assert found is data and config == tiny.config("supervised", checkpoint_every=2, evaluate_every=3)
    assert not model.training
    assert result["test"] == classify(model, data.test, data.classes)
    assert result["validation"] == classify(model, data.validation, data.classes)
    assert tiny.log(run)[-1]["validation/loss"] == result["validation"]["loss"]
    assert tiny.same(dict(model.state_dict()), dict(tiny.checkpoint(run)["ema"]))
    facts = {"method": "supervised", "task": "classify", "labels_per_class": 2, "seed": 0, "steps": 6, "finished": True}
    assert facts.items() <= result.items()
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


@pytest.mark.parametrize("name, message", [("config.json", "It must be JSON"), ("checkpoint.pt", "is damaged")])
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


def test_a_generator_is_the_average_of_the_trained_one(generator):
    kept = load_file(Path(generator) / "model.safetensors")
    assert tiny.same(kept, {name: tiny.checkpoint(Path(generator))["ema"][name] for name in kept})
    assert not tiny.same(kept, {name: tiny.checkpoint(Path(generator))["method"][f"model.{name}"] for name in kept})


def test_only_a_finished_classifier_is_trained(run, generator, tmp_path):
    with pytest.raises(UserError, match="holds a generator, not a classifier"):
        single.trained(Path(generator), CPU)
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        single.trained(tmp_path, CPU)
    shutil.copy(run / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors does not exist: it is written when a run ends"):
        single.trained(tmp_path, CPU)


def test_the_progress_names_the_fit_and_the_method(tmp_path, capsys):
    single.fit(tiny.config("supervised", steps=1), tmp_path / "run", name="cell 3")
    assert capsys.readouterr().err.startswith("cell 3 supervised: step 1/1, ")


# ---- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_says_what_a_figure_depends_on(run):
    found = single.environment(CPU)
    assert found.pop("commit", None) == single.commit()
    assert found.items() <= json.loads((run / "result.json").read_text())["environment"].items()
    assert found["torch"] == torch.__version__ and found["device"].startswith("cpu: ") and found["threads"] == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", found["python"]) and found["platform"] and found["semisynth"]


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    checkout = (Path(single.__file__).parents[2] / ".git").exists()
    found = single.commit()
    assert re.fullmatch(r"[0-9a-f]{7,}\+?", found) if checkout else found is None
    monkeypatch.setattr(single, "__file__", str(tmp_path / "a" / "b" / "single.py"))
    assert single.commit() is None
    (tmp_path / ".git").mkdir()
    assert single.commit() is None


def test_a_setting_has_at_least_one_of_everything():
    for name in ("steps", "batch", "unlabeled_batch"):
        with pytest.raises(UserError, match=f"{name} is 0: give at least 1"):
            Setting(**{name: 0})
