"""Folders of images: what is found in them, and every way in which they may be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array

import numpy as np
import pictures
import pytest

from semisynth.data import catalog, datasets
from semisynth.data.catalog import SPLITS, Listing
from semisynth.data.items import Files
from semisynth.errors import UserError


def found(source) -> dict[str, tuple[str, str]]:
    """The label and the split of each image by its name."""
    it = catalog.read(str(source))
    names = [*it.classes, ""]  # the last is that of -1
    return {
        item.name: (names[label], SPLITS[split])
        for item, label, split in zip(it.items, it.labels, it.splits, strict=True)
    }


def listing(*labels: str | None, splits=None, classes=None, typed=True) -> Listing:
    files = Files(".", (f"{i}.png" for i in range(len(labels))))
    return Listing(
        files, list(labels), array("B", splits or [3 if text is None else 0 for text in labels]), [], classes, typed
    )


def test_a_folder_has_splits_of_classes_and_unlabeled_images_at_any_depth(tmp_path):
    pictures.folder(tmp_path, 1, splits=("train", "validation", "test"))
    pictures.save(tmp_path / "unlabeled" / "deep" / "er" / "a.jpg")
    pictures.save(tmp_path / "unlabeled" / "b.PNG")
    assert found(tmp_path) == {
        **{f"{split}/{name}/0.png": (name, split) for split in SPLITS[:3] for name in ("cat", "dog")},
        "unlabeled/b.PNG": ("", "unlabeled"),
        "unlabeled/deep/er/a.jpg": ("", "unlabeled"),
    }
    assert catalog.read(str(tmp_path)).notes == ()


def test_without_train_the_other_folders_are_the_classes(tmp_path):
    pictures.folder(tmp_path, 1, splits=("",))
    pictures.save(tmp_path / "test" / "cat" / "0.png")
    assert found(tmp_path) == {
        "cat/0.png": ("cat", "train"),
        "dog/0.png": ("dog", "train"),
        "test/cat/0.png": ("cat", "test"),
    }


@pytest.mark.parametrize(
    "names, expected",
    [
        (["10", "9", "-1", "02"], ["-1", "02", "9", "10"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["b", "B2", "a"], ["B2", "a", "b"]),
    ],
)
def test_classes_are_sorted_by_number_if_all_are_numbers(names, expected):
    assert list(catalog.assemble("it", listing(*names)).classes) == expected


def test_labels_are_indices_into_the_classes():
    it = catalog.assemble("it", listing("b", None, " a ", "b"))
    assert it.classes == ("a", "b") and it.labels.tolist() == [1, -1, 0, 1] and it.splits.tolist() == [0, 3, 0, 0]
    assert it.labels.dtype == np.int64 and it.splits.dtype == np.uint8
    given = catalog.assemble("it", listing("b", "a", classes=("b", "a")))
    assert given.classes == ("b", "a") and given.labels.tolist() == [0, 1]


@pytest.mark.parametrize("other", ["Cat", "cat ", "ｃat"])
def test_labels_that_look_alike_are_refused(other):
    with pytest.raises(UserError, match=f"it: the labels 'cat' and '{other}' differ only in case, blanks"):
        catalog.assemble("it", listing("cat", "dog", other))


def test_labels_that_are_shown_alike_are_refused():
    for typed in (True, False):
        with pytest.raises(
            UserError, match=r"the labels 'caf\\xe9' and 'caf\\xe9' differ only in case, blanks or encoding"
        ):
            catalog.assemble("it", listing("caf\udce9", "dog", "caf\\xe9", typed=typed))


def test_folders_that_look_alike_are_classes_of_their_own_and_told(tmp_path):
    pictures.folder(tmp_path, 1, classes=("a", "A", "a ", "b"))
    it = catalog.read(str(tmp_path))
    assert it.classes == ("A", "a", "a ", "b") and len(it.items) == 8
    assert it.notes == tuple(
        f"the classes 'A' and '{name}' differ only in case, blanks or encoding" for name in ("a", "a ")
    )
    assert [name for name, *_ in found(tmp_path).values()] == list(it.classes) * 2


def test_what_cannot_be_learned_is_refused():
    for it, message in {
        "one class only, 'cat'": listing("cat", "cat"),
        "no labeled image": listing(None, None),
        "no labeled training image of class 'dog'": listing("cat", "dog", "dog", splits=[0, 1, 2]),
        "1001 classes, more than 1000": listing(*map(str, range(1001))),
    }.items():
        with pytest.raises(UserError, match=f"^here:? .*{it}"):
            catalog.assemble("here", message)


def test_where_no_classes_are_needed_images_without_them_are_unlabeled(tmp_path):
    for name in ("flat/b.png", "flat/a.png", "deep/unlabeled/in/a.png", "one/cat/a.png"):
        pictures.save(tmp_path / name)
    (tmp_path / "flat" / "pool.csv").write_text("path,label\na.png,\nb.png, \n")
    notes = {"flat": ("files passed over, as their names are not those of images: 1",), "flat/pool.csv": ()}
    notes |= {"deep": (), "one": ("one class only, 'cat': taken for no label",)}
    for name, told in notes.items():
        with pytest.raises(UserError, match="a classifier needs at least two classes"):
            catalog.read(str(tmp_path / name))
        it = catalog.read(str(tmp_path / name), classes=False)
        assert (it.classes, it.notes, {*it.labels}, {*it.splits}) == ((), told, {-1}, {SPLITS.index("unlabeled")})
        assert len(it.items) == len(it.labels) == (2 if "flat" in name else 1)
    pictures.folder(tmp_path / "set", 1, splits=("train",))
    pictures.save(tmp_path / "set" / "loose.png")
    one, other = (catalog.read(str(tmp_path / "set"), classes=needed) for needed in (True, False))
    assert (one.classes, one.notes, one.labels.tolist()) == (other.classes, other.notes, other.labels.tolist())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image"):
        catalog.read(str(tmp_path / "empty"), classes=False)


def test_an_empty_class_folder_is_refused(tmp_path):
    pictures.folder(tmp_path, 1)
    (tmp_path / "train" / "owl").mkdir()
    with pytest.raises(UserError, match=r"class folder \S+/train/owl holds no image: fill it or remove it"):
        catalog.read(str(tmp_path))
    (tmp_path / "train" / "owl" / "inner").mkdir()
    with pytest.raises(UserError, match=r"owl holds no image, only folders such as 'inner'"):
        catalog.read(str(tmp_path))


def test_a_class_that_is_not_trained_is_refused(tmp_path):
    pictures.folder(tmp_path, 1)
    pictures.save(tmp_path / "test" / "owl" / "0.png")
    with pytest.raises(UserError, match="no labeled training image of class 'owl'"):
        catalog.read(str(tmp_path))


def test_a_split_of_another_name_is_refused(tmp_path):
    pictures.folder(tmp_path, 1, splits=("train", "val"))
    with pytest.raises(UserError, match=r"/val: beside train there may be validation, test, unlabeled\. Rename it"):
        catalog.read(str(tmp_path))


@pytest.mark.parametrize(
    "name, message",
    [("nowhere", "nowhere does not exist: give a folder"), ("a.txt", r"a\.txt is neither a folder nor a file that")],
)
def test_what_is_no_source_is_refused(name, message, tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=message):
        catalog.read(str(tmp_path / name))


def test_images_in_no_class_folder_and_deeper_ones_are_counted(tmp_path):
    pictures.folder(tmp_path, 1, splits=("",))
    (tmp_path / "cat" / "far").mkdir()
    (tmp_path / "cat" / "far" / "dogs").symlink_to(tmp_path / "dog")
    for name in ("0.png", "1.png", "cat/in/0.png", "cat/in/deep/0.png", "dog/in/0.png"):
        pictures.save(tmp_path / name)
    assert list(found(tmp_path)) == ["cat/0.png", "dog/0.png"]
    loose = "images passed over, as they are in no class folder: {}"
    assert catalog.read(str(tmp_path)).notes == (
        loose.format(2),
        "images passed over, as they are in a folder within a class folder: 3",
        "links not followed, as they lead to a folder that was read: 1",
    )
    pictures.folder(tmp_path / "more", 1)
    pictures.save(tmp_path / "more" / "train" / "0.png")
    assert catalog.read(str(tmp_path / "more")).notes == (loose.format(1),)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("base", ["train", ""])
def test_images_of_a_split_that_are_in_no_class_folder_are_refused(base, split, tmp_path):
    pictures.folder(tmp_path, 1, splits=(base, split))
    pictures.save(tmp_path / split / "0.png")
    with pytest.raises(
        UserError, match=rf"{split}/0\.png is in no class folder: images for {split} need labels\. Move"
    ):
        catalog.read(str(tmp_path))


def test_a_folder_without_images_tells_of_its_other_files(tmp_path):
    pictures.folder(tmp_path, 1)
    (tmp_path / "train" / "owl").mkdir()
    (tmp_path / "train" / "owl" / "0.heic").touch()
    with pytest.raises(UserError, match=r"owl holds no image, only files of other names than \*\.png, .*\*\.pnm: fill"):
        catalog.read(str(tmp_path))


def test_a_name_that_is_built_in_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures.folder(tmp_path / "digits", 1)
    with pytest.raises(
        UserError, match=r"'digits' is a set that is built in: for a folder of that name give \./digits"
    ):
        catalog.read("digits")
    assert len(catalog.read("./digits").items) == 4 and set(catalog.BUILT_IN) == set(datasets.BUILT_IN)


def test_an_empty_folder_and_one_that_cannot_be_listed_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has no labeled image"):
        catalog.read(str(tmp_path))

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match=r"cannot be read: Permission denied"):
        catalog.read(str(tmp_path))


def test_files_that_are_no_images_by_their_names_are_passed_over_and_told(tmp_path):
    pictures.folder(tmp_path, 1)
    for name in ("notes.txt", "Thumbs.db", ".hidden.png"):
        (tmp_path / "train" / "cat" / name).touch()
    (tmp_path / ".git").mkdir()
    it = catalog.read(str(tmp_path))
    assert len(it.items) == 4
    assert it.notes == ("files passed over, as their names are not those of images: 2",)


def test_links_that_lead_back_are_followed_once_and_told(tmp_path):
    pictures.folder(tmp_path, 1)
    pictures.save(tmp_path / "unlabeled" / "a.png")
    for name, target in {"up": "..", "me": ".", "cats": "../train/cat"}.items():
        (tmp_path / "unlabeled" / name).symlink_to(target)
    it = catalog.read(str(tmp_path))
    assert [item.name for item in it.items][-1] == "unlabeled/a.png" and len(it.items) == 5
    assert it.notes == ("links not followed, as they lead to a folder that was read: 3",)
    (tmp_path / "train" / "owl").symlink_to("../train")
    with pytest.raises(UserError, match="owl holds no image"):
        catalog.read(str(tmp_path))


def test_a_linked_folder_of_images_is_read(tmp_path):
    pictures.folder(tmp_path / "real", 1)
    (tmp_path / "link").symlink_to("real")
    assert found(tmp_path / "link") == found(tmp_path / "real")


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path):
    pictures.folder(tmp_path, 1)
    os.rename(bytes(tmp_path / "train" / "cat"), bytes(tmp_path / "train") + b"/caf\xe9")
    os.rename(bytes(tmp_path / "test" / "cat"), bytes(tmp_path / "test") + b"/caf\xe9")
    it = catalog.read(str(tmp_path))
    assert it.classes == ("caf\\xe9", "dog") and it.items[0].name == "train/caf\\xe9/0.png"
    assert it.items[0].read()[1:4] == b"PNG"


def test_a_stamp_is_that_of_all_images(tmp_path):
    pictures.folder(tmp_path, 1)
    first = catalog.read(str(tmp_path)).stamp
    assert catalog.read(str(tmp_path)).stamp == first
    pictures.save(tmp_path / "test" / "cat" / "0.png", 9)
    assert catalog.read(str(tmp_path)).stamp != first


def test_a_folder_on_another_machine_is_read_as_one_here(tmp_path):
    import fsspec

    pictures.folder(tmp_path, 1)
    pictures.save(tmp_path / "unlabeled" / "x" / "a.png")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/folder/", recursive=True)
    assert found("memory://folder") == found(tmp_path)
    it = catalog.read("memory://folder")
    assert it.items[0].read() == (tmp_path / "train" / "cat" / "0.png").read_bytes()
    with pytest.raises(UserError, match=r"memory://near/ cannot be read: it does not exist\. Check the address"):
        catalog.read("memory://near")


def test_nothing_is_decoded_and_torch_is_not_needed():
    code = "import sys, semisynth.data.catalog, semisynth.data.manifests; print({'PIL', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
