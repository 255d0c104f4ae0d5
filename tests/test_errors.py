"""Wrong names and values are told with the nearest right one."""

from __future__ import annotations

from typing import Any, Literal, Optional

import pytest

from semisynth.errors import UserError, check, choose


def test_a_known_name_is_returned():
    assert choose("b", iter("abc"), "letter") == "b"


@pytest.mark.parametrize(
    "name, hint", [("fixmach", ": did you mean 'fixmatch'?"), ("FixMatch", ": did you mean 'fixmatch'?"), ("zzz", ".")]
)
def test_an_unknown_name_is_told_with_the_nearest(name, hint):
    with pytest.raises(UserError) as caught:
        choose(name, iter(["fixmatch", "gan"]), "method")
    assert str(caught.value) == f"unknown method '{name}'{hint} Choose from: fixmatch, gan."


FITS: list[tuple[object, Any]] = [
    (1, int),
    (1, float),
    (1.5, float),
    ("a", str),
    (True, bool),
    (None, str | None),
    ("a", Optional[str]),  # noqa: UP045
    ("b", Literal["a", "b"]),
    (0.5, int | float),
    ({}, dict),
]
MISFITS: list[tuple[object, Any, str]] = [
    (1.5, int, "int"),
    (True, int, "int"),
    (True, float, "float"),
    ("1", int, "int"),
    (1, bool, "bool"),
    (None, str, "str"),
    (3, str | None, "str | None"),
    ("c", Literal["a", "b"], "Literal['a', 'b']"),
    ([], dict, "dict"),
]


@pytest.mark.parametrize("value, hint", FITS)
def test_a_value_of_the_type_passes(value, hint):
    check(value, hint, "x")


@pytest.mark.parametrize("value, hint, kind", MISFITS)
def test_a_value_of_another_type_is_told_with_the_type(value, hint, kind):
    with pytest.raises(UserError) as caught:
        check(value, hint, "'lr' in config.json")
    assert str(caught.value) == f"'lr' in config.json is {value!r}: it must be of type {kind}."
