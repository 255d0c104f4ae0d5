"""Mistakes that a user can mend: told in one sentence, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin


class UserError(ValueError):
    """A wrong input; the message names the file or field and the remedy. The command line exits with 2."""


class Diverged(UserError):
    """A training that the chosen options made impossible: what a search may score as lost."""


def line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def sentence(error: BaseException, most: int = 300) -> str:
    """The beginning of what an error says, in one line that ends in one full stop."""
    return line(error)[:most].rstrip(" .:") + "."


def between(low: float, high: float, **values: float) -> None:
    """Raise `UserError` for the first of the named values that is not in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise UserError(f"{name} is {value}: give a number from {low} to {high}.")


def choose(name: str, options: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `options`; otherwise raise `UserError` with the nearest name."""
    options = list(options)
    if name in options:
        return name
    near = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else "."
    raise UserError(f"unknown {what} '{name}'{hint} Choose from: {', '.join(options)}.")


def check(value: object, hint: Any, what: str) -> None:
    """Raise `UserError` unless `value` is of the type that `hint` says; a whole number will do for a float."""
    if not _fits(value, hint):
        kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise UserError(f"{what} is {value!r}: it must be of type {kind}.")


def check_all(values: Mapping[str, object], hints: Mapping[str, Any], source: str) -> None:
    """Raise `UserError` for a name that is not among the hints, and for a value that is not of the type of its hint."""
    for name, value in values.items():
        check(value, hints[choose(name, hints, f"field in {source}:")], f"'{name}' in {source}")


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):
        return any(_fits(value, part) for part in get_args(hint))
    return type(value) is hint or (hint is float and (type(value) is int or isinstance(value, float)))
