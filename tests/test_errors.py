"""Wrong names and values are told with the nearest right one."""

from __future__ import annotations

import math
from typing import Any, Literal, Optional

import pytest

from semisynth.errors import UserError, between, check, choose


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


def test_values_from_one_end_to_the_other_pass():
    between(0, 1, least=0, middle=0.5, most=1.0)
    between(0, math.inf, huge=1e300)


@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_between_is_told_by_its_name(value):
    with pytest.raises(UserError) as caught:
        between(0, 1, good=0.5, bad=value, worse=9)
    assert str(caught.value) == f"bad is {value}: give a number from 0 to 1."
