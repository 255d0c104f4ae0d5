"""Sets of the `datasets` library in local folders; nothing is fetched."""

from __future__ import annotations

import pickle
import sys

import datasets
import pictures
import pytest

from semisynth.data import catalog
from semisynth.data.catalog import SPLITS
from semisynth.errors import UserError

NAMES = ["dog", "cat", "owl"]


def split(labels, names=NAMES, image="image", **more):
    rows = {image: [{"bytes": pictures.encoded(pictures.image(i)), "path": None} for i in range(len(labels))]}
    kind = {"label": datasets.ClassLabel(names=names)} if names else {"label": datasets.Value("string")}
    features = datasets.Features({image: datasets.Image(), **kind, **{name: datasets.Value("int64") for name in more}})
    return datasets.Dataset.from_dict({**rows, "label": labels, **more}, features=features)


def saved(path, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(path / "set"))
    return f"hub:{path / 'set'}"


def rows(source):
    it = catalog.read(source)
    names = [*it.classes, ""]
    return [(i.name, names[c], SPLITS[s]) for i, c, s in zip(it.items, it.labels, it.splits, strict=True)]


def test_splits_labels_and_the_order_of_the_classes_are_kept(tmp_path):
    source = saved(tmp_path, train=split([0, 1, -1]), valid=split([1]), unsupervised=split([-1, 0]))
    assert rows(source) == [
        *(("train[0]", "dog", "train"), ("train[1]", "cat", "train"), ("train[2]", "", "unlabeled")),
        ("valid[0]", "cat", "validation"),
        *(("unsupervised[0]", "", "unlabeled"), ("unsupervised[1]", "", "unlabeled")),
    ]
    it = catalog.read(source)
    assert it.classes == ("dog", "cat")
    contents = [item.read() for item in it.items]
    assert contents[1] == pictures.encoded(pictures.image(1))
    assert pickle.loads(pickle.dumps(it.items[1])).read() == contents[1]
    assert len({item.stamp for item in it.items}) == 6 and catalog.read(source).stamp == it.stamp


def test_a_test_split_without_labels_and_one_of_another_name_are_passed_over_and_told(tmp_path):
    source = saved(tmp_path, train=split([0, 1]), test=split([-1, -1]), extra=split([0]))
    it = catalog.read(source)
    assert len(it.items) == 2
    assert it.notes == (
        "the split test was passed over: it has no labels",
        "the split extra was passed over: unknown",
    )


def test_labels_may_be_text_and_a_single_split_is_for_training(tmp_path):
    split(["b", "a", ""], names=None, image="picture").save_to_disk(str(tmp_path / "one"))
    assert [row[1:] for row in rows(f"hub:{tmp_path / 'one'}")] == [("b", "train"), ("a", "train"), ("", "unlabeled")]


def test_numbers_may_be_labels_and_minus_one_is_none(tmp_path):
    source = saved(tmp_path, train=split(["1", "0", "-1"], names=None), test=split(["-1", "-1"], names=None))
    assert [row[1:] for row in rows(source)] == [("1", "train"), ("0", "train"), ("", "unlabeled")]
    split(["a", "b", "-1"], names=None).save_to_disk(str(tmp_path / "one"))
    assert [row[1] for row in rows(f"hub:{tmp_path / 'one'}")] == ["a", "b", "-1"]
    split(["a", "b", "nan"], names=None).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UserError, match="two, train: the label 'nan' is what programs write"):
        catalog.read(f"hub:{tmp_path / 'two'}")


def test_names_that_look_alike_are_classes_of_their_own(tmp_path):
    it = catalog.read(saved(tmp_path, train=split([0, 1, 2], names=["a", "A", "a "])))
    assert it.classes == ("a", "A", "a ") and it.labels.tolist() == [0, 1, 2] and len(it.notes) == 2


def test_an_image_may_be_a_file(tmp_path):
    path = str(pictures.save(tmp_path / "a.png"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    datasets.Dataset.from_dict({"image": [path, path], "label": [0, 1]}, features=features).save_to_disk(
        str(tmp_path / "d")
    )
    assert catalog.read(f"hub:{tmp_path / 'd'}").items[1].read() == pictures.encoded(pictures.image(0))


def test_a_set_without_images_or_labels_is_told(tmp_path):
    source = saved(
        tmp_path, train=split([0, 1]).rename_column("label", "kind").cast_column("kind", datasets.Value("int64"))
    )
    with pytest.raises(UserError, match="no column 'label' among image, kind: rename one"):
        catalog.read(source)
    datasets.Dataset.from_dict({"x": [1], "label": [0]}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no column 'image' among x, label"):
        catalog.read(f"hub:{tmp_path / 'none'}")


def test_a_folder_that_is_no_set_is_told(tmp_path):
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"hub:\S+ cannot be loaded: .* Check the name and the connection"):
        catalog.read(f"hub:{tmp_path}")


def test_a_missing_library_is_told_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'semisynth\[hub\]'"):
        catalog.read("hub:mnist")
