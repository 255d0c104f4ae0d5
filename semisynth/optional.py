"""Libraries that need not be installed; they are imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from semisynth.errors import UserError


def library(name: str, what: str) -> Any:
    """The library of the extra of the same name; `UserError` where it, or what it imports, is missing.

    what: that needs it, in the user's words.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        lacks = f", which lacks {error.name}" if error.name not in (None, name) else ""
        raise UserError(f"{what} needs the library {name}{lacks}: pip install 'semisynth[{name}]'.") from error
