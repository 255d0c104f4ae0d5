"""The pool without its suspects: which rows and bytes it has, that it is a data set, and mistakes."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet as arrow

from semisynth.data import datasets
from semisynth.errors import UserError
from semisynth.recipes import audit, clean
from semisynth.recipes.audit import Audit


def pool(root: Path, labels: np.ndarray | None = None) -> Audit:
    """60 labeled images, and 60 others of the same kind."""
    x = np.random.RandomState(0).randint(256, size=(130, 8, 8)).astype(np.uint8)
    np.savez(root / "labeled.npz", images=x[:60], labels=np.arange(60) % 2)
    split = np.array(["train"] * 10 + ["unlabeled"] * 60)
    others = np.concatenate([np.arange(10) % 2, np.full(60, -1)])
    if labels is not None:
        split, others = np.array(["train"] * 70), labels
    np.savez(root / "pool.npz", images=x[60:], labels=others, split=split)
    return Audit(str(root / "pool.npz"), str(root / "labeled.npz"))


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Audit]:
    """An audit that suspects the rows 20 to 29."""
    asked, out = pool(tmp_path), tmp_path / "audit"
    audit.run(asked, out)
    suspect(out, range(20, 30))
    return out, asked


def suspect(out: Path, rows: range) -> None:
    table = arrow.read_table(out / "ranking.parquet").to_pydict()
    table["suspicion"] = [0.5 if row in rows else 0.49 for row in table["row"]]
    audit.parquet.write(out / "ranking.parquet", table)


def test_the_suspects_are_left_out_and_all_else_is_as_it_was(made: tuple[Path, Audit]) -> None:
    out, asked = made
    counts = {"kept": 60, "left_out": 10, "audited": 60, "labeled": 0}
    assert clean.clean(asked, out, 0.5) == {"reject": 0.5, **counts}
    assert "WARNING" not in clean.told(out, counts)
    whole, rest = datasets.load(asked.pool), datasets.load(str(out / clean.CLEANED))
    assert rest.classes == whole.classes and rest.pool.y.bincount().tolist() == whole.pool.y.bincount().tolist()
    assert whole.unlabeled is not None and rest.unlabeled is not None and len(rest.unlabeled) == 50
    kept = [i for i in range(60) if not 10 <= i < 20]  # of the unlabeled ones, which are the rows from 10 on
    assert (rest.unlabeled.x[:] == whole.unlabeled.x[:][kept]).all()  # type: ignore[index]


def test_files_keep_their_bytes(tmp_path: Path) -> None:
    from PIL import Image

    asked, out = pool(tmp_path), tmp_path / "audit"
    images = tmp_path / "images"
    x = np.load(asked.pool)["images"]
    for i, part in enumerate(x):
        (images / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(part).save(images / "ab"[i % 2] / f"{i:02}.jpg")
    before = {file: file.read_bytes() for file in images.rglob("*.jpg")}
    asked = replace(asked, pool=str(images))
    audit.run(asked, out)
    suspect(out, range(0))
    assert clean.clean(asked, out, 0.5)["kept"] == 70
    rows = arrow.read_table(out / clean.CLEANED).to_pylist()
    assert sorted(row["image"] for row in rows) == sorted(before.values())
    assert [row["label"] for row in rows] == ["a"] * 35 + ["b"] * 35 and {row["split"] for row in rows} == {"train"}
    assert before == {file: file.read_bytes() for file in images.rglob("*") if file.is_file()}


def test_it_is_left_as_it_is_and_another_is_refused(made: tuple[Path, Audit]) -> None:
    out, asked = made
    first = clean.clean(asked, out, 0.5)
    (out / clean.CLEANED).write_bytes(b"mine")
    assert clean.clean(asked, out, 0.5) == first and (out / clean.CLEANED).read_bytes() == b"mine"
    with pytest.raises(UserError, match=r"holds a pool that was cleaned otherwise: reject \(0.5 there, 0.7 asked\)"):
        clean.clean(asked, out, 0.7)
    assert audit.run(asked, out)["options"]["pool"] == asked.pool


def refused(asked: Audit, out: Path, message: str, reject: float = 0.5) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        clean.clean(asked, out, reject)
    assert not (out / clean.CLEANED).exists() and not (out / clean.CLEANING).exists()


def test_a_pool_that_changed_is_refused(made: tuple[Path, Audit], tmp_path: Path) -> None:
    stored: dict[str, Any] = dict(np.load(tmp_path / "pool.npz"))
    stored["images"][0] = 0
    np.savez(tmp_path / "pool.npz", **stored)
    refused(made[1], made[0], "pool.npz is no longer what")


def test_no_class_may_lose_all_its_images(tmp_path: Path) -> None:
    asked, out = pool(tmp_path, np.array([1] * 20 + [0] * 10 + [1] * 40)), tmp_path / "audit"
    audit.run(asked, out)
    suspect(out, range(20, 30))
    refused(asked, out, "--reject 0.5 would leave no image of class '0' for training: raise it")


def test_a_pool_of_which_next_to_nothing_would_be_left(made: tuple[Path, Audit]) -> None:
    out, asked = made
    suspect(out, range(10, 70))
    refused(asked, out, "--reject 0.5 would leave none of the 60 images that were audited: raise it, if the labeled")
    suspect(out, range(10, 66))
    told = clean.told(out, clean.clean(asked, out, 0.5))
    assert "56 images left out, 14 kept\nWARNING: of 60 images that were audited 4 are left" in told


def test_mistakes(made: tuple[Path, Audit], tmp_path: Path) -> None:
    out, asked = made
    refused(asked, out, "reject is 0: give a number from 0.01 to 1", reject=0)
    refused(replace(asked, pool="digits"), out, "--apply cannot clean digits, which is built in")
    shutil.rmtree(out)
    with pytest.raises(UserError, match="does not exist"):
        clean.clean(asked, out, 0.5)
