"""The house bench: every row tuned with the same budget at 2 labels per class, then compared on fresh seeds.

Writes benchmarks/results/house/{results.jsonl, tuning.json, table.md}. It may be stopped at any time: the same command
goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from semisynth import weights
from semisynth.errors import UserError
from semisynth.recipes import bench, cells, presets
from semisynth.recipes.config import Config
from semisynth.recipes.tune import Search
from semisynth.statistics import t_interval

ROWS = ("mpssl", "gap-only", "scr-uniform", "naive-fixmatch", "fixmatch-real", "supervised")
COMMAND = "python benchmarks/house.py"
RESULTS = Path(__file__).parent / "results" / "house"
README = Path(__file__).parents[1] / "README.md"
OPENING, CLOSING = "<!-- house -->", "<!-- /house -->"
GRID = {
    ("foundation", 2): "100-119",
    ("none", 2): "100-119",
    ("foundation", 1): "100-109",
    ("foundation", 4): "100-109",
}
# Of each row's search, by init.
CONFIGURATIONS = {"foundation": 16, "none": 8}


def main() -> None:
    options = parse()
    inits = list(CONFIGURATIONS) if options.init == "both" else [options.init]
    if options.stage in ("tune", "all"):
        tune(options, inits)
    if options.stage in ("bench", "all"):
        cells.require(cells.run(planned(options, inits), options.workers, "bench"))
    if options.stage in ("table", "bench", "all"):
        summarize(options)
    if options.json:
        print(json.dumps({"name": "house", "stage": options.stage, "results": str(RESULTS)}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=("tune", "bench", "table", "all"), default="all")
    parser.add_argument("--init", choices=("both", *CONFIGURATIONS), default="both")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tuning-seeds", default="0-1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/house"), help="where the runs are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


def searches(options: argparse.Namespace, inits: list[str]) -> dict[tuple[str, str], Search]:
    """The search of each init and row; what a row fixes is not searched."""
    found = {}
    for init in inits:
        for name in ROWS:
            row = presets.row(name)
            config = Config.of({"steps": options.steps, "labels_per_class": 2, "init": init, **row})
            seeds = tuple(cells.numbers(options.tuning_seeds, "--tuning-seeds"))
            out = options.work / init / "tune" / name
            found[init, name] = Search(
                config, out, CONFIGURATIONS[init], seeds, frozenset(row["method"]) - {"name"}, COMMAND
            )
    return found


def tune(options: argparse.Namespace, inits: list[str]) -> None:
    """All searches through one pool, so that no worker waits; the same configuration number of each row in turn."""
    waiting = [search for search in searches(options, inits).values() if search.finished() is None]
    for search in waiting:
        search.claim()
    planned = [
        cell
        for number in range(max(CONFIGURATIONS.values()))
        for search in waiting
        if number < search.configurations
        for cell in search.of(number)
    ]
    failures = cells.run(planned, options.workers, "tune")
    for search in waiting:
        search.conclude(failures)


def planned(options: argparse.Namespace, inits: list[str]) -> list[cells.Cell]:
    """The cells of the bench, with the options that tuning found."""
    return [
        cell
        for (init, labels), seeds in GRID.items()
        if init in inits
        for cell in bench.plan(
            {"steps": options.steps, "init": init},
            ROWS,
            [labels],
            cells.numbers(seeds, "seeds"),
            options.work / init / "bench",
            options.work / init / "tune",
        )
    ]


def summarize(options: argparse.Namespace) -> None:
    """Write the committed files from the cells that are finished, and say how many are not."""
    inits = list(CONFIGURATIONS)
    cells_of_all = planned(options, inits)
    done = [cell for cell in cells_of_all if (cell.path / "result.json").exists()]
    lines = bench.results(done)
    missing = len(cells_of_all) - len(done)
    budget = ", ".join(f"{count} configurations with init {init}" for init, count in CONFIGURATIONS.items())
    text = bench.table(lines, COMMAND, pivot="mpssl") + (
        f"- tuning: of every row alike, at 2 labels per class, on seeds {options.tuning_seeds} and the validation "
        f"split, {budget}; ranges and winners are in tuning.json\n"
    )
    text += f"- **partial: {missing} of {len(cells_of_all)} runs are missing**\n" if missing else ""
    RESULTS.mkdir(parents=True, exist_ok=True)
    bench.write(lines, text, RESULTS)
    weights.write_json(RESULTS / "tuning.json", {"command": COMMAND, "searches": tuning(options, inits)})
    introduce(lines)
    print(text)


def introduce(lines: list[dict[str, Any]]) -> None:
    """Write the README's short table between its markers."""
    columns = sorted(GRID)
    head = ["method", *(f"{init}, {labels} per class" for init, labels in columns)]
    rows = [[row, *(summary(lines, row, *column) for column in columns)] for row in reversed(ROWS)]
    command = f"Test accuracy in %, mean over seeds and its 95 % interval. Made by `{COMMAND}`."
    before, rest = README.read_text().split(OPENING)
    after = rest.split(CLOSING)[1]
    weights.write_text(README, f"{before}{OPENING}\n{bench.markdown(head, rows)}\n\n{command}\n{CLOSING}{after}")


def summary(lines: list[dict[str, Any]], row: str, init: str, labels: int) -> str:
    """Mean and half the width of its t interval."""
    key = {"method": row, "init": init, "labels_per_class": labels}
    found = [100 * line["accuracy"] for line in lines if key.items() <= line.items()]
    if len(found) < 2:
        return "–"
    low, high = t_interval(found)
    return f"{(low + high) / 2:.1f} ± {(high - low) / 2:.1f}"


def tuning(options: argparse.Namespace, inits: list[str]) -> list[dict[str, Any]]:
    """Budget, ranges and winner of each search."""
    found = []
    for (init, row), search in searches(options, inits).items():
        there = search.finished()
        if there is None:
            raise UserError(f"the search of '{row}' with init '{init}' is not finished: run --stage tune.")
        kept = {name: there[name] for name in ("budget", "ranges", "fixed", "winner")}
        found.append({"row": row, "init": init, **kept, "options": there["trials"][there["winner"]]["options"]})
    return found


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"house: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("house: interrupted; the same command goes on.")
