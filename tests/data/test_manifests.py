"""CSV and TSV manifests: what is read, and what is refused, with the line it is in."""

from __future__ import annotations

import os
import re

import pictures
import pytest

from semisynth.data import catalog
from semisynth.data.catalog import SPLITS
from semisynth.errors import UserError

FEW = ("a.png,cat,train", "b.png,dog,train")


def rows(path) -> list[tuple[str, str, str]]:
    it = catalog.read(str(path))
    names = [*it.classes, ""]
    return [(i.name, names[c], SPLITS[s]) for i, c, s in zip(it.items, it.labels, it.splits, strict=True)]


@pytest.mark.parametrize("suffix, delimiter", [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
def test_a_manifest_names_files_labels_and_splits(suffix, delimiter, tmp_path):
    lines = [
        *FEW,
        "x/../c.png,cat,test",
        "d.png,dog, validation ",
        "e.png,,",
        "f.png,  ,unlabeled",
        "",
        '"g, h.png",cat,',
    ]
    text = [
        line.replace(",", delimiter) if "h.png" not in line else f'"g, h.png"{delimiter}cat{delimiter}'
        for line in lines
    ]
    path = pictures.manifest(tmp_path / f"m{suffix}", *text, head=f" path {delimiter}label{delimiter}split")
    assert rows(path) == [
        ("a.png", "cat", "train"),
        ("b.png", "dog", "train"),
        ("c.png", "cat", "test"),
        ("d.png", "dog", "validation"),
        ("e.png", "", "unlabeled"),
        ("f.png", "", "unlabeled"),
        ("g, h.png", "cat", "train"),
    ]


def test_files_are_below_the_manifest_wherever_one_is(tmp_path, monkeypatch):
    pictures.save(tmp_path / "in" / "a.png")
    path = pictures.manifest(tmp_path / "in" / "m.csv", *FEW)
    content = (tmp_path / "in" / "a.png").read_bytes()
    assert catalog.read(str(path)).items[0].read() == content
    monkeypatch.chdir(tmp_path / "in")
    assert catalog.read("m.csv").items[0].read() == content


def test_columns_may_be_in_any_order_and_the_split_may_be_left_out(tmp_path):
    path = pictures.manifest(tmp_path / "m.csv", "1,cat,a.png", "2,dog,b.png", head="id,label,path")
    assert rows(path) == [("a.png", "cat", "train"), ("b.png", "dog", "train")]


def test_a_byte_order_mark_and_bytes_that_are_not_utf8_are_read(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfpath,label\ncaf\xe9.png,cat\nb.png,n\xe9e\n")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"bytes")
    it = catalog.read(str(tmp_path / "m.csv"))
    assert it.classes == ("cat", "n\\xe9e") and it.items[0].name == "caf\\xe9.png"
    assert it.items[0].read() == b"bytes"


@pytest.mark.parametrize(
    "path",
    ["/etc/a.png", "../a.png", "x/../../a.png", "C:\\a.png", "c:/a.png", "\\\\host\\a.png", "s3://bucket/a.png", ".."],
)
def test_a_path_that_leads_out_is_refused(path, tmp_path):
    manifest = pictures.manifest(tmp_path / "m.csv", *FEW, f"{path},cat,train")
    with pytest.raises(UserError, match=re.escape(f"m.csv, line 4: '{path}' leads out of the manifest's folder")):
        catalog.read(str(manifest))


@pytest.mark.parametrize(
    "line, message",
    [
        (",cat,train", "line 4: the path is blank"),
        (" ,cat,train", "line 4: the path is blank"),
        ("c.png,cat,trian", "unknown split in .*line 4: 'trian': did you mean 'train'"),
        ("c.png,,test", "line 4: the label is blank, and an image for test needs one"),
        ("c.png,cat,unlabeled", "line 4: an image of the split unlabeled has the label 'cat'"),
        ("c.png,cat,train,more", "line 4: 4 fields, but the header has 3"),
        ("c.png", "line 4: 1 fields, but the header has 3"),
        ("a.png,dog,train", "a.png is listed as 'cat' in train and 'dog' in train"),
        ("./a.png,cat,test", "a.png is listed as 'cat' in train and 'cat' in test"),
        ("a.png,,", "a.png is listed as 'cat' in train and '' in unlabeled"),
        ("c.png,Cat,train", "labels 'cat' and 'Cat' differ only in case"),
        ("x" * 200_000, "line 4: field larger than field limit"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(line, message, tmp_path):
    with pytest.raises(UserError, match=message):
        catalog.read(str(pictures.manifest(tmp_path / "m.csv", *FEW, line)))


@pytest.mark.parametrize(
    "head, message",
    [
        ("path,class", r"the column 'label' is missing\. It has: path, class\."),
        ("file,label", "the column 'path' is missing"),
        ("path;label", r"is missing\. It has: path;label\. It seems to be separated by semicolons: a \.csv needs"),
        ("path\tlabel", "It seems to be separated by tabs: a .csv needs commas, and a .tsv tabs. A manifest"),
        ("Path,label", r"the column 'path' is missing\. It has: Path, label\. Write 'Path' as 'path'\. A manifest"),
        ("path,label,label", "the column 'label' occurs twice"),
        ("", "the column 'path' is missing. It has: nothing"),
    ],
)
def test_a_missing_column_is_told(head, message, tmp_path):
    with pytest.raises(UserError, match=message):
        catalog.read(str(pictures.manifest(tmp_path / "m.csv", head=head)))


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le"])
def test_another_encoding_is_told(coding, tmp_path):
    (tmp_path / "m.csv").write_bytes("path,label\na.png,cat\n".encode(coding))
    with pytest.raises(UserError, match=r"It seems to be UTF-16: save it as UTF-8|It must be CSV in UTF-8"):
        catalog.read(str(tmp_path / "m.csv"))


def test_minus_one_among_whole_numbers_is_no_label_and_told(tmp_path):
    numbers = ("a.png,0,", "b.png,1,", "c.png,-1,", "d.png, -1 ,unlabeled", "c.png,,")
    path = pictures.manifest(tmp_path / "m.csv", *numbers)
    assert [row[1:] for row in rows(path)] == [("0", "train"), ("1", "train"), *[("", "unlabeled")] * 2]
    assert catalog.read(str(path)).notes == (
        "labels -1, which mean none where all are whole numbers: 1",
        "rows passed over, as they are there already: 1",
    )
    path = pictures.manifest(tmp_path / "m.csv", *numbers[:4], "e.png,cat,")
    assert [label for _, label, _ in rows(path)] == ["0", "1", "-1", "", "cat"]
    with pytest.raises(UserError, match=r"m\.csv, f\.png: the label is blank, and an image for test needs one"):
        catalog.read(str(pictures.manifest(tmp_path / "m.csv", *numbers, "f.png,-1,test")))
    with pytest.raises(UserError, match=r"one class only, '1' \(labels -1, which mean none where all are .*: 1\)"):
        catalog.read(str(pictures.manifest(tmp_path / "m.csv", "a.png,1,", "b.png,-1,")))


@pytest.mark.parametrize("label", ["nan", "NaN", " NA", "<NA>", "None"])
def test_what_programs_write_for_no_label_is_refused(label, tmp_path):
    path = pictures.manifest(tmp_path / "m.csv", *FEW, f"c.png,{label},")
    with pytest.raises(
        UserError, match=rf"line 4: the label '{label.strip()}' is what programs write where there is none"
    ):
        catalog.read(str(path))


def test_a_row_that_is_there_twice_is_read_once_and_told(tmp_path):
    path = pictures.manifest(
        tmp_path / "m.csv", *FEW, "./a.png,cat,train", "c.png,cat,train", "b.png,dog,train", "a.png,cat,"
    )
    assert [name for name, *_ in rows(path)] == ["a.png", "b.png", "c.png"]
    assert catalog.read(str(path)).notes == ("rows passed over, as they are there already: 3",)


def test_a_manifest_that_is_not_there_or_no_file_is_told_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for name, message in {"no.csv": r"no\.csv does not exist", "pipe.csv": r"pipe\.csv is no file"}.items():
        with pytest.raises(UserError, match=message):
            catalog.read(str(tmp_path / name))


def test_a_manifest_on_another_machine_is_read_through_fsspec():
    import fsspec

    with fsspec.open("memory://far/m.csv", "w") as file:
        file.write("path,label\na.png,cat\nb.png,dog\n")
    with fsspec.open("memory://far/a.png", "wb") as file:
        file.write(b"far")
    it = catalog.read("memory://far/m.csv")
    assert it.classes == ("cat", "dog") and it.items[0].read() == b"far"
    for name in ("none.csv", "none.npz"):
        with pytest.raises(
            UserError, match=rf"^memory://far/{name} cannot be read: it does not exist\. Check the address"
        ):
            catalog.read(f"memory://far/{name}")
