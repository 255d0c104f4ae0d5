"""A directory that is made, or refused with what differs."""

from __future__ import annotations

import pytest

from semisynth.errors import UserError
from semisynth.recipes import directory


def test_it_is_made_with_those_above_it_unless_it_is_there(tmp_path):
    for _ in range(2):
        directory.make(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file/run cannot be written: Not a directory\. Give another --out\."):
        directory.make(tmp_path / "file" / "run")


def test_what_differs_in_the_names_that_count_is_told(tmp_path):
    there, wanted = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": None, "c": 4}
    directory.require(tmp_path, "another", there, wanted, ["a", "d"])
    with pytest.raises(
        UserError, match=r"holds another: b \(2 there, 5 asked\), c \(3 there, 4 asked\)\. Give another"
    ):
        directory.require(tmp_path, "another", there, wanted, wanted)


def test_a_directory_is_taken_by_anything_but_its_own_parts(tmp_path):
    out = tmp_path / "out"
    assert not directory.taken(out, ())
    out.mkdir()
    assert not directory.taken(out, ())
    for name in ("a.json", "a.json.part"):
        (out / name).touch()
        assert not directory.taken(out, ("a.json",)) and directory.taken(out, ("b.json",))
    assert directory.taken(out / "a.json", ("a.json",))
