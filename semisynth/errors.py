"""Mistakes that a user can mend: told in one sentence, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A wrong input; the message names the file or field and the remedy. The command line exits with 2."""


def choose(name: str, options: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `options`; otherwise raise `UserError` with the nearest name."""
    options = list(options)
    if name in options:
        return name
    near = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else "."
    raise UserError(f"unknown {what} '{name}'{hint} Choose from: {', '.join(options)}.")
