"""Probes of runs from the command line: against what is computed by hand, what they write and leave, and mistakes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from semisynth import blocks, models, statistics, weights
from semisynth import probe as measure
from semisynth.cli import main
from semisynth.data import datasets
from semisynth.data.datasets import Images, Reading
from semisynth.errors import UserError
from semisynth.evaluate import wilson
from semisynth.methods import Supervised
from semisynth.probe import Labeled
from semisynth.recipes import probe as recipe
from semisynth.recipes import restore, single
from semisynth.recipes.materials import Materials
from semisynth.recipes.probe import Probe, Work, probe

CPU = torch.device("cpu")
BLOCKS = ["block-1", "block-2", "block-3"]


def sums(place: Path) -> dict[str, str]:
    return {
        file.relative_to(place).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(place.rglob("*"))
        if file.is_file()
    }


# ---- the command, on digits ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probe") / "run"
    single.fit(tiny.config("fixmatch", steps=20, ema=0.5), out, show=False)
    return out


@pytest.fixture(scope="module")
def made(run: Path) -> tuple[Path, dict[str, Any]]:
    """A whole probe, and its record."""
    before, out = sums(run), run.parent / "probed"
    command = ["probe", str(run), "--data", "digits", "--labels-per-class", "0", "2", "--seeds", "100-101"]
    assert main([*command, "--steps", "3", "--features", "--out", str(out)]) == 0
    assert sums(run) == before, "the run is only read"
    return out, weights.read_json(out / "probe.json")


def row(record: dict[str, Any], kind: str, block: str | None, count: int) -> dict[str, Any]:
    (found,) = (
        each
        for each in record["rows"]
        if (each["measure"], each["block"], each["labels_per_class"]) == (kind, block, count)
    )
    return found


def network(run: Path) -> nn.Module:
    config = json.loads((run / "config.json").read_text())
    model = models.build(config["model"], 1, 10)
    model.load_state_dict(load_file(run / "model.safetensors"))
    return model.features.eval()


def test_all_labels_of_the_pool_are_probed_once(run: Path, made: tuple[Path, dict[str, Any]]) -> None:
    data, record = datasets.load("digits"), made[1]
    seen = [blocks.extract(network(run), images, CPU) for images in (data.pool, data.validation, data.test)]
    for block in BLOCKS:
        labeled = [
            Labeled(x[block], y) for x, y in zip(seen, (data.pool.y, data.validation.y, data.test.y), strict=True)
        ]
        found = measure.linear(*labeled, pool=seen[0][block])
        told = {"width": seen[0][block].shape[1], "l2": found.value, "validation": found.validation}
        expected = {"accuracy": found.test, "interval": wilson(round(500 * found.test), 500), "over": "images"}
        there = row(record, "linear", block, 0)
        assert there["each"] == [{"seed": None, **told, "test": found.test}]
        assert {key: there[key] for key in expected} == expected
    found = measure.neighbours(*labeled)
    told = {"width": 128, "k": found.value, "validation": found.validation, "test": found.test}
    assert row(record, "knn", "block-3", 0)["each"] == [{"seed": None, **told}]
    assert len(record["rows"]) == 2 * 4 + 2 and record["pooling"] == blocks.POOLING


def test_few_labels_are_those_that_fine_tuning_has_too(run: Path, made: tuple[Path, dict[str, Any]]) -> None:
    out, record = made
    data, tests = datasets.load("digits"), []
    seen = [blocks.extract(network(run), images, CPU)["block-3"] for images in (data.pool, data.validation, data.test)]
    for seed, each in zip((100, 101), row(record, "knn", "block-3", 2)["each"], strict=True):
        config = restore.configuration(out / "fits" / "full" / "2" / str(seed))
        labeled = Materials(config).labeled
        with torch.no_grad():
            x = network(run)(labeled.x[:].float() / 255)  # type: ignore[index]
        known = Labeled(x, labeled.y)
        found = measure.neighbours(known, Labeled(seen[1], data.validation.y), Labeled(seen[2], data.test.y))
        told = {"width": 128, "k": found.value, "validation": found.validation, "test": found.test}
        assert each == {"seed": seed, **told} and found.value <= 20
        assert linear_of(known, seen, data, record, seed)
        tests.append(found.test)
    there = row(record, "knn", "block-3", 2)
    ends = [min(max(end, 0), 1) for end in statistics.t_interval(tests)]
    assert tests[0] != tests[1] and (there["accuracy"], there["interval"]) == (pytest.approx(sum(tests) / 2), ends)
    assert there["over"] == "seeds"


def linear_of(known: Labeled, seen: list[torch.Tensor], data: Any, record: dict[str, Any], seed: int) -> bool:
    found = measure.linear(known, Labeled(seen[1], data.validation.y), Labeled(seen[2], data.test.y), seen[0])
    (each,) = (each for each in row(record, "linear", "block-3", 2)["each"] if each["seed"] == seed)
    return (each["l2"], each["validation"], each["test"]) == (found.value, found.validation, found.test)


def test_fine_tuning_is_a_fit_from_the_run(run: Path, made: tuple[Path, dict[str, Any]]) -> None:
    out, record = made
    for arm, method in (("frozen", "linearprobe"), ("full", "supervised")):
        for seed, each in zip((100, 101), row(record, arm, None, 2)["each"], strict=True):
            place = out / "fits" / arm / "2" / str(seed)
            config, result = restore.configuration(place), weights.read_json(place / "result.json")
            assert (config.method, config.setting.init, config.setting.steps) == (method, str(run), 3)
            told = {split: result[split]["accuracy"] for split in ("validation", "test")}
            assert each == {"seed": seed, **told}
            start, end = load_file(run / "model.safetensors"), load_file(place / "model.safetensors")
            still = [start[name].equal(end[name]) for name in start if name.startswith("features.")]
            assert all(still) if arm == "frozen" else not any(still)
    assert all(each["labels_per_class"] == 2 for each in record["rows"] if each["block"] is None)


def test_the_table_has_a_row_for_each_image(run: Path, made: tuple[Path, dict[str, Any]]) -> None:
    table, data = pandas.read_parquet(made[0] / "features.parquet"), datasets.load("digits")
    assert list(table.columns) == ["split", "index", "label", "features"]
    assert table["split"].value_counts().to_dict() == {"train": 997, "test": 500, "validation": 300}
    for split, images in (("train", data.pool), ("validation", data.validation), ("test", data.test)):
        part = table[table["split"] == split]
        assert part["index"].tolist() == list(range(len(images)))
        assert part["label"].tolist() == [data.classes[y] for y in images.y.tolist()]
        with torch.no_grad():
            x = network(run)(images.x[:].float() / 255)  # type: ignore[index]
        np.testing.assert_allclose(np.stack(part["features"].tolist()), x.numpy(), atol=1e-5)
    assert table["features"][0].dtype == np.float32


def test_what_is_finished_is_left_as_it_is_and_told_again(
    run: Path, made: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, record = made
    before = sums(out)
    assert [name for name in before if "/" not in name] == ["features.parquet", "probe.json"]
    command = ["probe", str(run), "--data", "digits", "--labels-per-class", "0", "2", "--steps", "3", "--out", str(out)]
    assert main([*command, "--seeds", "100,101", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == record and told.err == ""
    assert main([*command, "--seeds", "100-101"]) == 0
    text = capsys.readouterr().out
    assert f"{run} (fixmatch, small-cnn) on digits" in text and "300 validation images" in text
    high = row(record, "linear", "block-1", 0)
    low, up = (f"{100 * end:.1f}" for end in high["interval"])
    few = row(record, "frozen", None, 2)
    assert re.search(rf"linear, block-1 .* {100 * high['accuracy']:.1f} \[{low}, {up}\]\*", text)
    assert re.search(rf"fine-tuned head +{100 * few['accuracy']:.1f} \[", text)
    assert main([*command, "--seeds", "100-102"]) == 2
    assert "holds another probe: seeds ([100, 101] there, [100, 101, 102] asked)" in capsys.readouterr().err
    assert sums(out) == before


# ---- on a small set of one's own -------------------------------------------------------------------------------------

COUNTS = {"train": 60, "validation": 30, "test": 30, "unlabeled": 9}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes that differ a little, and some without a class."""
    split, source = np.repeat([*COUNTS], [*COUNTS.values()]), np.random.RandomState(0)
    labels = np.where(split == "unlabeled", -1, np.arange(len(split)) % 3)
    x = source.randint(200, size=(len(split), 8, 8)) + 55 * (np.arange(8) // 3 == labels[:, None])[:, None]
    root = tmp_path_factory.mktemp("own")
    np.savez(root / "own.npz", images=x.astype(np.uint8), labels=labels, split=split)
    single.fit(tiny.config("supervised", data=str(root / "own.npz")), root / "run", show=False)
    return root


def asked(own: Path, **other: Any) -> Probe:
    return Probe(**{"run": str(own / "run"), "data": str(own / "own.npz"), **other})


def test_an_interruption_changes_nothing(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, whole, cut = asked(own, run="none", seeds=[1, 2]), tmp_path / "whole", tmp_path / "cut"
    expected = probe(options, whole, command="it", show=False)
    measured, count = measure.neighbours, []

    def failing(*given: Any) -> Any:
        count.append(given)
        if len(count) == 2:
            raise KeyboardInterrupt
        return measured(*given)

    monkeypatch.setattr(recipe.measure, "neighbours", failing)
    with pytest.raises(KeyboardInterrupt):
        probe(options, cut, show=False)
    assert not (cut / "probe.json").exists() and (cut / "parts" / "0-1.json").exists()
    with pytest.raises(UserError, match=r"holds another probe: steps \(400 there, 3 asked\)"):
        probe(replace(options, steps=3), cut, show=False)
    assert probe(options, cut, command="it", show=False) == expected and len(count) == 3
    assert [file.name for file in cut.iterdir()] == ["probe.json"]


def test_a_part_that_was_measured_is_not_measured_again(own: Path, tmp_path: Path) -> None:
    options = asked(own)
    expected = probe(options, tmp_path / "a", show=False)
    work = Work(options)
    recipe.directory.make(tmp_path / "b" / "parts")
    weights.write_json(tmp_path / "b" / "parts" / "probe.json", work.identity)
    work.parts(tmp_path / "b" / "parts", show=False)
    there = weights.read_json(tmp_path / "b" / "parts" / "0-100.json")
    there["knn"]["block-3"]["test"] = 0.123
    weights.write_json(tmp_path / "b" / "parts" / "0-100.json", there)
    found = probe(options, tmp_path / "b", show=False)
    assert row(found, "knn", "block-3", 0)["accuracy"] == 0.123
    assert row(found, "linear", "block-2", 0) == row(expected, "linear", "block-2", 0)


def test_labels_of_the_test_images_select_nothing(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = datasets.load

    def shuffled(*given: Any) -> Any:
        data = load(*given)
        return replace(data, test=Images(data.test.x, data.test.y.roll(1)))

    found = probe(asked(own), tmp_path / "a", show=False)
    monkeypatch.setattr(datasets, "load", shuffled)
    other = probe(asked(own), tmp_path / "b", show=False)
    for one, two in zip(found["rows"], other["rows"], strict=True):
        for a, b in zip(one["each"], two["each"], strict=True):
            assert {k: v for k, v in a.items() if k != "test"} == {k: v for k, v in b.items() if k != "test"}
        assert one["accuracy"] != two["accuracy"]


def test_other_data_and_a_run_that_was_trained_again_are_refused(own: Path, tmp_path: Path) -> None:
    run, data, out = tmp_path / "run", tmp_path / "own.npz", tmp_path / "out"
    data.write_bytes((own / "own.npz").read_bytes())
    single.fit(tiny.config("supervised", data=str(data)), run, show=False)
    options = Probe(str(run), str(data))
    probe(options, out, show=False)
    kept, before = (run / "model.safetensors").read_bytes(), sums(out)
    save_file({name: value + 1 for name, value in load_file(run / "model.safetensors").items()}, run / "new")
    (run / "new").rename(run / "model.safetensors")
    with pytest.raises(UserError, match="holds another probe: fingerprint "):
        probe(options, out, export=True, show=False)
    (run / "model.safetensors").write_bytes(kept)
    stored: dict[str, Any] = dict(np.load(data))
    stored["images"][0] ^= 1
    np.savez(data, **stored)
    with pytest.raises(UserError, match="holds another probe: hash "):
        probe(options, out, export=True, show=False)
    assert sums(out) == before


def test_random_features_are_those_with_which_a_fit_of_the_seed_begins(own: Path, tmp_path: Path) -> None:
    work = Work(asked(own, run="none", model="wrn-10-1", labels_per_class=[1], seeds=[5]))
    materials = Materials(work.fits(tmp_path)[0].config)
    begins = {k: v for k, v in materials.method.model.state_dict().items() if k.startswith("features.")}
    drawn = {f"features.{name}": value for name, value in work.features(5).state_dict().items()}
    assert tiny.same(drawn, begins) and not tiny.same(begins, {f"features.{k}": v for k, v in other(work).items()})
    found = probe(asked(own, run="none", seeds=[5, 6]), tmp_path / "out", export=True, show=False)
    each = row(found, "linear", "block-2", 0)
    assert [one["seed"] for one in each["each"]] == [5, 6] and each["over"] == "seeds"
    one, two = ([each["each"][i]["test"] for each in found["rows"]] for i in range(2))
    assert one != two and found["run"]["fingerprint"] is None
    table = pandas.read_parquet(tmp_path / "out" / "features.parquet")
    assert table["split"].value_counts().to_dict() == COUNTS
    assert table[table["split"] == "unlabeled"]["label"].isna().all() and not table["label"][:120].isna().any()


def other(work: Work) -> dict[str, Any]:
    found: dict[str, Any] = work.features(6).state_dict()
    return found


def test_features_that_were_trained_without_a_classifier(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, run = probe(asked(own), tmp_path / "a", show=False), tmp_path / "run"
    recipe.directory.make(run)
    for name in ("config.json", "result.json"):
        (run / name).write_bytes((own / "run" / name).read_bytes())
    stored = load_file(own / "run" / "model.safetensors")
    kept = {name: value for name, value in stored.items() if name.startswith("features.")}
    save_file({**kept, "heads.rotation.weight": torch.zeros(4, 128)}, run / "model.safetensors")
    monkeypatch.setattr(Supervised, "task", "represent")
    found = probe(asked(own, run=str(run)), tmp_path / "b", show=False)
    assert found["rows"] == expected["rows"]
    assert found["run"]["fingerprint"] == expected["run"]["fingerprint"]
    fit = Work(asked(own, run=str(run), labels_per_class=[1])).fits(tmp_path)[0].config
    begins = Materials(fit).method.model.state_dict()
    assert fit.method == "linearprobe" and all(begins[name].equal(value) for name, value in kept.items())
    with pytest.raises(UserError, match="holds features and no classifier: train one on them"):
        restore.classifier(run, CPU)
    save_file({"heads.rotation.weight": torch.zeros(4, 128)}, run / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors has no weights called 'features\.\*'"):
        probe(asked(own, run=str(run)), tmp_path / "c", show=False)


def test_ones_own_images_are_made_to_be_what_the_run_reads(own: Path, tmp_path: Path) -> None:
    stored: dict[str, Any] = dict(np.load(own / "own.npz"))
    colour = stored["images"].repeat(2, 1).repeat(2, 2)[..., None].repeat(3, 3)
    np.savez(tmp_path / "colour.npz", **{**stored, "images": colour})
    work = Work(asked(own, data=str(tmp_path / "colour.npz"), labels_per_class=[1]))
    assert work.data.shape == (1, 8, 8)
    assert Materials(work.fits(tmp_path)[0].config).data.shape == (1, 8, 8)
    for reading in (Reading(channels="rgb"), Reading(size=16)):
        with pytest.raises(UserError, match=r"reads images of 1 x 8 x 8, .* leave --size and --channels out"):
            Work(asked(own, data=str(tmp_path / "colour.npz"), reading=reading))
    with pytest.raises(UserError, match="of 1 x 8 x 8, and digits has 1 x 16 x 16: give a run on such images"):
        Work(asked(own, data="digits"))


def test_foundation_has_the_features_that_ship(own: Path) -> None:
    work = Work(Probe("foundation", str(own / "own.npz"), labels_per_class=[1]))
    stored = load_file(weights.SHIPPED / "glyphs-small-cnn" / "model.safetensors")
    assert work.subject.features is not None and work.data.shape == (1, 16, 16)
    for name, value in work.subject.features.state_dict().items():
        assert stored[f"features.{name}"].equal(value)
    assert {cell.config.setting.init for cell in work.fits(Path("out"))} == {"foundation"}


# ---- mistakes --------------------------------------------------------------------------------------------------------


def refused(options: Probe, out: Path, message: str, **given: Any) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        probe(options, out, show=False, **given)
    assert not out.exists()


def test_mistakes(own: Path, tmp_path: Path, generator: str) -> None:
    out = tmp_path / "out"
    refused(asked(own, run="nowhere"), out, "nowhere/config.json does not exist: give the path of a run directory")
    refused(asked(own, run=generator), out, "holds a generator, which has no features: give a run that trained")
    refused(asked(own, model="wrn-16-2"), out, "holds a 'small-cnn', not a 'wrn-16-2': leave --model out")
    refused(asked(own, labels_per_class=[0, 21]), out, "class '0' has only 20 images to train on")
    refused(asked(own, labels_per_class=[1], lr=-1.0), out, "lr is -1")
    refused(asked(own, labels_per_class=[1]), out, "--workers is 0", workers=0)
    with pytest.raises(UserError, match="labels_per_class is -1"):
        asked(own, labels_per_class=[-1])
    with pytest.raises(UserError, match="give at least one of"):
        asked(own, seeds=[])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a probe"):
        probe(asked(own), tmp_path / "taken", show=False)
    stored: dict[str, Any] = dict(np.load(own / "own.npz"))
    np.savez(tmp_path / "untested.npz", images=stored["images"][:60], labels=stored["labels"][:60])
    untested = asked(own, data=str(tmp_path / "untested.npz"), reading=Reading(holdout=0.0))
    refused(untested, out, "has no images for validation: add some, or give --holdout 0.2")


def test_a_run_that_is_not_finished(own: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes((own / "run" / "config.json").read_bytes())
    refused(asked(own, run=str(tmp_path / "run")), tmp_path / "out", "is not finished: the same fit goes on where it")


@pytest.mark.parametrize("model, names", [("small-cnn", BLOCKS), ("wrn-10-1", ["group-1", "group-2", "group-3"])])
def test_adapters_are_in_the_weights_of_the_blocks(model: str, names: list[str], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    fields = {"model": model, "tune_features": "lora", "lora_rank": 2, "lr": 0.5, "steps": 3, "ema": 0.0}
    single.fit(tiny.config("supervised", **fields), tmp_path, show=False)
    _, plain, _ = restore.features(tmp_path, CPU)
    assert list(blocks.stages(plain)) == names and not [name for name, _ in plain.named_parameters() if "lora" in name]
    _, adapted, _, _ = restore.classifier(tmp_path, CPU)
    x = torch.rand(4, 1, 16, 16)
    torch.testing.assert_close(plain(x), adapted.features(x), atol=1e-5, rtol=1e-4)
    first = models.build(model, 1, 10).features
    assert not torch.allclose(first(x), plain(x))
