"""Reading run directories: each is a `Run`; runs on the same data whose configs differ only in the seed, a `Group`."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from semisynth.errors import UserError
from semisynth.evaluate import BINS
from semisynth.statistics import t_interval
from semisynth.weights import read_json


@dataclass(frozen=True)
class Run:
    """One run directory; `result` is None until the run is finished."""

    path: Path
    config: dict[str, Any]
    result: dict[str, Any] | None
    log: list[dict[str, Any]]
    data: str = ""  # the hash of its data, where it tells of them

    @property
    def test(self) -> dict[str, Any]:
        """What the evaluation on the test split found."""
        return cast(dict[str, Any], self.result["test"]) if self.result else {}


@dataclass(frozen=True)
class Group:
    """The runs of one config, a seed each: `runs` are finished, `pending` are not, `repeated` have a seed of `runs`."""

    label: str
    kind: str  # the label without the number of labels: the same method at another number has the same kind
    config: dict[str, Any]
    runs: tuple[Run, ...]
    pending: tuple[Run, ...]
    repeated: tuple[Run, ...]

    @property
    def labels(self) -> int:
        """Labels per class; 0 for all that there are."""
        return self.config.get("labels_per_class") or 0

    @property
    def scored(self) -> list[Run]:
        """The finished runs that have a test accuracy."""
        return [run for run in self.runs if "accuracy" in run.test]

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of each of `scored`."""
        return [run.test["accuracy"] for run in self.scored]

    @property
    def interval(self) -> list[float]:
        """95 % interval of the test accuracy: Student's t over the seeds, or, for one run, Wilson's over the images."""
        if len(self.accuracies) > 1:
            return [min(max(end, 0.0), 1.0) for end in t_interval(self.accuracies)]
        return list(self.scored[0].test["interval"])


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `config` with nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def load(paths: Iterable[Path]) -> list[Group]:
    """Read every run at or below `paths`, grouped; fewest labels first, then in order of reading."""
    runs = [_read(folder) for folder in dict.fromkeys(folder for path in paths for folder in _find(path))]
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[json.dumps([_unseeded(run.config), run.data], sort_keys=True)].append(run)
    members = sorted(groups.values(), key=lambda runs: runs[0].config.get("labels_per_class") or math.inf)
    return [_group(kind, runs) for kind, runs in zip(_kinds([runs[0] for runs in members]), members, strict=True)]


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the flat keys, apart from the seed, at which the configs are not all the same."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config if key != "seed")
    return [key for key in keys if len({json.dumps(config.get(key)) for config in flat}) > 1]


def _group(kind: str, runs: list[Run]) -> Group:
    first: dict[int, Run] = {}
    for run in runs:
        if run.result:
            first.setdefault(run.config["seed"], run)
    config = _unseeded(runs[0].config)
    return Group(
        label=_label(kind, config.get("labels_per_class") or 0),
        kind=kind,
        config=config,
        runs=tuple(first[seed] for seed in sorted(first)),
        pending=tuple(run for run in runs if not run.result),
        repeated=tuple(run for run in runs if run.result and first[run.config["seed"]] is not run),
    )


def _unseeded(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "seed"}


def _label(kind: str, labels: int) -> str:
    method, *rest = kind.split(", ", 1)
    count = f"{labels} label{'' if labels == 1 else 's'} per class" if labels else "all labels"
    return ", ".join([method, count, *rest])


def _kinds(runs: Sequence[Run]) -> list[str]:
    """Name each config by its method and initial weights, and by the options that tell it from others of its name."""
    names = [_name(run.config) for run in runs]
    kinds = list(names)
    for name in dict.fromkeys(names):
        alike = [i for i, its in enumerate(names) if its == name]
        flat = [{**flatten(runs[i].config), "data hash": runs[i].data[:8] or "unknown"} for i in alike]
        for key in differences(flat):
            if key != "labels_per_class":
                for i, value in zip(alike, _told_apart([config.get(key) for config in flat]), strict=True):
                    kinds[i] += f", {key.removeprefix('method.')} {value}"
    return kinds


def _told_apart(values: Sequence[Any]) -> list[str]:
    """Write each value; floats with three digits if no two different ones look alike then."""
    exact = [str(value) for value in values]
    short = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(set(exact)) else exact


def _name(config: Mapping[str, Any]) -> str:
    method, init = config["method"]["name"], config.get("init")
    return method if init in (None, "none") else f"{method}, {init}"


def _find(path: Path) -> list[Path]:
    if (path / "config.json").is_file():
        return [path]
    found = sorted(config.parent for config in path.rglob("config.json"))
    if not found:
        raise UserError(f"no run in '{path}': give the directory of a run (it holds config.json), or one above it.")
    return found


def _read(path: Path) -> Run:
    file = path / "config.json"
    config, result = read_json(file), _result(path / "result.json")
    _need(config, file, "seed", int)
    _need(_need(config, file, "method", dict), file, "name", str)
    return Run(path, config, result, list(_lines(path / "log.jsonl", finished=result is not None)), _data(path, result))


def _data(path: Path, result: Mapping[str, Any] | None) -> str:
    told = (result or {}).get("data") or (read_json(path / "data.json") if (path / "data.json").exists() else {})
    return str(told.get("hash", "")) if isinstance(told, dict) else ""


def _result(file: Path) -> dict[str, Any] | None:
    result = {"test": {}, "environment": {}, **read_json(file)} if file.exists() else {"finished": False}
    if not result.get("finished", True):
        return None
    _need(result, file, "environment", dict)
    _check(_need(result, file, "test", dict), file)
    if "calibration" in result:
        _check_calibration(_need(result, file, "calibration", dict), file)
    return result


def _check(test: dict[str, Any], file: Path) -> None:
    if "accuracy" in test:
        ends = _need(test, file, "interval", list)
        shares = [_need(test, file, "accuracy", (int, float)), *ends]
        if len(ends) != 2 or not all(map(_is_share, shares)):
            raise UserError(f"{file}: 'accuracy' and the two ends of 'interval' must be in [0, 1]: repeat this run.")
    if "confusion" in test:
        confusion, names = _need(test, file, "confusion", list), _need(test, file, "per_class", dict)
        counts = [list(filter(_is_count, row)) for row in confusion if isinstance(row, list)]
        if [len(row) for row in counts] != [len(names)] * len(names) or counts != confusion:
            raise UserError(f"{file}: 'confusion' must have a row and a column per class: repeat this run.")


def _check_calibration(calibration: dict[str, Any], file: Path) -> None:
    """`UserError` unless it has what a report shows: the temperature and the tables of "test", if that was measured."""
    _need(calibration, file, "temperature", (int, float))
    test = _need(calibration, file, "test", dict) if "test" in calibration else {}
    for table in [_need(test, file, when, dict) for when in ("before", "after")] if test else []:
        _need(table, file, "error", (int, float))
        _need(table, file, "loss", (int, float))
        counts, *shares = (_need(table, file, name, list) for name in ("count", "confidence", "accuracy"))
        filled = [_is_count(count) and count > 0 for count in counts]
        whole = len(counts) == BINS and all(map(_is_count, counts))
        if not whole or any([_is_share(share) for share in column] != filled for column in shares):
            raise UserError(f"{file}: 'calibration' must have {BINS} counts and their shares: repeat this run.")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _need(record: dict[str, Any], file: Path, field: str, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(record.get(field), kind):
        problem = "has a wrong value" if field in record else "is missing"
        raise UserError(f"{file}: '{field}' {problem}: repeat this run, or leave it out.")
    return record[field]


def _lines(file: Path, finished: bool) -> Iterator[dict[str, Any]]:
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    lines = text.split("\n")
    last = lines.pop()
    if finished:  # the last line of a run that is still writing may be half there
        lines.append(last)
    for number, line in enumerate(lines, 1):
        if line.strip():
            record = _parse(line, f"{file}, line {number}")
            _need(record, file, "step", int)
            yield record


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: {error.msg}. Mend the line, or repeat this run.") from error
    except (ValueError, RecursionError) as error:  # numbers or nesting without end
        raise UserError(f"{place}: {error}. Mend the line, or repeat this run.") from error
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected a JSON object. Mend the line, or repeat this run.")
    return record
