"""From one's own images to a data set: what is chosen, set aside, converted and told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pictures
import pytest
import torch
from torch import Tensor

from semisynth.data import datasets, own
from semisynth.data.datasets import Dataset, Images, Reading
from semisynth.data.decode import Preparation, open_image, prepare
from semisynth.data.stored import Stored
from semisynth.errors import UserError

KEEP = Reading(holdout=0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path / ".cache"))


@pytest.fixture
def source(tmp_path):
    return str(pictures.folder(tmp_path / "set", 10, size=(8, 8)))


def content(images: Images | None) -> Tensor:
    assert images is not None
    return torch.cat(list(images.batches(100)))


def read(path) -> Tensor:
    image = open_image(path.read_bytes(), path.name)
    return torch.tensor(prepare(image, Preparation((image.height, image.width), 3, "crop")))


def test_a_set_is_what_its_files_hold(source, tmp_path):
    pictures.save(tmp_path / "set" / "unlabeled" / "a.png", 5, (8, 8))
    data = datasets.load(source, KEEP)
    assert (data.name, data.classes, data.shape, data.flip) == (source, ("cat", "dog"), (3, 8, 8), False)
    assert data.pool.y.tolist() == [0] * 10 + [1] * 10 == data.test.y.tolist()
    assert len(data.validation) == 0 and data.unlabeled is not None and data.unlabeled.y.tolist() == [-1]
    assert torch.equal(content(data.pool)[3], read(tmp_path / "set" / "train" / "cat" / "3.png"))
    assert torch.equal(content(data.unlabeled)[0], read(tmp_path / "set" / "unlabeled" / "a.png"))
    assert data.preparation == Preparation((8, 8), 3, "crop") and data.told == ("there are no images for validation",)
    assert datasets.load(source, Reading(holdout=0, mirror="yes")).flip


def test_every_image_is_located(source, tmp_path):
    pictures.save(tmp_path / "set" / "unlabeled" / "a.png", 5, (8, 8))
    (tmp_path / "set" / "train" / "cat" / "4.png").write_bytes(b"no image")
    catalog, rows = own.located(source, Reading(holdout=0.2, unreadable="skip"))
    names = {split: [catalog.items[row].name for row in index.tolist()] for split, index in rows.items()}
    assert names["unlabeled"] == ["unlabeled/a.png"] and not names["validation"] and len(names["test"]) == 20
    kept = [f"train/cat/{i}.png" for i in range(10) if i != 4]
    assert names["train"] == kept + [f"train/dog/{i}.png" for i in range(10)]


@pytest.mark.parametrize(
    "sizes, modes, expected",
    [
        ([(28, 28)], ["L"], (1, 28, 28)),
        ([(28, 28)], ["L", "RGB"], (3, 28, 28)),
        ([(28, 28)], ["P"], (3, 28, 28)),
        ([(28, 27)], ["1"], (1, 32, 32)),
        ([(65, 65)], ["RGBA"], (3, 32, 32)),
        ([(64, 64)], ["LA"], (1, 64, 64)),
        ([(20, 20), (21, 21)], ["L"], (1, 32, 32)),
        ([(2, 2)], ["L"], (1, 32, 32)),
    ],
)
def test_size_and_channels_are_those_of_the_images_where_they_agree(sizes, modes, expected, tmp_path):
    for i in range(8):
        image = pictures.image(i, sizes[i % len(sizes)]).convert(modes[i % len(modes)])
        (tmp_path / "abcdefgh"[i % 2]).mkdir(exist_ok=True)
        image.save(tmp_path / "abcdefgh"[i % 2] / f"{i}.png")
    assert datasets.load(str(tmp_path), KEEP).shape == expected
    assert datasets.load(str(tmp_path), Reading(size=5, channels="rgb")).shape == (3, 5, 5)
    assert datasets.load(str(tmp_path), Reading(size=5, channels="gray")).shape == (1, 5, 5)


def test_what_was_done_is_told_with_how_often(tmp_path):
    for i in range(6):
        pictures.save(tmp_path / "ab"[i % 2] / f"{i}.png", i, (8, 8), "L" if i else "RGB")
    data = datasets.load(str(tmp_path), Reading(size=6, channels="gray", holdout=0))
    assert set(data.told) == {
        "RGB made gray: 1 of 6 images",
        "resized to 6x6 (crop): 6 of 6 images",
        "there are no images for validation",
        "there are no images for test",
    }


def test_validation_and_test_images_are_set_aside_from_all_classes(tmp_path):
    pictures.folder(tmp_path, 20, classes="abc", splits=("",))
    data = datasets.load(str(tmp_path))
    assert [len(part) for part in (data.pool, data.validation, data.test)] == [36, 12, 12]
    for part in (data.pool, data.validation, data.test):
        assert part.y.bincount().min() >= len(part) // 3 - 1
    assert data.told[-2:] == tuple(
        f"12 of 60 labeled training images were set aside for {split} (--holdout)" for split in ("validation", "test")
    )
    rows = [image.numpy().tobytes() for part in (data.pool, data.validation, data.test) for image in content(part)]
    assert len(set(rows)) == 60
    again = datasets.load(str(tmp_path))
    assert torch.equal(content(again.test), content(data.test)) and again.hash == data.hash
    assert len(datasets.load(str(tmp_path), Reading(holdout=0.1)).test) == 6


def rows_of(data: Dataset) -> list[set[bytes]]:
    return [{x.numpy().tobytes() for x in content(part)} for part in (data.pool, data.validation, data.test)]


@pytest.mark.parametrize("large", [False, True])
def test_copies_stay_together(large, tmp_path, monkeypatch):
    pictures.folder(tmp_path, 20, classes="abc", splits=("",), size=(8, 8))
    for name in "abc":
        for i in range(10):
            shutil.copy(tmp_path / name / f"{i}.png", tmp_path / name / f"{i}_copy.png")
    if large:
        monkeypatch.setattr(own, "IN_MEMORY", 100)
        monkeypatch.setattr(own, "BLOCK", 7)
    data = datasets.load(str(tmp_path))
    train, validation, test = rows_of(data)
    assert not train & validation and not train & test and not validation & test
    assert len(data.validation) == len(data.test) == 18
    for part in (data.pool, data.validation, data.test):
        assert part.y.bincount().max() - part.y.bincount().min() <= 2
    assert "copies of training images, each kept in one split with its like: 30" in data.told
    again = datasets.load(str(tmp_path))
    assert torch.equal(content(again.test), content(data.test)) and again.hash == data.hash


def test_copies_of_two_labels_and_many_copies_of_one_stay_for_training(tmp_path):
    pictures.folder(tmp_path, 10, classes="ab", splits=("",), size=(8, 8))
    shutil.copy(tmp_path / "a" / "0.png", tmp_path / "b" / "odd.png")
    for i in range(20):
        shutil.copy(tmp_path / "a" / "1.png", tmp_path / "a" / f"same{i}.png")
    data = datasets.load(str(tmp_path))
    train, validation, test = rows_of(data)
    assert {read(tmp_path / "a" / f"{i}.png").numpy().tobytes() for i in range(2)} <= train
    assert not train & (validation | test) and 0 < len(data.test) <= 8
    for i in range(10):
        shutil.copy(tmp_path / "a" / f"{i}.png", tmp_path / "b" / f"{i}.png")
    assert datasets.load(str(tmp_path)).told[-2:] == (
        "there are no images for validation",
        "there are no images for test",
    )


def test_an_image_that_was_not_looked_at_counts_in_what_all_allow(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "LOOKED_AT", 3)
    pictures.folder(tmp_path, 5, classes="ab", splits=("",), size=(8, 8), mode="L")
    assert datasets.load(str(tmp_path)).shape == (1, 8, 8)
    pictures.save(tmp_path / "a" / "1.png", 1, (8, 8), "RGB")
    data = datasets.load(str(tmp_path))
    assert data.shape == (3, 8, 8) and data.told[0] == "gray made RGB: 9 of 10 images"
    assert data.preparation == Preparation((8, 8), 3, "crop")
    pictures.save(tmp_path / "a" / "2.png", 2, (9, 8), "L")
    assert datasets.load(str(tmp_path)).shape == (3, 32, 32)
    assert datasets.load(str(tmp_path), Reading(size=8, channels="gray")).shape == (1, 8, 8)
    assert datasets.load(str(tmp_path), Reading(channels="gray")).shape == (1, 32, 32)


def test_only_the_split_that_lacks_is_set_aside(source):
    data = datasets.load(source, Reading(holdout=0.1))
    assert [len(part) for part in (data.pool, data.validation, data.test)] == [18, 2, 20]


@pytest.mark.parametrize("per_class, sizes", [(1, [3, 0, 0]), (2, [4, 1, 1]), (3, [5, 2, 2])])
def test_every_class_keeps_a_labeled_image(per_class, sizes, tmp_path):
    pictures.folder(tmp_path, per_class, classes="abc", splits=("",))
    data = datasets.load(str(tmp_path), Reading(holdout=0.4 if per_class == 2 else 0.2))
    assert [len(part) for part in (data.pool, data.validation, data.test)] == sizes
    assert data.pool.y.unique().tolist() == [0, 1, 2]


def test_unreadable_images_are_left_out_and_told(source, tmp_path):
    (tmp_path / "set" / "train" / "cat" / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/cat/3\.png is empty\. Mend or remove"):
        datasets.load(source)
    data = datasets.load(source, Reading(holdout=0, unreadable="skip"))
    assert data.pool.y.bincount().tolist() == [9, 10]
    assert "left out, as they cannot be read: 1 images (train/cat/3.png is empty)" in data.told
    for i in range(10):
        (tmp_path / "set" / "train" / "cat" / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="no image of class 'cat' can be read"):
        datasets.load(source, Reading(unreadable="skip"))


def test_a_large_set_stays_in_its_file(source, monkeypatch):
    memory = datasets.load(source)
    monkeypatch.setattr(own, "IN_MEMORY", 100)
    file = datasets.load(source)
    assert isinstance(file.pool.x, Stored) and isinstance(memory.pool.x, Tensor)
    assert torch.equal(content(file.pool), content(memory.pool)) and file.describe() == memory.describe()


def test_a_description_says_what_the_data_were(source, tmp_path):
    pictures.save(tmp_path / "set" / "unlabeled" / "a.png", 5, (8, 8))
    described = datasets.load(source, Reading(holdout=0.1)).describe()
    assert described == {
        "source": source,
        "hash": described["hash"],
        "size": [8, 8],
        "channels": 3,
        "fit": "crop",
        "images": {"train": 18, "validation": 2, "test": 20, "unlabeled": 1},
        "notes": ["2 of 20 labeled training images were set aside for validation (--holdout)"],
    }
    json.dumps(described)


def test_the_hash_is_that_of_contents_labels_and_splits_alone(source, tmp_path):
    def hashed(*rows: str) -> str:
        return datasets.load(str(pictures.manifest(tmp_path / "set" / "m.csv", *rows)), Reading(size=8)).hash

    rows = ["train/cat/0.png,cat,", "train/dog/0.png,dog,", "test/cat/1.png,cat,test", "test/dog/1.png,,"]
    first = hashed(*rows)
    assert hashed(*rows) == first
    others = [
        hashed(*rows[:3], "test/dog/1.png,dog,"),
        hashed(*rows[:2], "test/cat/1.png,cat,validation", rows[3]),
        hashed(*(row.replace("cat,", "cow,") for row in rows)),
        hashed(*rows[:3], "test/dog/2.png,,"),
    ]
    assert len({first, *others}) == 5


def test_the_hash_is_that_of_what_images_came_to(source, tmp_path):
    pictures.folder(tmp_path / "flat", 10, classes="ab", splits=("",), size=(8, 8))
    flat = str(tmp_path / "flat")
    readings = [
        Reading(),
        Reading(holdout=0.1),
        KEEP,
        Reading(size=6),
        Reading(size=6, fit="pad"),
        Reading(channels="gray"),
    ]
    assert len({datasets.load(flat, reading).hash for reading in readings}) == 6
    assert datasets.load(flat, Reading(mirror="yes", unreadable="skip")).hash == datasets.load(flat).hash
    complete = {datasets.load(source, Reading(holdout=0)).hash, datasets.load(source).hash}
    assert len(complete) == 2
    pictures.folder(tmp_path / "set", 10, splits=("validation",), size=(8, 8))
    assert datasets.load(source, KEEP).hash == datasets.load(source).hash


@pytest.mark.parametrize(
    "reading, message",
    [({"size": 3}, "size is 3: give 4 to 1024"), ({"size": -1}, "size is -1"), ({"holdout": 0.5}, "holdout is 0.5")],
)
def test_a_wrong_reading_is_told(reading, message):
    with pytest.raises(UserError, match=message):
        Reading(**reading)


@pytest.mark.parametrize("field, value", [("size", 8), ("mirror", "yes"), ("holdout", 0.1)])
def test_a_built_in_set_has_nothing_to_read(field, value):
    for name in ("digits", "generator:glyphs"):
        with pytest.raises(UserError, match=f"--data {name} does not read {field}: leave it out"):
            datasets.load(name, Reading(**{field: value}))


def test_the_names_of_built_in_sets_win_over_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures.folder(tmp_path / "digits", 2)
    pictures.folder(tmp_path / "mine", 2)
    assert datasets.load("digits") is datasets.load("digits") and not datasets.is_own("digits")
    assert isinstance(datasets.load("mine"), Dataset) and datasets.is_own("mine")
    with pytest.raises(
        UserError, match=r"unknown data set \(and there is no such path\) 'digit': did you mean 'digits'"
    ):
        datasets.load("digit")
    with pytest.raises(UserError, match="no/such does not exist"):
        datasets.load("no/such")


def test_another_process_reads_the_same(source):
    code = f"from semisynth.data import datasets; print(datasets.load({source!r}).describe()['hash'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == datasets.load(source).describe()["hash"]
