"""An audit of files: what it writes and leaves alone, copies, sizes, mistakes, and the pool without its suspects."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet as arrow

from semisynth import weights
from semisynth.audit import audit
from semisynth.cli import main
from semisynth.data import datasets
from semisynth.data.datasets import Reading
from semisynth.errors import UserError
from semisynth.recipes import audit as recipe
from semisynth.recipes import clean
from semisynth.recipes.audit import Audit


def pixels(n: int, seed: int, synthetic: bool = False, side: int = 8) -> np.ndarray:
    """Noise; of what is synthetic less of it, and blurred."""
    x = np.random.RandomState(seed).rand(n, side, side)
    if synthetic:
        x = 0.5 + 0.5 * ((x + np.roll(x, 1, 1) + np.roll(x, 1, 2)) / 3 - 0.5)
    return (255 * x).astype(np.uint8)


def labeled(path: Path, n: int = 60, **more: Any) -> str:
    np.savez(path, images=pixels(n, 0, **more), labels=np.arange(n) % 2)
    return str(path)


def folder(root: Path) -> Path:
    """40 images of two classes, and unlabeled 80 real and 80 synthetic ones, which are called so."""
    sets = {"train/cat": (20, 0, False), "train/dog": (20, 1, False)}
    sets |= {"unlabeled/real": (80, 2, False), "unlabeled/made": (80, 3, True)}
    for name, (n, seed, synthetic) in sets.items():
        (root / name).mkdir(parents=True)
        for i, x in enumerate(pixels(n, seed, synthetic)):
            Image.fromarray(x).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Audit]:
    root = tmp_path_factory.mktemp("audit")
    asked = Audit(str(folder(root / "images")), str(root / "images"))
    return root / "audit", recipe.run(asked, root / "audit"), asked


def test_it_ranks_every_image_of_the_pool_by_its_file(made: tuple[Path, dict[str, Any], Audit]) -> None:
    out, record, asked = made
    rows = arrow.read_table(out / "ranking.parquet").to_pylist()
    assert [row["rank"] for row in rows] == list(range(1, 161))
    suspicion = [row["suspicion"] for row in rows]
    assert suspicion == sorted(suspicion, reverse=True) and 0 <= suspicion[-1] < 0.2 and 0.8 < suspicion[0] <= 1
    assert sum("made" in row["image"] for row in rows[:80]) > 70
    low, high = record["interval"]
    assert low <= 0.5 <= high and low > 0.1 and abs(record["share"] - 0.5) < 0.2
    for row in rows[:5]:
        with Image.open(Path(asked.pool) / row["image"]) as image:
            content = np.asarray(image).tobytes()
        assert row["hash"] == hashlib.blake2b(content, digest_size=16).hexdigest()
    assert record["images"] == {"labeled": 40, "pool": 160, "copies": 0}


def test_the_record_is_written_and_tells_what_is_assumed(made: tuple[Path, dict[str, Any], Audit]) -> None:
    out, record, _ = made
    assert json.loads((out / "audit.json").read_text()) == record
    assert sorted(file.name for file in out.iterdir()) == ["audit.html", "audit.json", "ranking.parquet"]
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert "at least 0.7" in record["assumption"] and record["assumption"] in (out / "audit.html").read_text()


def test_the_same_options_give_the_same_bytes(made: tuple[Path, dict[str, Any], Audit], tmp_path: Path) -> None:
    recipe.run(made[2], tmp_path / "again")
    for file in made[0].iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_finished_audit_is_left_and_another_is_refused(
    made: tuple[Path, dict[str, Any], Audit], tmp_path: Path
) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in made[0].iterdir()}
    assert recipe.run(made[2], made[0]) == made[1]
    with pytest.raises(UserError, match=r"holds another audit: seed \(0 there, 1 asked\)"):
        recipe.run(replace(made[2], seed=1), made[0])
    assert before == {file.name: file.stat().st_mtime_ns for file in made[0].iterdir()}
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an audit: give another one"):
        recipe.run(made[2], tmp_path)


@pytest.mark.parametrize("changed", ["pool", "labeled"])
def test_a_finished_audit_of_other_images_is_no_answer(changed: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "pool.npz", images=pixels(80, 5), labels=np.full(80, -1))
    asked = Audit(str(tmp_path / "pool.npz"), labeled(tmp_path / "labeled.npz"))
    recipe.run(asked, tmp_path / "audit")
    x = dict(np.load(tmp_path / f"{changed}.npz"))
    x["images"][0] = 0
    np.savez(tmp_path / f"{changed}.npz", **x)
    with pytest.raises(UserError, match=f"{changed}.npz is no longer what .*audit was made from: give another --out"):
        recipe.run(asked, tmp_path / "audit")


def without_labels(kind: str, root: Path, x: np.ndarray) -> Path:
    """The images as files, of which nothing tells a class."""
    place = root / ("pool/unlabeled" if kind == "unlabeled" else "pool")
    place.mkdir(parents=True)
    for i, image in enumerate(x):
        Image.fromarray(image).save(place / f"{i:03}.png")
    if kind != "csv":
        return root / "pool"
    rows = "".join(f"{i:03}.png,\n" for i in range(len(x)))
    (place / "pool.csv").write_text(f"path,label\n{rows}")
    return place / "pool.csv"


@pytest.mark.parametrize("kind", ["flat", "unlabeled", "csv"])
def test_a_pool_needs_no_label_and_is_cleaned_into_a_set_with_the_labeled_images(kind: str, tmp_path: Path) -> None:
    x = np.concatenate([pixels(80, 5), pixels(80, 6, synthetic=True)])
    pool, own = without_labels(kind, tmp_path, x), labeled(tmp_path / "labeled.npz")
    asked = Audit(str(pool), own)
    record = recipe.run(asked, tmp_path / "audit")
    assert record["images"] == {"labeled": 60, "pool": 160, "copies": 0} and record["share"] > 0
    assert record["notes"] == []
    rows = {row["row"]: row for row in arrow.read_table(tmp_path / "audit" / "ranking.parquet").to_pylist()}
    assert sorted(rows) == list(range(160)) and rows[7]["image"].endswith("007.png")
    cleaned = clean.clean(asked, tmp_path / "audit", 0.5)
    data = datasets.load(str(tmp_path / "audit" / clean.CLEANED), Reading(holdout=0))
    assert data.classes == ("0", "1") and data.pool.y.tolist() == [0, 1] * 30
    assert data.unlabeled is not None and len(data.unlabeled) == cleaned["kept"] == 160 - cleaned["left_out"] < 140
    assert (data.pool.x[:].numpy()[:, 0] == pixels(60, 0)).all()
    kept = [row for row in range(160) if rows[row]["suspicion"] < 0.5]
    assert (data.unlabeled.x[:].numpy()[:, 0] == x[kept]).all() and cleaned["labeled"] == 60


def test_a_pool_without_labels_is_cleaned_into_a_built_in_set_too(tmp_path: Path) -> None:
    asked = Audit(str(without_labels("flat", tmp_path, pixels(60, 5, side=16))), "digits-others")
    recipe.run(asked, tmp_path / "audit")
    table = arrow.read_table(tmp_path / "audit" / "ranking.parquet").to_pydict()
    recipe.parquet.write(tmp_path / "audit" / "ranking.parquet", {**table, "suspicion": [0.4] * 60})
    assert clean.clean(asked, tmp_path / "audit", 0.5)["labeled"] == 640
    found = datasets.load(str(tmp_path / "audit" / clean.CLEANED), Reading(holdout=0))
    others = datasets.load("digits-others")
    assert found.classes == others.classes and torch.equal(found.pool.y, others.pool.y)
    assert torch.equal(found.pool.x[:], others.pool.x[:])  # type: ignore[arg-type]


def test_a_side_that_alone_was_resized_is_told_with_a_warning(tmp_path: Path) -> None:
    pool = without_labels("flat", tmp_path, pixels(60, 5, side=20))
    told = recipe.run(Audit(str(pool), labeled(tmp_path / "a.npz", side=8)), tmp_path / "audit")["notes"]
    assert told[0] == "pool: resized to 8x8 (crop): 60 of 60 images"
    assert told[1].startswith("WARNING: of the pool alone some were resized") and len(told) == 2
    both = recipe.load(Audit(str(pool), labeled(tmp_path / "b.npz", side=8), reading=Reading(size=12)))
    assert len(both[0].told) and not any("WARNING" in note for note in recipe.notes(*both))


def test_what_an_audit_that_was_cut_off_left_is_written_again(
    made: tuple[Path, dict[str, Any], Audit], tmp_path: Path
) -> None:
    (tmp_path / "audit.html.part").write_text("cut off")
    (tmp_path / "ranking.parquet").write_text("of before")
    assert recipe.run(made[2], tmp_path) == made[1]


def test_copies_count_once_and_those_of_labeled_images_are_real(tmp_path: Path) -> None:
    own = labeled(tmp_path / "labeled.npz")
    pool = np.concatenate([pixels(60, 0), pixels(80, 5), pixels(80, 6, synthetic=True)])
    pool = np.concatenate([pool, pool[-30:]])
    np.savez(tmp_path / "pool.npz", images=pool, labels=np.arange(len(pool)) % 2)
    record = recipe.run(Audit(str(tmp_path / "pool.npz"), own), tmp_path / "audit")
    assert record["images"] == {"labeled": 60, "pool": 160, "copies": 90} and record["share"] > 0
    rows = {row["row"]: row for row in arrow.read_table(tmp_path / "audit" / "ranking.parquet").to_pylist()}
    assert len(rows) == 250 and all(rows[i]["suspicion"] == 0 and rows[i]["rank"] > 190 for i in range(60))
    assert all(rows[i]["suspicion"] == rows[i - 30]["suspicion"] > 0 for i in range(220, 250))
    assert rows[0]["image"] == "images[0]"


def test_the_classes_of_the_labeled_images_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(recipe, "audit", lambda *arguments: (given.extend(arguments), audit(*arguments))[1])
    x = np.concatenate([pixels(40, 0), pixels(1, 0)])  # the last one is a copy
    np.savez(tmp_path / "labeled.npz", images=x, labels=np.r_[np.arange(40) % 3, 0])
    np.savez(tmp_path / "pool.npz", images=pixels(60, 5), labels=np.full(60, -1))
    recipe.run(Audit(str(tmp_path / "pool.npz"), str(tmp_path / "labeled.npz")), tmp_path / "audit")
    assert given[4].tolist() == (np.arange(40) % 3).tolist()


@pytest.mark.parametrize("first", ["labeled", "pool"])
def test_images_are_made_what_the_labeled_ones_or_those_built_in_are(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = labeled(tmp_path / "own.npz", 100, side=20)
    pair = (own, "digits-pool") if first == "labeled" else ("digits-pool", own)
    one, other = recipe.load(Audit(pair[1], pair[0]))
    assert one.shape == other.shape == (1, 16, 16) and (one.name, other.name) == pair
    assert len(one.pool) == {own: 100, "digits-pool": 657}[pair[0]]  # none is held out
    colour = np.random.RandomState(0).randint(256, size=(60, 30, 30, 3)).astype(np.uint8)
    np.savez(tmp_path / "colour.npz", images=colour, labels=np.arange(60) % 2)
    _, pool = recipe.load(Audit(str(tmp_path / "colour.npz"), own))
    assert pool.shape == (1, 20, 20)
    labels, _ = recipe.load(Audit(own, str(tmp_path / "colour.npz"), reading=Reading(size=12)))
    assert labels.shape == (3, 12, 12)


def test_without_unlabeled_images_all_training_images_are_audited_and_other_writers_look_synthetic(
    tmp_path: Path,
) -> None:
    record = recipe.run(Audit("digits-others", "digits-pool"), tmp_path / "audit")
    low, high = record["interval"]
    assert 0.1 < record["share"] < 0.4 and 0 < low < high < 0.7 and record["p"] < 0.01  # a limit: all are real
    assert record["images"]["labeled"] == 657 and record["images"]["pool"] == 640
    assert arrow.read_table(tmp_path / "audit" / "ranking.parquet").to_pylist()[0]["image"].startswith("image ")


MISTAKES = {
    "few labeled": (
        lambda p: Audit("digits-pool", labeled(p / "a.npz", 18)),
        "there are 18 of the real labeled images",
    ),
    "small pool": (lambda p: Audit(labeled(p / "a.npz", 40), "digits-pool"), "there are 40 of the pool's images"),
    "the same": (lambda p: Audit("digits-pool", "digits-pool"), "every image of the pool is one of the labeled ones"),
    "no such pool": (lambda p: Audit("digit-pool", "digits-pool"), "did you mean 'digits-pool'"),
    "reading": (lambda p: Audit("digits-others", "digits-pool", reading=Reading(size=8)), "does not read size"),
    "detectable": (lambda p: Audit("digits-others", "digits-pool", 0.99), "detectable is 0.99"),
}


@pytest.mark.parametrize("asked, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_and_nothing_written(asked: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        recipe.run(asked(tmp_path), tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_built_in_sets_of_two_sizes_cannot_be_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = datasets.Images(torch.zeros(60, 1, 8, 8, dtype=torch.uint8), torch.arange(60) % 2)
    set_ = datasets.Dataset("small", ("a", "b"), small, small, small, flip=False)
    monkeypatch.setitem(datasets.BUILT_IN, "small", lambda: set_)
    told = "--labeled digits-pool has images of 16x16 pixels in 1 channel and the pool small of 8x8 pixels in 1 channel"
    with pytest.raises(UserError, match=re.escape(told)):
        recipe.run(Audit("small", "digits-pool"), tmp_path / "audit")


def test_the_command_tells_and_cleans(made: tuple[Path, dict[str, Any], Audit], tmp_path: Path, capsys: Any) -> None:
    typed = ["audit", made[2].pool, "--labeled", made[2].labeled, "--out", str(tmp_path / "audit")]
    assert main(typed) == 0
    told = capsys.readouterr().out
    assert told.startswith("About ") and "as synthetic images would (95\u00a0% interval" in told
    assert "must stand for the real ones" in told and "was there already" not in told
    assert "at least 0.7" in told and "cleaned" not in told
    assert weights.read_json(tmp_path / "audit" / "audit.json") == made[1]
    assert main([*typed, "--apply", "--reject", "0.6"]) == 0
    cleaned = weights.read_json(tmp_path / "audit" / clean.CLEANING)
    counts = f"{cleaned['left_out']} images left out, {cleaned['kept']} kept"
    told = capsys.readouterr().out
    assert f"was there already: the ranking {tmp_path}" in told and "wrote: " in told
    assert counts in told and cleaned["reject"] == 0.6
    assert main([*typed, "--apply", "--reject", "0.6"]) == 0
    assert f"was there already: {tmp_path / 'audit' / clean.CLEANED}, " in capsys.readouterr().out


def test_ctrl_c_tells_that_an_audit_begins_anew(
    made: tuple[Path, dict[str, Any], Audit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "audit", stopped)
    assert main(["audit", made[2].pool, "--labeled", made[2].labeled, "--out", str(tmp_path / "audit")]) == 130
    told = capsys.readouterr().err
    assert "and all else begins anew" in told and "goes on" not in told and not (tmp_path / "audit").exists()
