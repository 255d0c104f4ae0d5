"""DPT: what each stage is made of, what is shared and what is made again, and that an interruption changes nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import backbones
import pytest
import tiny
import torch
from pyarrow import parquet as arrow

from semisynth import weights
from semisynth.cli import main
from semisynth.data import datasets
from semisynth.errors import UserError
from semisynth.generators.diffusion import Diffusion
from semisynth.models import foreign
from semisynth.recipes import shards
from semisynth.recipes import stages as recipe
from semisynth.recipes.dpt import DPT, dpt
from semisynth.recipes.materials import drawn
from semisynth.recipes.stages import Stage

SMALL = DPT("digits-pool", labels_per_class=3, steps=3, diffusion_steps=3, images_per_class=2, sampler_steps=2)


def rows(stage: dict[str, Any] | Stage, split: str | None = None) -> list[dict[str, Any]]:
    path = Path(stage["path"]) if isinstance(stage, dict) else stage.path
    found: list[dict[str, Any]] = arrow.read_table(path / "data.parquet").to_pylist()
    return [row for row in found if split in (None, row["split"])]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("dpt") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "SHARD", 8)
        return out, dpt(SMALL, out)


def contents(out: Path) -> dict[str, bytes]:
    """Of what is no log."""
    kept = ("model.safetensors", ".parquet")
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.name.endswith(kept)}


def test_all_stages_are_told(made: tuple[Path, dict[str, Any]]) -> None:
    out, told = made
    assert list(told["stages"]) == ["classifier-0", "labels-1", "diffusion-1", "images-1", "quality-1", "classifier-1"]
    assert told == weights.read_json(out / "dpt.json") | {"options": told["options"]}
    for name in ("classifier-0", "classifier-1"):
        result = weights.read_json(Path(told["stages"][name]["path"]) / "result.json")
        assert told["stages"][name]["test"] == result["test"]["accuracy"]


def test_true_labels_are_kept_with_care_and_overwritten_as_published(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = datasets.load("digits-pool")
    labeled, rest = drawn(data, 3, 0)
    monkeypatch.setattr(recipe, "logits", lambda model, images, *a, **k: torch.eye(10)[torch.full((len(images),), 7)])
    for arm, true in (("careful", True), ("faithful", False)):
        work = recipe.Work(replace(SMALL, arm=arm), tmp_path / arm)
        found = rows(work.labels(work.classifier(None, 0)))
        assert len(found) == len(labeled) + len(rest) and {row["split"] for row in found} == {"train"}
        first = [row["label"] for row in found[:30]]
        assert first == ([data.classes[c] for c in labeled.y.tolist()] if true else ["7"] * 30)
        assert {row["label"] for row in found[30:]} == {"7"}


def test_so_many_images_of_each_class_from_latents_of_their_own(made: tuple[Path, dict[str, Any]]) -> None:
    path = Path(made[1]["stages"]["images-1"]["path"])
    shards = [arrow.read_table(file).to_pylist() for file in sorted(path.glob("*.parquet"))]
    assert [len(shard) for shard in shards] == [8, 8, 4]
    found = [row for shard in shards for row in shard]
    assert [row["index"] for row in found] == list(range(20))
    assert Counter(row["label"] for row in found) == {str(c): 2 for c in range(10)}
    assert len({row["image"] for row in found}) == 20


def test_an_image_has_the_name_of_the_class_that_it_was_asked_for(tmp_path: Path) -> None:
    """A classifier may never predict a class, so that the diffusion model numbers the others anew."""
    work = recipe.Work(replace(SMALL, arm="faithful"), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        scores = torch.eye(10)[2 + 5 * (torch.arange(10_000) % 2)]  # of the classes 2 and 7
        patch.setattr(recipe, "logits", lambda model, images, *a, **k: scores[: len(images)])
        labels = work.labels(work.classifier(None, 0))
    diffusion = work.diffusion(labels)
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Diffusion, "forward", lambda self, z, y: asked.extend(y.tolist()) or z.clamp(0, 1))
        path = work.images(diffusion).path
    found = [row["label"] for row in arrow.read_table(path / "00000.parquet").to_pylist()]
    assert (found, asked) == (["2", "7", "2", "7"], [0, 1, 0, 1])


def test_the_second_classifier_learns_from_real_and_synthetic_images(made: tuple[Path, dict[str, Any]]) -> None:
    stage = made[1]["stages"]["classifier-1"]
    config = weights.read_json(Path(stage["path"]) / "config.json")
    data = {"path": str(Path(config["data"]).parent)}
    counts = Counter(row["split"] for row in rows(data))
    assert counts == {"train": 20 + 30, "unlabeled": 627, "validation": 150, "test": 350}
    assert {row["label"] for row in rows(data, "unlabeled")} == {None}
    loaded = datasets.load(config["data"], datasets.Reading(size=16, holdout=0.0))
    assert loaded.test.x[:].equal(datasets.load("digits-pool").test.x[:])


@pytest.mark.parametrize("arm, share, made, repeats", [("careful", 0.5, 300, 10), ("careful", 0.25, 300, 3),
                                                       ("careful", 0.5, 0, 1), ("faithful", 0.5, 300, 1)])  # fmt: skip
def test_real_images_are_repeated_up_to_their_share(
    arm: Any, share: float, made: int, repeats: int, tmp_path: Path
) -> None:
    work = recipe.Work(replace(SMALL, arm=arm, real_share=share), tmp_path)
    assert work._repeats(made) == repeats and len(work.labeled) == 30


def test_only_what_depends_on_an_option_is_made_again(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    work = recipe.Work(SMALL, tmp_path)
    a = {name: Path(stage["path"]).name for name, stage in made[1]["stages"].items()}

    def names(**options: Any) -> dict[str, str]:
        other = recipe.Work(replace(SMALL, **options), made[0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe.single, "fit", lambda *a, **k: None)
            patch.setattr(recipe.parquet, "write", lambda *a: None)
            patch.setattr(recipe.Work, "_logits", lambda work, classifier, images: torch.zeros(len(images), 10))
            classifier = other.classifier(None, 0)
            labels = other.labels(classifier)
            diffusion = other.diffusion(labels)
            return {
                "classifier-0": classifier.path.name,
                "labels-1": labels.path.name,
                "diffusion-1": diffusion.path.name,
            }

    assert work.out == tmp_path
    same = names()
    assert same == {name: a[name] for name in same}
    later = names(diffusion_steps=4)
    assert (later["classifier-0"], later["labels-1"]) == (a["classifier-0"], a["labels-1"])
    assert later["diffusion-1"] != a["diffusion-1"]
    assert not set(names(seed=1).values()) & set(a.values())


def test_what_is_lost_is_made_again_with_the_same_bytes(
    made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "SHARD", 8)
    out, told = made
    before = contents(out)
    images = Path(told["stages"]["images-1"]["path"])
    (images / "00001.parquet").unlink()
    kept = (images / "00000.parquet").stat().st_mtime_ns
    assert dpt(SMALL, out) == told and contents(out) == before
    assert (images / "00000.parquet").stat().st_mtime_ns == kept


def test_the_command_goes_on_from_what_is_there(made: tuple[Path, dict[str, Any]], capsys: Any) -> None:
    command = ["dpt", "--data", "digits-pool", "--labels-per-class", "3", "--steps", "3", "--diffusion-steps", "3"]
    command += ["--images-per-class", "2", "--sampler-steps", "2", "--out", str(made[0])]
    before = contents(made[0])
    assert main(command) == 0
    told = capsys.readouterr().out.splitlines()
    stages = made[1]["stages"]
    assert [line.partition(":")[0] for line in told if not line.startswith(" ")] == list(stages)
    assert told[1] == f"labels-1: {stages['labels-1']['path']}: accuracy {stages['labels-1']['accuracy']:.3f}"
    right, agreed = stages["labels-1"]["per_class"]["3"], stages["quality-1"]["agreement"]["3"]
    (of_class,) = [line for line in told if line.startswith("  class 3: ")]
    assert of_class.startswith(f"  class 3: images taken for it {agreed:.3f}")
    assert of_class.endswith(f"recall of its labels {right['recall']:.3f}")
    assert told[-1].endswith(f"test accuracy {stages['classifier-1']['test']:.3f}")
    assert contents(made[0]) == before
    assert main([*command, "--classifier", '{"weigth": 2}']) == 2
    assert "weigth" in capsys.readouterr().err


def test_what_is_told_of_labels_and_images(made: tuple[Path, dict[str, Any]]) -> None:
    stages = made[1]["stages"]
    work = recipe.Work(SMALL, made[0])
    truth = [work.data.classes[c] for c in work.rest.y.tolist()]
    given = [row["label"] for row in rows(stages["labels-1"])][30:]
    right = [one == other for one, other in zip(given, truth, strict=True)]
    assert stages["labels-1"]["accuracy"] == pytest.approx(sum(right) / len(right))
    for name, told in stages["labels-1"]["per_class"].items():
        hit = sum(one == other == name for one, other in zip(given, truth, strict=True))
        assert told["recall"] == pytest.approx(hit / truth.count(name))
        assert told["precision"] == (pytest.approx(hit / given.count(name)) if name in given else None)
    path = Path(stages["quality-1"]["path"])
    images = work.made(Stage(Path(stages["images-1"]["path"]), ""))
    assert images.y.tolist() == [i % 10 for i in range(20)]
    _, model, _ = recipe.restore.trained(Path(stages["classifier-0"]["path"]), torch.device("cpu"))
    predicted = model(images.x[:].float() / 255).argmax(1)
    for c, name in enumerate(work.data.classes):
        assert stages["quality-1"]["agreement"][name] == (predicted[c::10] == c).double().mean().item()
    assert stages["quality-1"]["images"] == 20 and (path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_images_may_be_asked_for_by_their_difficulty(tmp_path: Path) -> None:
    told = dpt(replace(SMALL, difficulty=0.3), tmp_path)["stages"]
    config = weights.read_json(Path(told["diffusion-1"]["path"]) / "config.json")
    assert config["judge"] == told["classifier-0"]["path"]
    asked = shards.drawn(0.3, range(4000))
    assert asked.mean().item() == pytest.approx(0.3, abs=0.01)
    assert asked.std().item() == pytest.approx(0.1, abs=0.01) and asked.min() >= 0 and asked.max() <= 1
    other = dpt(replace(SMALL, difficulty=0.9), tmp_path)["stages"]
    assert other["diffusion-1"] == told["diffusion-1"] and other["images-1"] != told["images-1"]


def test_the_diffusion_model_may_learn_from_other_labels(tmp_path: Path) -> None:
    true = recipe.Work(replace(SMALL, labels="true"), tmp_path)
    stage = true.labels(Stage(tmp_path, ""))
    assert [row["label"] for row in rows(stage)] == [true.data.classes[c] for c in true.data.pool.y.tolist()]
    other = recipe.Work(replace(SMALL, labels="true", labels_per_class=2), tmp_path)
    assert other.labels(Stage(tmp_path, "")) == stage
    few = rows(recipe.Work(replace(SMALL, labels="labeled"), tmp_path).labels(Stage(tmp_path, "")))
    assert [row["label"] for row in few] == [true.data.classes[c] for c in true.labeled.y.tolist()]
    none = replace(SMALL, labels="none")
    told = dpt(none, tmp_path)["stages"]
    assert len(rows(told["labels-1"])) == 657 and list(told)[-1] == "quality-1"
    assert "agreement" not in told["quality-1"]
    config = weights.read_json(Path(told["diffusion-1"]["path"]) / "config.json")
    assert config["method"]["drop"] == 1.0
    with pytest.MonkeyPatch.context() as patch:
        asked: list[tuple[Any, ...]] = []
        patch.setattr(Diffusion, "forward", lambda self, z, *y: asked.append(y) or z.clamp(0, 1))
        recipe.Work(replace(none, guidance=2.0), tmp_path).images(Stage(Path(told["diffusion-1"]["path"]), ""))
    assert asked == [()]


def test_the_second_classifier_may_learn_from_real_images_with_predicted_labels(tmp_path: Path) -> None:
    told = dpt(replace(SMALL, teach="real", real_share=0.0), tmp_path)["stages"]
    assert list(told) == ["classifier-0", "labels-1", "classifier-1"]
    config = weights.read_json(Path(told["classifier-1"]["path"]) / "config.json")
    learned = rows({"path": str(Path(config["data"]).parent)}, "train")
    given = rows(told["labels-1"])
    assert [row["label"] for row in learned[:627]] == [row["label"] for row in given[30:]]
    assert [row["image"] for row in learned] == [row["image"] for row in given[30:] + given[:30]]


def test_what_a_classifier_learns_from_depends_on_the_draw_whatever_its_images_do(tmp_path: Path) -> None:
    keys = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.single, "fit", lambda *a, **k: None)
        patch.setattr(recipe.parquet, "write", lambda *a: None)
        for labels, teach in (("true", "synthetic"), ("labeled", "synthetic"), ("predicted", "real")):
            for per_class, seed in ((2, 0), (3, 0), (2, 1)):
                options = replace(SMALL, labels=labels, teach=teach, labels_per_class=per_class, seed=seed)
                fit: list[str] = []
                patch.setattr(
                    recipe.Work, "_fit", lambda work, name, config, inputs, fit=fit: fit.append(inputs[0].key)
                )
                recipe.Work(options, tmp_path).classifier(Stage(tmp_path, "the same images"), 1)
                keys.add(fit[0])
    assert len(keys) == 6  # true and labeled differ in their images


def test_every_option_of_the_images_has_a_stage_of_its_own(tmp_path: Path) -> None:
    names = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.generators, "class_names", lambda run: ())
        for given in ({}, {"guidance": 2.0}, {"sampler_steps": 3}, {"images_per_class": 3}, {"difficulty": 0.2}):
            stage = recipe.Work(replace(SMALL, **given), tmp_path).images(Stage(tmp_path, "one model"))
            names.add(stage.path.name)
        names.add(recipe.Work(SMALL, tmp_path).images(Stage(tmp_path, "another")).path.name)
    assert len(names) == 6


def test_classes_in_another_order_are_read_by_their_names(tmp_path: Path) -> None:
    """A written data set sorts its classes, and data of the user's own may not."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    digits = datasets.load("digits-pool")
    with pytest.MonkeyPatch.context() as patch:
        load = datasets.load
        known = replace(digits, classes=names)
        patch.setattr(datasets, "load", lambda name, *a: known if name == "digits-pool" else load(name, *a))
        options = replace(SMALL, rounds=2, stage1="linear-probe", init="foundation", steps=60, images_per_class=1)
        told = dpt(options, tmp_path)["stages"]
    assert told["classifier-1"]["test"] > 0.5
    assert told["labels-2"]["accuracy"] > 0.5


def test_a_stage_is_found_again_by_another_path_to_it(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(made[0], tmp_path / "copied"))
    stage = copied / Path(made[1]["stages"]["classifier-1"]["path"]).name
    (stage / "result.json").unlink()
    told = dpt(SMALL, copied)["stages"]
    assert {name: Path(stage["path"]).name for name, stage in told.items()} == {
        name: Path(stage["path"]).name for name, stage in made[1]["stages"].items()
    }
    assert told["classifier-1"]["test"] == made[1]["stages"]["classifier-1"]["test"]


def test_true_labels_are_asked_for_where_not_all_are_known(tmp_path: Path) -> None:
    work = recipe.Work(replace(SMALL, labels="true"), tmp_path)
    work.data = replace(work.data, unlabeled=work.rest)
    with pytest.raises(UserError, match="--labels true: some images of digits-pool have no label"):
        work._check()
    work.options, work.data = SMALL, replace(work.data, classes=("a", "A", *work.data.classes[2:]))
    with pytest.raises(UserError, match="class 'a' of digits-pool differs from others, or from no blank, by case"):
        work._check()


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="trains no classifier"):
        replace(SMALL, stage1="gan")
    for name, value in (("rounds", 0), ("real_share", 2.0), ("images_per_class", -1), ("labels_per_class", 0)):
        with pytest.raises(UserError, match=name):
            replace(SMALL, **{name: value})
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"stage1": "mpssl"}, "needs a generator: name one with --classifier"),
        ({"stage1": "linear-probe"}, "give --init foundation"),
        ({"teach": "real", "labels": "true"}, "--teach real takes predicted labels"),
        ({"teach": "real", "images_per_class": 0}, "--teach real takes predicted labels"),
        ({"labels": "none", "difficulty": 0.5}, "--labels none tells"),
        ({"diffusion": {"guidance": 3}}, "--diffusion has guidance"),
        ({"diffusion": {"drop": 0}}, "--diffusion with drop 0"),
        ({"real_share": 1.0}, "real_share"),
    ]
    for given, told in wrong:
        with pytest.raises(UserError, match=told):
            replace(SMALL, **given)
    late: list[tuple[dict[str, Any], str]] = [
        ({"diffusion": {"pach": 8}}, "--diffusion: 'pach'"),
        ({"classifier": {"weigth": 8}}, "--classifier: 'weigth'"),
        ({"diffusion": {"patch": 3}}, "patches of 3 do not divide"),
        ({"diffusion": {"patch": 0}}, "patch is 0"),
        ({"diffusion": {"deviation": 0.0}}, "deviation is 0"),
        ({"diffusion_steps": 0}, "steps is 0"),
        ({"sampler_steps": 0}, "steps is 0"),
        ({"guidance": -1.0}, "guidance is -1"),
    ]
    for given, told in late:
        with pytest.raises(UserError, match=told):
            dpt(replace(SMALL, **given), tmp_path / "out")
    with pytest.raises(UserError, match="labels_per_class is 500"):
        dpt(replace(SMALL, labels_per_class=500), tmp_path / "out")
    for workers, world, told in ((0, 1, "--workers is 0"), (2, 2, "leave --workers and --ray out")):
        monkeypatch.setattr(recipe.distributed, "world", lambda world=world: world)
        with pytest.raises(UserError, match=told):
            dpt(SMALL, tmp_path / "out", workers)
    assert not (tmp_path / "out").exists()


def test_options_that_came_later_count_in_a_key_where_they_are_given() -> None:
    later = {"tune_features", "lora_rank", "features_lr", "generator_options"}
    plain = tiny.config("fixmatch")
    assert {*plain.flat()} - {*recipe._keyed(plain)} == later
    given = tiny.config("fixmatch", tune_features="lora", lora_rank=3, features_lr=0.1)
    assert {*recipe._keyed(given)} - {*recipe._keyed(plain)} == later - {"generator_options"}


def stages_of(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.is_dir()}


def test_features_from_elsewhere_are_probed_and_a_changed_network_is_another_stage(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    name, out = backbones.saved(tmp_path / "net", "vit"), tmp_path / "out"
    options = replace(SMALL, model=name, stage1="linear-probe", steps=1, images_per_class=0, diffusion_steps=1)
    first = dpt(options, out)
    assert (Path(first["stages"]["classifier-0"]["path"]) / "backbone.json").exists()
    before = stages_of(out)
    again = dpt(options, out)
    assert stages_of(out) == before and again["stages"] == first["stages"]
    file = tmp_path / "net" / "model.safetensors"
    tensors = weights.read_tensors(file)
    weights.write_tensors(file, {**tensors, "layernorm.bias": tensors["layernorm.bias"] + 1})
    found = dpt(options, out)
    assert found["stages"]["classifier-0"]["path"] != first["stages"]["classifier-0"]["path"]
    told = {**backbones.PREPROCESSOR, "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(told))
    assert dpt(options, out)["stages"]["classifier-0"]["path"] != found["stages"]["classifier-0"]["path"]


def test_classifiers_choose_how_their_features_are_trained_and_their_first_weights(tmp_path: Path) -> None:
    name, out = backbones.own(tmp_path), tmp_path / "out"
    file = tmp_path / "first.safetensors"
    net = foreign.build(name, (1, 16, 16), 3, "none").features.network
    tensors = {**net.state_dict(), "last.weight": torch.rand(1000, 12), "last.bias": torch.rand(1000)}
    weights.write_tensors(file, tensors)
    chosen = {"tune_features": "frozen"}
    options = replace(
        SMALL, model=name, init=str(file), steps=1, images_per_class=0, diffusion_steps=1, classifier=chosen
    )
    path = Path(dpt(options, out)["stages"]["classifier-0"]["path"])
    assert weights.read_json(path / "config.json")["tune_features"] == "frozen"
    found = weights.read_tensors(path / "model.safetensors")
    assert found["features.network.middle.weight"].equal(tensors["middle.weight"])


def test_a_probe_needs_features_that_may_be_trained() -> None:
    with pytest.raises(UserError, match="linear-probe reads features as they are: give --init"):
        replace(SMALL, stage1="linear-probe", model="timm:resnet18")
