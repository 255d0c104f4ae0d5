"""The names of a generator's classes, and which of them stand for those of the data."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from semisynth.errors import UserError

FEW = 10  # names that are told of many


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Each once: a name that several classes have, or a blank one, has the class's number behind it, "crane (134)"."""
    names = tuple(names)
    count = Counter(names)
    found = tuple(own if own.strip() and count[own] == 1 else f"{own} ({i})".strip() for i, own in enumerate(names))
    return found if found == names else unique(found)


def number(asked: str, names: Sequence[str], lacks: str, numbered: bool = True) -> int:
    """The class that is asked for by its whole name, its number, or one of its synonyms that no other class has.

    Synonyms are what the commas of a name part, as in "tench, Tinca tinca". lacks: what is told where there is none;
    numbered: whether a number is a class too. `UserError` for a class that there is not, and for one of several.
    """
    found = [names.index(asked)] if asked in names else []
    if not found and numbered and re.fullmatch("[0-9]{1,9}", asked) and int(asked) < len(names):
        found = [int(asked)]
    found = found or [i for i, name in enumerate(names) if asked in _synonyms(name, i)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"'{names[i]}' is number {i}" for i in found)
        raise UserError(f"several classes of the generator are called '{asked}': {several}. Give a number.")
    raise UserError(lacks)


def near(asked: str, names: Sequence[str]) -> str:
    """The name most like it, as a question, and some of them all."""
    like = difflib.get_close_matches(asked.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean '{like[0]}'? Give" if like else "give"
    return f"{hint} a number from 0 to {len(names) - 1}, or one of {few(names)}."


def few(names: Sequence[str]) -> str:
    """The names, or the first of many; they may have commas in them."""
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(f"'{name}'" for name in names[:FEW]) + more


def pairs(classes: str, own: Sequence[str]) -> dict[str, str]:
    """What is named for a class of the data, in pairs as "cat=tabby, tabby cat,dog=hound"; nothing for "equal".

    own: the classes of the data. `UserError` for what is no pair, and for one class twice.
    """
    if classes == "equal":
        return {}
    known = "|".join(map(re.escape, sorted(own, key=len, reverse=True)))
    before, *parts = re.split(rf"(?:^|,)\s*({known})\s*=", classes)
    given = list(zip(parts[::2], parts[1::2], strict=True))
    odd = before.split(",") if before.strip() or not given else []
    # What is behind a comma belongs to the name before it, unless it looks like a pair.
    odd += [part for _, other in given for part in other.split(",") if "=" in part]
    if odd:
        raise UserError(
            f"--classes: '{odd[0].strip()}' is no pair CLASS=CLASS of a class of the data, which are {few(own)}."
        )
    for name, times in Counter(name for name, _ in given).items():
        if times > 1:
            raise UserError(f"--classes names the class '{name}' twice: give one pair for each.")
    return {name: other.strip() for name, other in given}


def _synonyms(name: str, i: int) -> set[str]:
    """Also those that it has in common with other classes, and so has its number behind it."""
    return {part.strip() for part in name.removesuffix(f" ({i})").split(",")} - {""}
