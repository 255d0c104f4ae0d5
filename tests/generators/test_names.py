"""The names of classes: doubles, and which one is asked for."""

from __future__ import annotations

import pytest

from semisynth.errors import UserError
from semisynth.generators import names

THERE = (
    "crane (0)",
    "tench, Tinca tinca",
    "crane (2)",
    "missile",
    "projectile, missile",
    "1",
    "sea cow, cow",
    "cow, ox",
)


def test_a_name_is_there_once() -> None:
    assert names.unique(("a", "b")) == ("a", "b")
    assert names.unique(("a", "b", "a", "", " ")) == ("a (0)", "b", "a (2)", "(3)", "(4)")
    assert len({*names.unique(("a (1)", "a", "a", "a (2)"))}) == 4


@pytest.mark.parametrize(
    "asked, found",
    [
        ("tench, Tinca tinca", 1),
        ("tench", 1),
        ("Tinca tinca", 1),
        ("0", 0),
        ("1", 5),  # a name comes first
        ("7", 7),
        ("missile", 3),
        ("projectile", 4),
        ("crane (2)", 2),
        ("ox", 7),
    ],
)
def test_a_class_is_asked_for_by_name_number_or_synonym(asked: str, found: int) -> None:
    assert names.number(asked, THERE, "none") == found


@pytest.mark.parametrize("asked", ["tinca", "8", "-1", "", "²", "tench,"])
def test_what_is_no_class_is_told(asked: str) -> None:
    with pytest.raises(UserError, match="none"):
        names.number(asked, THERE, "none")


def test_a_number_may_be_no_class() -> None:
    with pytest.raises(UserError, match="none"):
        names.number("3", THERE, "none", numbered=False)
    assert names.number("1", THERE, "none", numbered=False) == 5


def test_a_synonym_of_several_classes_needs_a_number() -> None:
    with pytest.raises(UserError, match=r"several .* are called 'crane': 'crane \(0\)' is number 0, 'crane \(2\)' is"):
        names.number("crane", THERE, "none")
    with pytest.raises(UserError, match=r"are called 'cow': 'sea cow, cow' is number 6, 'cow, ox' is number 7. Give a"):
        names.number("cow", THERE, "none")


def test_a_pair_may_have_commas_in_it() -> None:
    assert names.pairs("equal", "ab") == {}
    assert names.pairs("a=tench, Tinca tinca,b=3", "ab") == {"a": "tench, Tinca tinca", "b": "3"}
    assert names.pairs("a, b=cow, a=hen", ["a", "a, b"]) == {"a, b": "cow", "a": "hen"}


@pytest.mark.parametrize(
    "classes, told",
    [
        ("tench", "'tench' is no pair"),
        ("", "'' is no pair"),
        ("c=hen", "'c=hen' is no pair CLASS=CLASS of a class of the data, which are 'a', 'b'"),
        ("a=hen,c=cow", "'c=cow' is no pair"),
        ("c=cow,a=hen", "'c=cow' is no pair"),
        ("a=hen,a=cow", "names the class 'a' twice"),
    ],
)
def test_what_is_no_pair_is_told(classes: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        names.pairs(classes, ["a", "b"])


def test_of_many_names_some_are_told() -> None:
    many = tuple(map(str, range(1000)))
    assert names.few(many).endswith("'8', '9' and 990 more") and names.few(("a", "b")) == "'a', 'b'"
    told = names.near("tenhc", ("tench", *many))
    assert told.startswith("did you mean 'tench'? Give a number from 0 to 1000, or one of 'tench', '0', '1'")
