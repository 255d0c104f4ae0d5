"""Mixes: shares, balance, bytes, what is hidden from whom, and that one trains on them."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import zoo
from pyarrow import parquet as arrow
from safetensors.torch import load_file

from semisynth import generators, mixed, weights
from semisynth.cli import main
from semisynth.data import datasets
from semisynth.errors import UserError
from semisynth.recipes import mix as recipe
from semisynth.recipes import origin, sampling, single
from semisynth.recipes.mix import Mix, mix


def options(generator: str, **more: Any) -> Mix:
    return Mix("digits-pool", [generator], **{"through": "8x8:17", **more})


def tables(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return arrow.read_table(out / "pool.parquet").to_pylist(), arrow.read_table(out / "hidden.parquet").to_pylist()


@pytest.fixture(scope="module")
def made(generator: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Mix]:
    """Of two generators, 60 % of 150 images."""
    out = tmp_path_factory.mktemp("mix") / "pool"
    asked = Mix("digits-pool", [generator, "glyphs"], share=0.6, images=150, labeled=5, through="8x8:17", seed=3)
    return out, mix(asked, out), asked


def test_a_fixed_size_has_the_share(made: tuple[Path, dict[str, Any], Mix], generator: str) -> None:
    pool, hidden = tables(made[0])
    assert Counter(row["split"] for row in pool) == {"train": 50, "unlabeled": 150, "validation": 150, "test": 350}
    assert Counter(row["source"] for row in hidden) == {"real": 60, generator: 45, "glyphs": 45}
    record = made[1]
    assert record["share"] == 0.6 and record["images"]["unlabeled"] == 150 and record["sources"]["real"] == 60
    assert record == json.loads((made[0] / "mix.json").read_text()) and record["options"] == asdict(made[2])


@pytest.mark.parametrize("share, synthetic", [(0.0, 0), (0.2, 102), (0.8, 1628)])
def test_without_a_size_all_real_images_stay(share: float, synthetic: int, generator: str, tmp_path: Path) -> None:
    record = mix(options(generator, share=share), tmp_path / "pool")
    assert record["images"] == {"train": 250, "unlabeled": 407 + synthetic, "validation": 150, "test": 350}
    assert record["sources"].get(generator, 0) == synthetic and abs(record["share"] - share) < 0.001
    assert (record["verdict"], record["auroc"]["all"]) == (None, None) if not share else record["auroc"]["all"] > 0.5


def test_classes_and_generators_are_balanced(made: tuple[Path, dict[str, Any], Mix]) -> None:
    synthetic = [row for row in tables(made[0])[1] if row["synthetic"]]
    assert sorted(Counter(row["class"] for row in synthetic).items()) == [(c, 9) for c in "0123456789"]
    assert set(Counter((row["source"], row["class"]) for row in synthetic).values()) <= {4, 5}


def test_hidden_rows_tell_of_the_unlabeled_ones_and_of_no_others(made: tuple[Path, dict[str, Any], Mix]) -> None:
    pool, hidden = tables(made[0])
    unlabeled = [i for i, row in enumerate(pool) if row["split"] == "unlabeled"]
    assert [row["row"] for row in hidden] == unlabeled
    assert [row["hash"] for row in hidden] == [pool[i]["hash"] for i in unlabeled]
    assert set(pool[0]) == {"image", "label", "split", "hash"}
    assert all((row["label"] is None) == (row["split"] == "unlabeled") for row in pool)
    assert all(row["synthetic"] == (row["source"] != "real") == (row["seed"] is not None) for row in hidden)
    flags = np.array([row["synthetic"] for row in hidden])
    assert 0.3 < flags[:75].mean() < 0.9  # the order tells nothing


def test_real_images_are_those_of_the_data_and_in_one_place_each(made: tuple[Path, dict[str, Any], Mix]) -> None:
    data, read = datasets.load("digits-pool"), datasets.load(str(made[0] / "pool.parquet"))
    hidden = tables(made[0])[1]
    assert read.unlabeled is not None and isinstance(read.unlabeled.x, torch.Tensor)
    real = torch.tensor([not row["synthetic"] for row in hidden])
    own = {(x.numpy().tobytes(), int(y)) for x, y in zip(data.pool.x, data.pool.y, strict=True)}
    shown = torch.tensor([int(row["class"]) for row in hidden])
    mixed_in = {(x.numpy().tobytes(), int(y)) for x, y in zip(read.unlabeled.x[real], shown[real], strict=True)}
    labeled = {(x.numpy().tobytes(), int(y)) for x, y in zip(read.pool.x, read.pool.y, strict=True)}
    assert len(mixed_in) == 60 and len(labeled) == 50 and not labeled & mixed_in and labeled | mixed_in < own
    assert read.classes == data.classes and read.pool.y.bincount().tolist() == [5] * 10
    for one, other in ((read.test, data.test), (read.validation, data.validation)):
        assert torch.equal(one.x.flatten(1).unique(dim=0), data_rows(other))


def data_rows(images: datasets.Images) -> torch.Tensor:
    assert isinstance(images.x, torch.Tensor)
    return images.x.flatten(1).unique(dim=0)


def test_synthetic_images_can_be_made_again_from_their_seeds(made: tuple[Path, dict[str, Any], Mix]) -> None:
    read, hidden = datasets.load(str(made[0] / "pool.parquet")), tables(made[0])[1]
    assert read.unlabeled is not None
    glyphs = generators.load("glyphs")
    rows = [i for i, row in enumerate(hidden) if row["source"] == "glyphs"][:5]
    for i in rows:
        z = torch.randn(1, *glyphs.latent_shape, generator=torch.Generator().manual_seed(hidden[i]["seed"]))
        image = glyphs(z, torch.tensor([int(hidden[i]["class"])]))
        again = sampling.prepared(image, recipe.Through.parse("8x8:17"))[0]
        assert (again.int() - read.unlabeled.x[i].int()).abs().max() <= 16


def test_the_same_options_give_the_same_bytes_and_another_seed_others(
    made: tuple[Path, dict[str, Any], Mix], tmp_path: Path
) -> None:
    torch.manual_seed(9)
    mix(made[2], tmp_path / "again")
    other = mix(replace(made[2], seed=4), tmp_path / "other")
    names = sorted(file.name for file in made[0].iterdir())
    assert names == ["hidden.parquet", "mix.json", "pool.parquet"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (made[0] / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (made[0] / name).read_bytes()
    assert other["sha256"] != made[1]["sha256"]
    one, two = tables(made[0]), tables(tmp_path / "other")
    assert not {row["seed"] for row in one[1]} & {row["seed"] for row in two[1]} - {None}
    labeled = [{row["hash"] for row in pool if row["split"] == "train"} for pool, _ in (one, two)]
    real = [{row["hash"] for row in hidden if not row["synthetic"]} for _, hidden in (one, two)]
    assert len(labeled[0] & labeled[1]) < 15 and len(real[0] & real[1]) < 30


def test_the_command_makes_the_same_mix(made: tuple[Path, dict[str, Any], Mix], tmp_path: Path, capsys: Any) -> None:
    typed = made[1]["command"].split()
    assert typed[:2] == ["semisynth", "mix"] and typed[-2:] == ["--out", "AGAIN"]
    assert main([*typed[1:-1], str(tmp_path / "pool")]) == 0
    assert (tmp_path / "pool" / "mix.json").read_bytes() == (made[0] / "mix.json").read_bytes()
    told = capsys.readouterr().out
    assert "share 0.600" in told and "too easy; another generator, or --through" in told


def test_a_mix_is_kept_and_another_one_does_not_take_its_place(
    made: tuple[Path, dict[str, Any], Mix], generator: str, tmp_path: Path
) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in made[0].iterdir()}
    assert mix(made[2], made[0]) == made[1]
    with pytest.raises(UserError, match=r"holds another mix: share \(0.6 there, 0.4 asked\), images \(150 there, 0"):
        mix(Mix(**{**asdict(made[2]), "reading": made[2].reading, "share": 0.4, "images": 0}), made[0])
    assert before == {file.name: file.stat().st_mtime_ns for file in made[0].iterdir()}
    (tmp_path / "pool.parquet").write_text("cut off")  # of a mix that did not end
    mix(options(generator, images=20), tmp_path)
    assert len(tables(tmp_path)[1]) == 20
    (tmp_path / "mix.json").rename(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="exists and is not a mix: give another one"):
        mix(options(generator, images=20), tmp_path)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "share of one": ({"share": 1.0}, "share is 1.0: give a number from 0 to below 1"),
    "negative share": ({"share": -0.1}, "share is -0.1"),
    "no share": ({"share": float("nan")}, "share is nan"),
    "too large": (
        {"images": 1000},
        "asks for 600 real images, and digits-pool has 407 that are not labeled: lower --i",
    ),
    "too few": ({"images": 5, "share": 0.01}, "--share 0.01 of 5 images makes 0 synthetic and 5 real ones"),
    "none real": ({"images": 5, "share": 0.95}, "makes 5 synthetic and 0 real ones: give more --images"),
    "a class twice": ({"classes": "3=4,3=5"}, "--classes names the class '3' twice"),
    "labels": ({"labeled": 65}, "--labeled is 65, and the smallest class of digits-pool has 64 images"),
    "no label": ({"labeled": 0}, "labeled is 0: give a number from 1"),
    "class of the generator": ({"classes": "3=three"}, "has no class 'three' for the class '3' of the data"),
    "class of the data": ({"classes": "three=3"}, "'three=3' is no pair CLASS=CLASS of a class of the data, which are"),
    "through": ({"through": "8"}, "--through is '8'"),
    "too fine": ({"through": "32x32:17"}, "asks for 32x32 pixels"),
}


@pytest.mark.parametrize("fields, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_and_nothing_written(
    fields: dict[str, Any], message: str, generator: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        mix(options(generator, **fields), tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


def test_generators_are_named_once(generator: str) -> None:
    for names in ([generator, generator], ["real"]):
        with pytest.raises(UserError, match="name each generator once, and none 'real'"):
            Mix("digits", names)


def test_a_class_that_the_generator_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="generator letters has no class '0' for the class '0' of the data"):
        mix(Mix("digits-pool", ["letters"], images=20), tmp_path / "pool")
    pairs = ",".join(f"{own}={other}" for own, other in zip("0123456789", "oiZEhSbTBg", strict=True))
    mix(Mix("digits-pool", ["letters"], images=50, classes=pairs), tmp_path / "named")
    assert {row["class"] for row in tables(tmp_path / "named")[1]} == set("0123456789")
    mix(Mix("digits-pool", ["letters"], images=150, classes="any"), tmp_path / "any")
    found = {row["class"] for row in tables(tmp_path / "any")[1] if row["synthetic"]}
    assert len(found) == 52 and not found & set("0123456789")


def test_a_class_of_the_generator_may_have_commas_or_be_a_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = ("0", "tabby, tabby cat", *(f"{i}, thing {i}" for i in range(2, 62)))
    monkeypatch.setattr(generators, "class_names", lambda name, options: there)
    asked = "1=tabby, tabby cat,4=thing 5, 5=30"
    mix(Mix("digits-pool", ["glyphs"], images=50, classes=asked), tmp_path / "named")
    device = torch.device("cpu")
    maker = sampling.Maker.of("glyphs", generators.Options(), asked, "0123456789", (1, 16, 16), device)
    assert maker.asked == [
        ("0", 0),
        ("1", 1),
        ("2", 2),
        ("3", 3),
        ("4", 5),
        ("5", 30),
        *((str(i), i) for i in range(6, 10)),
    ]


def test_a_generator_without_classes_gives_images_of_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generators, "load", lambda name, options: zoo.GENERATORS["unconditional"]())
    monkeypatch.setattr(generators, "class_names", lambda name, options: ())
    mix(Mix("digits-pool", ["plain"], images=20, classes="any"), tmp_path / "pool")
    assert {row["class"] for row in tables(tmp_path / "pool")[1] if row["synthetic"]} == {None}
    with pytest.raises(UserError, match="generator plain has no class '0'"):
        mix(Mix("digits-pool", ["plain"], images=20), tmp_path / "other")


def test_one_s_own_images_in_colour_are_mixed(generator: str, tmp_path: Path) -> None:
    x = np.random.RandomState(0).randint(0, 256, (40, 20, 20, 3), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=x, labels=np.arange(40) % 2)
    asked = Mix(str(tmp_path / "own.npz"), [generator], share=0.5, labeled=2, reading=datasets.Reading(size=16))
    record = mix(asked, tmp_path / "pool")
    read = datasets.load(str(tmp_path / "pool" / "pool.parquet"))
    assert read.shape == (3, 16, 16) and read.classes == ("0", "1") and record["share"] == 0.5
    assert "--reading.size 16" in record["command"]


def test_the_share_is_known_beside_the_pool_and_nowhere_else(
    made: tuple[Path, dict[str, Any], Mix], tmp_path: Path
) -> None:
    assert origin.share(str(made[0] / "pool.parquet")) == 0.6
    assert origin.share("digits-pool") is None and origin.share(str(tmp_path / "pool.parquet")) is None


def test_what_is_done_to_one_s_own_images_is_told_and_other_images_are_refused(
    generator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, y = np.random.RandomState(0).randint(256, size=(30, 20, 24), dtype=np.uint8), np.arange(30) % 2
    np.savez(tmp_path / "own.npz", images=pixels, labels=y)
    command = ["mix", "--real", str(tmp_path / "own.npz"), "--synthetic", generator, "--labeled", "2"]
    command += ["--classes", "0=3,1=4", "--reading.size", "16", "--out", str(tmp_path / "pool")]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "resized to 16x16 (crop): 30 of 30" in told and "set aside" in told
    assert main(command) == 0 and capsys.readouterr().out == told
    np.savez(tmp_path / "own.npz", images=pixels[::-1], labels=y)
    assert main(command) == 2
    assert "holds a mix of other images" in capsys.readouterr().err


def test_ctrl_c_tells_that_a_mix_begins_anew(generator: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mixed, "write", stopped)
    command = ["mix", "--real", "digits-pool", "--synthetic", generator, "--images", "20"]
    assert main([*command, "--out", str(tmp_path / "pool")]) == 130
    told = capsys.readouterr().err
    assert "the mix begins anew" in told and "goes on" not in told
    assert main([*command, "--out", str(tmp_path / "pool")]) == 130  # what it leaves is no obstacle


def test_fixmatch_trains_on_a_mix(made: tuple[Path, dict[str, Any], Mix], tmp_path: Path) -> None:
    config = tiny.config("fixmatch", data=str(made[0] / "pool.parquet"), labels_per_class=5, steps=2)
    result = single.fit(config, tmp_path / "run", show=False)
    assert result["data"]["images"] == {"train": 50, "validation": 150, "test": 350, "unlabeled": 150}


def test_no_code_but_what_scores_knows_of_the_hidden_table() -> None:
    package = Path(mixed.__file__).parent
    knows = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"hidden\.parquet|\bmixed\b.*import|import.*\bmixed\b", file.read_text())
    }
    training = {"engine.py", "method.py", "recipes/single.py", "recipes/materials.py", "recipes/bench.py"}
    below = {name for name in knows if name.startswith(("data/", "methods/", "models/", "augment/"))}
    assert "recipes/mix.py" in knows and not knows & training and not below


def test_a_mix_of_a_generator_that_changed_is_not_taken_for_its_own(generator: str, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine", tmp_path / "mix"
    shutil.copytree(generator, mine)
    asked = options(str(mine), images=20, labeled=5)
    record = mix(asked, out)
    assert mix(asked, out) == record
    tensors = {name: value + 0.1 for name, value in load_file(mine / "model.safetensors").items()}
    weights.write_tensors(mine / "model.safetensors", tensors)
    with pytest.raises(UserError, match=r"holds a mix of other generators: .*mine \("):
        mix(asked, out)
