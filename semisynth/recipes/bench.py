"""A comparison: rows of methods over label counts and seeds, paired by seed, as one table with its intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semisynth import statistics, weights
from semisynth.clusters import Workers
from semisynth.errors import UserError
from semisynth.recipes import cells, directory, origin, presets
from semisynth.recipes.cells import Cell
from semisynth.recipes.config import GENERATOR, Config, Options, method_parts
from semisynth.statistics import Interval, Paired

Line = Mapping[str, Any]
NOTE = (
    "Mean test accuracy of the last averaged iterate. Differences are in points, paired by seed, with 95 % intervals; "
    "p is that of the paired t test after Holm's correction over the table. The intervals cover the draw of the labels "
    "and training, not the choice of the test images. Seconds are of a run, each on one thread where it ran on a CPU."
)
MARGIN = 0.01  # of "non-inferior": one point
FEWEST = 5  # seeds of a verdict


def bench(
    base: Mapping[str, Any],
    rows: Sequence[str],
    labels: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    workers: Workers = 1,
    tuned: Path | None = None,
    pivot: str | None = None,
    command: str = "",
) -> str:
    """Run what is missing of rows x labels x seeds, and write `results.jsonl` and `table.md`, which is returned.

    base: what all rows share, in the form of `config.json`; rows: names of `presets.row`; tuned: a directory with a
    `best.json` of `tune` for each row, whose method options and lr are taken; pivot: also contrasted with every row.
    If cells fail, the files hold the others, and a `UserError` names them.
    """
    planned = plan(base, list(dict.fromkeys(rows)), labels, seeds, out, tuned)
    cells.check(planned, "test", workers)
    directory.make(out)  # that it cannot be made is told before hours of training
    failures = cells.run(planned, workers, "bench")
    found = results(cell for cell in planned if cell.path not in failures)
    text = table(found, command, pivots=() if pivot is None else (pivot,))
    write(found, text, out)
    cells.require(failures)
    return text


def plan(
    base: Mapping[str, Any],
    rows: Sequence[str],
    labels: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    tuned: Path | None = None,
) -> list[Cell]:
    """The cells, seed by seed, so that rows stay paired when a bench is cut short; `UserError` for an unknown row."""
    generator = base.get("generator")
    shared = {row: _read(dict(base) | _row(row, generator, tuned), generator) for row in rows}
    if Options(**base.get(GENERATOR, {})) != Options() and not any(GENERATOR in content for content in shared.values()):
        raise UserError("--generator-options are of --generator, which none of the methods reads: leave them out.")
    return [
        Cell(
            out / "cells" / row / str(count) / str(seed),
            Config.of({**shared[row], "labels_per_class": count, "seed": seed}, f"row '{row}'"),
        )
        for seed in seeds
        for count in labels
        for row in rows
    ]


def _row(name: str, generator: str | None, tuned: Path | None) -> dict[str, Any]:
    """A row, with the tuned options that it leaves open."""
    row = presets.row(name, generator)
    if tuned is None:
        return row
    best = weights.read_json(tuned / name / "best.json")
    options = best.get("method", {})
    differ = [key for key, value in row["method"].items() if options.get(key) != value]
    if differ or "lr" not in best:
        raise UserError(
            f"{tuned / name / 'best.json'} is not of row '{name}' ({', '.join(differ) or 'lr'}): "
            f"make it with: semisynth tune --method {name} --out {tuned / name}"
        )
    return {**row, "lr": best["lr"], "method": options}


def _read(content: dict[str, Any], generator: str | None) -> dict[str, Any]:
    """Without the source classifier and the options of the generator, where the row reads none: they are of others."""
    unread = set() if "source" in method_parts(content["method"]["name"]) else {"source"}
    if generator is None or content["generator"] != generator:
        unread.add(GENERATOR)
    return {key: value for key, value in content.items() if key not in unread}


def results(finished: Iterable[Cell]) -> list[dict[str, Any]]:
    """A line of `results.jsonl` for each finished cell, sorted."""
    return sorted((_line(cell) for cell in finished), key=_order)


def _line(cell: Cell) -> dict[str, Any]:
    found, setting = cell.result(), cell.config.setting
    return {
        "method": cell.path.parent.parent.name,
        "init": setting.init,
        "labels_per_class": setting.labels_per_class,
        "seed": cell.config.engine.seed,
        "share": origin.share(setting.data),
        "accuracy": found["test"]["accuracy"],
        "validation_accuracy": found.get("validation", {}).get("accuracy"),
        "seconds": round(found["seconds"], 2),
        "steps": setting.steps,
        "commit": found["environment"]["commit"],
        "device": found["environment"]["device"],
    }


def _order(line: Line) -> tuple[Any, ...]:
    names = list(presets.rows())
    name = line["method"]
    position = names.index(name) if name in names else len(names)
    share = line.get("share")
    return line["init"], line["labels_per_class"], -1.0 if share is None else share, position, name, line["seed"]


def write(lines: Sequence[Line], text: str, out: Path) -> None:
    """Write `results.jsonl` and `table.md`."""
    weights.write_text(out / "results.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    weights.write_text(out / "table.md", text)


@dataclass(frozen=True)
class Contrast:
    """A row minus another at the same init, label count and share; p is corrected."""

    paired: Paired
    p: float

    @property
    def verdict(self) -> str:
        """ "higher" or "lower" only where p and both intervals agree."""
        low = min(self.paired.t[0], self.paired.bootstrap[0])
        high = max(self.paired.t[1], self.paired.bootstrap[1])
        if self.paired.n < FEWEST:
            return "too few seeds"
        if self.p < 0.05 and low > 0:
            return "higher"
        return "lower" if self.p < 0.05 and high < 0 else "no difference shown"

    @property
    def non_inferior(self) -> str:
        """Whether the t interval excludes a loss of a point."""
        return "yes" if self.paired.n >= FEWEST and self.paired.t[0] > -MARGIN else "not shown"


PLACE = ("init", "labels per class", "synthetic share")
Key = tuple[str, int, float | None, str]  # PLACE and the row
Groups = Mapping[Key, Mapping[int, Line]]  # the lines of each row by seed
Pair = tuple[Key, Key]


def table(
    lines: Sequence[Line], command: str, references: Sequence[str] = ("supervised",), pivots: Sequence[str] = ()
) -> str:
    """The Markdown table of any merged results.

    Every row minus the first reference stands beside its accuracy; each further reference has a table of its own, and
    so has each pivot, from which the others are taken. Each table is corrected by itself.
    """
    groups = _groups(lines)
    first, *others = references
    parts = ["# Test accuracy", _accuracies(groups, first)]
    for reference in others:
        pairs = {key: (key, (*key[:3], reference)) for key in groups}
        parts += [f"## Each row minus {reference}", _contrast_table(groups, pairs)]
    for pivot in pivots:
        pairs = {key: ((*key[:3], pivot), key) for key in groups}
        parts += [f"## {pivot} minus each row", _contrast_table(groups, pairs)]
    return "\n\n".join([*parts, NOTE, _origin(lines, command)]) + "\n"


def _groups(lines: Iterable[Line]) -> Groups:
    groups: dict[Key, dict[int, Line]] = {}
    for line in sorted(lines, key=_order):
        key = line["init"], line["labels_per_class"], line.get("share"), line["method"]
        groups.setdefault(key, {})[line["seed"]] = line
    return groups


def _contrasts(groups: Groups, pairs: Mapping[Key, Pair]) -> dict[Key, Contrast]:
    """The contrasts of those pairs that have seeds in common, corrected together."""
    found = {}
    for key, (a, b) in pairs.items():
        common = sorted(groups.get(a, {}).keys() & groups.get(b, {}).keys())
        if a != b and common:
            found[key] = statistics.paired(*([groups[k][seed]["accuracy"] for seed in common] for k in (a, b)))
    corrected = statistics.holm([paired.p for paired in found.values()])
    return {key: Contrast(paired, p) for (key, paired), p in zip(found.items(), corrected, strict=True)}


DIFFERENCE = ("t interval", "bootstrap interval", "p (Holm)", "verdict")


def _accuracies(groups: Groups, reference: str) -> str:
    contrasts = _contrasts(groups, {key: (key, (*key[:3], reference)) for key in groups})
    head = (*PLACE, "method", "seeds", "accuracy, %", "t interval", "seconds")
    rows = []
    for key, group in groups.items():
        accuracies = [line["accuracy"] for line in group.values()]
        seconds = f"{statistics.mean([line['seconds'] for line in group.values()]):.1f}"
        percent = f"{100 * statistics.mean(accuracies):.1f}"
        own = [*key, len(group), percent, _interval(statistics.t_interval(accuracies), ".1f"), seconds]
        rows.append([*own, *_difference(contrasts.get(key))])
    return _placed([*head, f"minus {reference}", *DIFFERENCE], rows)


def _contrast_table(groups: Groups, pairs: Mapping[Key, Pair]) -> str:
    found = _contrasts(groups, pairs)
    head = (*PLACE, "row", "seeds", "difference", *DIFFERENCE, "non-inferior within 1 point")
    rows = [[*key, c.paired.n, *_difference(c), c.non_inferior] for key, c in found.items()]
    return _placed(head, rows)


def _placed(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The table, without the share where no pool is mixed."""
    at = PLACE.index("synthetic share")
    if any(row[at] is not None for row in rows):
        return markdown(
            head, [[*row[:at], "–" if row[at] is None else f"{row[at]:.0%}", *row[at + 1 :]] for row in rows]
        )
    return markdown([*head[:at], *head[at + 1 :]], [[*row[:at], *row[at + 1 :]] for row in rows])


def _difference(contrast: Contrast | None) -> list[str]:
    if contrast is None:
        return ["–"] * (1 + len(DIFFERENCE))
    found, p = contrast.paired, contrast.p
    intervals = [_interval(interval, "+.1f") for interval in (found.t, found.bootstrap)]
    return [f"{100 * found.mean:+.1f}", *intervals, "< 0.001" if p < 0.001 else f"{p:.3f}", contrast.verdict]


def _interval(interval: Interval, form: str) -> str:
    return f"[{100 * interval[0]:{form}}, {100 * interval[1]:{form}}]" if math.isfinite(interval[0]) else "one seed"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _origin(lines: Iterable[Line], command: str) -> str:
    """What it takes to repeat the table."""
    lines = list(lines)
    facts = {name: ", ".join(sorted({str(line[name]) for line in lines})) for name in ("steps", "commit", "device")}
    listed = [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join([f"- command: `{command}`", *listed])
