"""Libraries that need not be installed; they are imported where they are used."""

from __future__ import annotations

from typing import Any

from semisynth.errors import UserError


def diffusers(what: str) -> Any:
    """The library diffusers, which takes seconds to import; `UserError` where it is missing.

    what: that needs it, in the user's words.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"{what} needs the library diffusers: pip install 'semisynth[diffusers]'.") from error
    return diffusers


def transformers(what: str) -> Any:
    """The library transformers, likewise."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{what} needs the library transformers: pip install 'semisynth[diffusers]'.") from error
    return transformers
