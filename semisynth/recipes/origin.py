"""What a run learned from: written beside its configuration, and compared whenever the run is taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from semisynth import generators
from semisynth.data import datasets
from semisynth.data.datasets import Dataset
from semisynth.errors import UserError
from semisynth.recipes.config import Config, method_class
from semisynth.weights import read_json, write_json

FILE = "data.json"
RECORD = "mix.json"  # beside the pool of a mix
COMPARED = ("class_names", "size", "channels", "images", "hash")


def load(config: Config) -> Dataset:
    """The data of a configuration; the size that is left open for one's own images is the generator's, if any."""
    setting, reading = config.setting, config.reading
    if setting.generator and not reading.size and datasets.is_own(setting.data):
        made = generators.shape(generators.load(setting.generator, config.asked))
        reading = replace(reading, size=max(made[1:]))
    return datasets.load(setting.data, reading, method_class(config.method).reads_x)


def write(data: Dataset, run: Path) -> None:
    """Keep in a run directory what its data are."""
    write_json(run / FILE, _told(data))


def require(data: Dataset, run: Path) -> None:
    """`UserError` if the run directory is of other data; one of an earlier version does not tell of which it is."""
    if (run / FILE).exists() and (differ := differences(read_json(run / FILE), data)):
        raise UserError(f"--out {run} holds a run on other data: {differ}. Give another --out, or restore the data.")


def share(data: str) -> float | None:
    """The share of synthetic images that was asked for, if `data` is the pool of a mix; None for other data."""
    record = Path(data).parent / RECORD
    if not datasets.is_own(data) or not record.exists():
        return None
    found: float = read_json(record)["options"]["share"]
    return found


def differences(there: Mapping[str, Any], data: Dataset) -> str:
    """In what the data are others than those told of "there"; blank if in nothing."""
    now = _told(data)
    differ = [key for key in COMPARED if there.get(key) != now[key]]
    differ = [key for key in differ if key != "hash"] or differ  # which says little beside another
    return ", ".join(
        f"{key.replace('_', ' ')} ({_short(there.get(key))} there, {_short(now[key])} now)" for key in differ
    )


def _told(data: Dataset) -> dict[str, Any]:
    return {"class_names": list(data.classes), **data.describe()}


def _short(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{name} {count}" for name, count in value.items()]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shorten(text, 100, placeholder=" ...")
