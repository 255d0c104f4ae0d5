"""The directory that --out names: made, or refused where something else lives in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from semisynth.errors import UserError
from semisynth.weights import read_json


def make(out: Path) -> None:
    """Make it, unless it is there; `UserError` if that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}. Give another --out.") from error


def taken(out: Path, parts: Collection[str]) -> bool:
    """Whether a file is there, or a directory with anything but `parts`, which an end may have left half written."""
    if not out.is_dir():
        return out.exists()
    return bool({file.name.removesuffix(".part") for file in out.iterdir()} - set(parts))


def finished(
    out: Path, kind: str, record: str, options: Mapping[str, Any], parts: Collection[str]
) -> dict[str, Any] | None:
    """The record, written last, of what was made with these options; None if only `parts`, or nothing, are there.

    kind: what is made. `UserError` for one of other options, and for anything else that lives there.
    """
    if (out / record).exists():
        there = read_json(out / record)
        require(out, f"another {kind}", there.get("options", {}), options, options)
        return there
    if taken(out, parts):
        article = "an" if kind[0] in "aeiou" else "a"
        raise UserError(f"--out {out} exists and is not {article} {kind}: give another one.")
    return None


def require(out: Path, what: str, there: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str]) -> None:
    """`UserError`, which tells what differs, unless what is there equals what is wanted in all these names."""
    differ = [name for name in names if there.get(name) != wanted.get(name)]
    if differ:
        told = ", ".join(f"{name} ({there.get(name)} there, {wanted.get(name)} asked)" for name in differ)
        raise UserError(f"--out {out} holds {what}: {told}. Give another --out.")
