"""Libraries that need not be installed; they are imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from semisynth.errors import UserError


def diffusers(what: str) -> Any:
    """The library diffusers, which takes seconds to import; `UserError` where it is missing.

    what: that needs it, in the user's words.
    """
    return _library("diffusers", what)


def transformers(what: str) -> Any:
    """The library transformers, likewise."""
    return _library("transformers", what)


def _library(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{what} needs the library {name}: pip install 'semisynth[diffusers]'.") from error
