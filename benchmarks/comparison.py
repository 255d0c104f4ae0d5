"""What the comparisons share: rows tuned alike, run on fresh seeds, written as results, table and the README's figures.

Stages: tune, bench, table (from what is finished), all. Each may be stopped at any time: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from semisynth import weights
from semisynth.errors import UserError
from semisynth.recipes import bench, cells, presets
from semisynth.recipes.cells import Cell
from semisynth.recipes.config import Config
from semisynth.recipes.tune import Search
from semisynth.statistics import paired, t_interval

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
STEPS = 300


@dataclass(frozen=True)
class Row:
    """A row that is not tuned by itself: it takes the tuned options of `like`, and these `steps` times as many."""

    like: str
    steps: float = 1.0


class Column(NamedTuple):
    """Where rows are compared; share: of synthetic images in the unlabeled pool, where that is asked about."""

    init: str
    labels: int
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.init}, {self.labels} per class" + ("" if self.share is None else f", {self.share:.0%} synthetic")


@dataclass(frozen=True)
class Comparison:
    """Which rows are compared where.

    name: of the results; grid: by (init, labels per class), and perhaps the share, the seeds and the rows;
    configurations: of each search, by init; borrowed: rows that take another one's tuned options; pivots: each is
    contrasted with every row; reference: what every row is compared with; script: if it has another name.
    """

    name: str
    grid: Mapping[tuple[str, int] | Column, tuple[str, Sequence[str]]]
    configurations: Mapping[str, int]
    pivots: Sequence[str]
    borrowed: Mapping[str, Row] = field(default_factory=dict)
    tuning_seeds: str = "0-1"
    tuning_labels: int = 2
    reference: str = "supervised"
    script: str = ""

    @property
    def command(self) -> str:
        """What makes its results."""
        return f"python benchmarks/{self.script or self.name}.py"

    @property
    def columns(self) -> list[Column]:
        """Where rows are compared, sorted."""
        return sorted(Column(*key) for key in self.grid)

    def prepare(self, work: Path) -> None:
        """Make what the fits read, if anything is to be made."""

    def conclude(self, work: Path) -> None:
        """Write down what else is known of the finished fits, beside the results."""

    @property
    def results(self) -> Path:
        """Where they are committed."""
        return HERE / "results" / self.name

    def tuned(self, init: str) -> list[str]:
        """The rows that are searched with this init."""
        rows = [row for (start, *_), (_, names) in self.grid.items() if start == init for row in names]
        return list(dict.fromkeys(self.borrowed[row].like if row in self.borrowed else row for row in rows))

    def search(self, init: str, name: str, work: Path) -> Search:
        """The search of a row; what the row fixes is not searched."""
        row = presets.row(name)
        config = Config.of({"steps": STEPS, "labels_per_class": self.tuning_labels, "init": init, **row})
        seeds = tuple(cells.numbers(self.tuning_seeds, "tuning seeds"))
        fixed = frozenset(row["method"]) - {"name"}
        return Search(config, work / init / "tune" / name, self.configurations[init], seeds, fixed, self.command)

    def searches(self, work: Path) -> dict[tuple[str, str], Search]:
        """All of them, by init and row."""
        inits = dict.fromkeys(init for init, *_ in self.grid)
        return {(init, name): self.search(init, name, work) for init in inits for name in self.tuned(init)}

    def cells(self, work: Path) -> list[Cell]:
        """The cells of the bench, with the options that tuning found; seed by seed, so that rows stay paired."""
        planned = [
            self.cell(work, Column(*key), row, seed)
            for key, (seeds, rows) in self.grid.items()
            for seed in cells.numbers(seeds, "seeds")
            for row in rows
        ]
        return sorted(planned, key=lambda cell: cell.config.engine.seed)

    def cell(self, work: Path, column: Column, name: str, seed: int) -> Cell:
        """One fit of a row."""
        row = self.borrowed.get(name, Row(name))
        named = presets.row(name if name in presets.rows() else row.like)
        best = weights.read_json(work / column.init / "tune" / row.like / "best.json")
        content = {"init": column.init, "lr": best["lr"], "labels_per_class": column.labels, "seed": seed}
        content |= {**named, "method": {**best["method"], **named["method"]}, "steps": round(STEPS * row.steps)}
        folder = work / column.init / "bench" / ("cells" if column.share is None else f"share-{column.share:g}")
        return Cell(folder / name / str(column.labels) / str(seed), Config.of(content, f"row '{name}'"))


Finish = Callable[[list[dict[str, Any]], str], None]


def main(comparison: Comparison, finish: Finish = lambda lines, note: None) -> None:
    """Run the stages asked for on the command line; `finish` writes more from the lines of the results, and a note."""
    try:
        options = _parse(comparison)
        if options.stage != "table":
            comparison.prepare(options.work)
        if options.stage in ("tune", "all"):
            _tune(comparison, options)
        failures: Mapping[Path, Exception] = {}
        if options.stage in ("bench", "all"):
            failures = cells.run(comparison.cells(options.work), options.workers, "bench")
        if options.stage in ("table", "bench", "all"):
            summary = _summarize(comparison, options.work)
            comparison.conclude(options.work)
            finish(*summary)
        cells.require(failures)  # what is finished is written first
        if options.json:
            print(json.dumps({"name": comparison.name, "stage": options.stage, "results": str(comparison.results)}))
    except UserError as error:
        print(f"{comparison.name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(f"{comparison.name}: interrupted; the same command goes on.")


def _parse(comparison: Comparison) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"The {comparison.name} comparison. {__doc__}")
    parser.add_argument("--stage", choices=("tune", "bench", "table", "all"), default="all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs") / comparison.name, help="where the runs are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


def _tune(comparison: Comparison, options: argparse.Namespace) -> None:
    """All searches through one pool, so that no worker waits; the same configuration number of each row in turn."""
    waiting = [search for search in comparison.searches(options.work).values() if search.finished() is None]
    for search in waiting:
        search.claim()
    planned = [
        cell
        for number in range(max(comparison.configurations.values()))
        for search in waiting
        if number < search.configurations
        for cell in search.of(number)
    ]
    failures = cells.run(planned, options.workers, "tune")
    for search in waiting:
        search.conclude(failures)


def _summarize(comparison: Comparison, work: Path) -> tuple[list[dict[str, Any]], str]:
    """Write the committed files from the cells that are finished; returns their lines, and a note if some are not."""
    planned = comparison.cells(work)
    lines = bench.results(cell for cell in planned if (cell.path / "result.json").exists())
    missing = len(planned) - len(lines)
    budget = ", ".join(f"{count} configurations with init {init}" for init, count in comparison.configurations.items())
    text = bench.table(lines, comparison.command, (comparison.reference,), comparison.pivots) + (
        f"- tuning: of every row alike, at {comparison.tuning_labels} labels per class, on seeds "
        f"{comparison.tuning_seeds} and the validation split, {budget}; ranges and winners are in tuning.json\n"
    )
    text += "".join(f"- {name}: the options tuned for {row.like}\n" for name, row in comparison.borrowed.items())
    note = f"**Partial: {missing} of {len(planned)} runs are missing.**" if missing else ""
    text += f"- {note}\n" if note else ""
    comparison.results.mkdir(parents=True, exist_ok=True)
    bench.write(lines, text, comparison.results)
    searches = {"command": comparison.command, "searches": _tuning(comparison, work)}
    weights.write_json(comparison.results / "tuning.json", searches)
    print(text)
    return lines, note


def _tuning(comparison: Comparison, work: Path) -> list[dict[str, Any]]:
    """Budget, ranges and winner of each search."""
    found = []
    for (init, row), search in comparison.searches(work).items():
        there = search.finished()
        if there is None:
            raise UserError(f"the search of '{row}' with init '{init}' is not finished: run --stage tune.")
        kept = {name: there[name] for name in ("budget", "ranges", "fixed", "winner")}
        found.append({"row": row, "init": init, **kept, "options": there["trials"][there["winner"]]["options"]})
    return found


def figures(lines: Sequence[Mapping[str, Any]], rows: Sequence[str], columns: Sequence[tuple[Any, ...]]) -> str:
    """A short table of these rows: mean accuracy and half the width of its t interval."""
    head = ["method", *(str(Column(*column)) for column in columns)]
    return bench.markdown(head, [[row, *(_summary(lines, row, Column(*column)) for column in columns)] for row in rows])


def _summary(lines: Sequence[Mapping[str, Any]], row: str, column: Column) -> str:
    found = [100 * accuracy for accuracy in by_seed(lines, row, column).values()]
    if len(found) < 2:
        return "–"
    low, high = t_interval(found)
    return f"{(low + high) / 2:.1f} ± {(high - low) / 2:.1f}"


def by_seed(lines: Sequence[Mapping[str, Any]], row: str, column: Column) -> dict[int, float]:
    """The accuracies of a row there."""
    wanted = (row, *column)
    names = ("method", "init", "labels_per_class", "share")
    return {line["seed"]: line["accuracy"] for line in lines if tuple(line.get(name) for name in names) == wanted}


def contrast(
    lines: Sequence[Mapping[str, Any]], a: str, b: str, column: tuple[Any, ...], other: tuple[Any, ...] | None = None
) -> str:
    """Row a minus row b, which may be elsewhere, in points, paired by seed: mean and t interval, uncorrected."""
    one = by_seed(lines, a, Column(*column))
    two = by_seed(lines, b, Column(*(other or column)))
    common = sorted(one.keys() & two.keys())
    if len(common) < 2:
        return "–"
    found = paired([one[seed] for seed in common], [two[seed] for seed in common])
    low, high = (100 * bound for bound in found.t)
    return f"{100 * found.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def between(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers <!-- name --> and <!-- /name --> in a file."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = path.read_text().partition(first)
    _, closed, after = rest.partition(last)
    if not (opened and closed):
        raise UserError(f"{path} lacks the markers {first} and {last}: put them where the text is to stand.")
    weights.write_text(path, f"{before}{first}\n{text}\n{last}{after}")
