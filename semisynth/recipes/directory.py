"""The directory that --out names: made, or refused where something else lives in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from semisynth.errors import UserError


def make(out: Path) -> None:
    """Make it, unless it is there; `UserError` if that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}. Give another --out.") from error


def require(out: Path, what: str, there: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str]) -> None:
    """`UserError`, which tells what differs, unless what is there equals what is wanted in all these names."""
    differ = [name for name in names if there.get(name) != wanted.get(name)]
    if differ:
        told = ", ".join(f"{name} ({there.get(name)} there, {wanted.get(name)} asked)" for name in differ)
        raise UserError(f"--out {out} holds {what}: {told}. Give another --out.")
