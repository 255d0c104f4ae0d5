"""FixMatch and FreeMatch on CIFAR-10 with a WRN-28-2: speed, use of the device, accuracy over steps and minutes.

--data is a folder of CIFAR-10's images by split and class, train/<class>/* and test/<class>/*, in any format that
Pillow reads. Its official page, https://www.cs.toronto.edu/~kriz/cifar.html, has them as arrays, each with its label,
to be written out as PNG: what was written as JPEG is another data set, whose error rates compare only with one another.

Every run is an ordinary fit in a directory of its own, so that the same command goes on where it was stopped. Its
options are the papers' (Sohn et al. 2020, arXiv 2001.07685; Wang et al. 2023, arXiv 2205.07246), but for these: the
steps are as many as asked for, where the papers have 2^20, and the schedule ends with them; a tenth of the training
images are set aside for validation, and so are in no pool; all weights decay; BatchNorm has torch's momentum, and its
running statistics are those of the passes with gradient, over labeled and strong views.

- steps a second: the median over the blocks between two lines of the log, without those that hold the start, an
  evaluation or a checkpoint;
- FLOP of a step: torch's count of its products, with 2 for a multiply-add: the network's forward pass on weak views,
  forward and backward pass on labeled and strong views; views, norms and optimiser count nothing;
- share of the peak: these FLOP a second over those of the quickest bf16 matrix product that was timed after the run.

Accuracy over steps is that of the averaged weights on the validation split; the test split is measured once, at the
end.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from utilization import ACCURACY, flop, peak, rate

from semisynth import environment, weights
from semisynth.data import datasets
from semisynth.data.datasets import Dataset, Reading
from semisynth.engine import resolve
from semisynth.errors import UserError
from semisynth.recipes import bench, cells, directory, presets, single
from semisynth.recipes.cells import Cell
from semisynth.recipes.config import Config
from semisynth.recipes.materials import Materials

Line = Mapping[str, Any]

RESULTS = Path(__file__).parent / "results" / "cifar"
READING = Reading(size=32, channels="rgb", mirror="yes", holdout=0.1)
ENGINE = {"lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "ema": 0.999}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "fixmatch": {"threshold": 0.95, "weight": 1.0, "view": "weak"},
    "freematch": {"decay": 0.999, "weight": 1.0, "fairness": 0.001, "view": "weak"},  # as published for CIFAR-10
}
FEWEST, EVALUATIONS, BLOCKS = 10, 25, 5  # steps of a run, evaluations of a long one, and lines of the log for each
TRIAL, TRIAL_BLOCK = 12, 2  # steps by which --minutes is turned into steps, and of a line of their log
TENTHS = range(10, 101, 10)  # percent of the steps for which the table has an accuracy


def main() -> None:
    parser = options()
    given = parser.parse_args()
    told = command(parser, given)
    try:
        lines = run(given, told)
    except UserError as error:
        print(f"cifar: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("cifar: interrupted; the same command goes on.")
    if given.json:
        about = {"environment": environment.describe(resolve(given.device)), "command": told}
        print(json.dumps({"name": "cifar", "results": lines, **about}))


def options() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of train/<class>/* and test/<class>/*")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--labels", nargs="+", type=int, default=[40, 250], help="labeled images in all")
    parser.add_argument("--seeds", default="100", help="of the labels' draw and all else, such as 100-102")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=20_000, help="of each run")
    length.add_argument("--minutes", type=float, help="as many steps instead as a trial says that these hold")
    parser.add_argument("--batch", type=int, default=64, help="labeled images of a step")
    parser.add_argument("--unlabeled-batch", type=int, default=7 * 64, help="unlabeled images of a step")
    parser.add_argument("--model", default="wrn-28-2-bn", help="with BatchNorm, as in the papers")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true", help="networks through torch.compile")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/cifar"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results.jsonl and table.md are written")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def command(parser: argparse.ArgumentParser, given: argparse.Namespace) -> str:
    """What makes these results anywhere: without the places of one machine."""
    parts = ["python benchmarks/cifar.py --data FOLDER"]
    for name, value in vars(given).items():
        if name not in ("data", "work", "out", "json") and value != parser.get_default(name):
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                parts.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                parts += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(parts)


def run(given: argparse.Namespace, told: str) -> list[Line]:
    """Every run that is not finished, seed by seed; the files hold all that are, after each."""
    data = datasets.load(str(given.data), READING)
    check(given, data)
    directory.make(given.out)
    lines: list[Line] = []
    failures: dict[Path, Exception] = {}
    for seed, labels, method in product(cells.numbers(given.seeds, "--seeds"), given.labels, given.methods):
        path = given.work / method / str(labels) / str(seed)
        try:
            lines.append(finish(Cell(path, sized(given, data, path, method, labels, seed)), data))
        except UserError as error:
            failures[path] = error
        else:
            bench.write(lines, table(lines, told), given.out)
    if lines:
        print(table(lines, told))
    cells.require(failures)
    return lines


def check(given: argparse.Namespace, data: Dataset) -> None:
    """`UserError` for what no run could be made of."""
    if given.minutes is None and given.steps < FEWEST:
        raise UserError(f"--steps is {given.steps}: give at least {FEWEST}, of which the speed can be told.")
    if given.minutes is not None and not 0 < given.minutes < math.inf:
        raise UserError(f"--minutes is {given.minutes}: give more than 0.")
    for labels in given.labels:
        if labels < 1 or labels % len(data.classes):
            raise UserError(f"--labels {labels}: give a multiple of {len(data.classes)}, the number of classes.")
    if not len(data.test):
        raise UserError(f"{given.data} has no images for test: add test/<class>/*.")


# ---- what a run is ---------------------------------------------------------------------------------------------------


def configured(given: argparse.Namespace, classes: int, method: str, labels: int, seed: int, steps: int) -> Config:
    """The papers' options with so many steps."""
    every = max(BLOCKS, steps // EVALUATIONS)
    row = presets.row(method)
    content = {name: getattr(given, name) for name in ("batch", "unlabeled_batch", "model", "precision", "device")}
    content |= {"data": str(given.data), "channels_last": given.channels_last, "compile": given.compile}
    content |= {"labels_per_class": labels // classes, "seed": seed, "steps": steps, **vars(READING), **ENGINE, **row}
    content |= {"log_every": every // BLOCKS, "evaluate_every": every, "checkpoint_every": every}
    return Config.of({**content, "method": {**row["method"], **METHODS[method]}}, f"row '{method}'")


def sized(given: argparse.Namespace, data: Dataset, path: Path, method: str, labels: int, seed: int) -> Config:
    """A run with as many steps as asked for; one that was begun for so many minutes keeps its steps."""
    of = partial(configured, given, len(data.classes), method, labels, seed)
    if given.minutes is None:
        return of(given.steps)
    if (path / "config.json").exists():
        return of(weights.read_json(path / "config.json")["steps"])
    return of(max(FEWEST, round(60 * given.minutes * pace(of(TRIAL), data))))


def pace(config: Config, data: Dataset) -> float:
    """Steps a second of a short trial."""
    materials = Materials(config, data)
    engine = replace(config.engine, log_every=TRIAL_BLOCK, evaluate_every=0, checkpoint_every=0)
    with tempfile.TemporaryDirectory() as out:
        engine.fit(materials.method, materials.stream, TRIAL, Path(out))
        return rate(logged(Path(out)))


def finish(cell: Cell, data: Dataset) -> Line:
    """A line of the results, from a run that is made or ended first unless it is finished."""
    single.fit(cell.config, cell.path, name=f"{cell.path.parent.name} labels, seed {cell.path.name},", data=data)
    file = cell.path / "speed.json"
    if not file.exists():
        materials, setting = Materials(cell.config, data), cell.config.setting
        step = flop(materials.method, data.shape, setting.batch, setting.unlabeled_batch)
        weights.write_json(file, {"flop_per_step": step, "peak_flop_per_second": peak(materials.device)})
    return line(cell)


def logged(run: Path) -> list[Line]:
    """The lines of a run's log."""
    return [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]


def line(cell: Cell) -> Line:
    """What a finished run's directory tells."""
    (own,), log, result = bench.results([cell]), logged(cell.path), weights.read_json(cell.path / "result.json")
    speed, setting, engine = weights.read_json(cell.path / "speed.json"), cell.config.setting, cell.config.engine
    steps_per_second = rate(log)
    achieved = speed["flop_per_step"] * steps_per_second
    return {
        **own,
        "labels": setting.labels_per_class * result["classes"],
        "model": setting.model,
        "batch": [setting.batch, setting.unlabeled_batch],
        "precision": engine.precision,
        "channels_last": engine.channels_last,
        "compile": engine.compile,
        "steps_per_second": round(steps_per_second, 4),
        **speed,
        "flop_per_second": round(achieved),
        "utilization": round(achieved / speed["peak_flop_per_second"], 4),
        "curve": [[at["step"], at["seconds"], at[ACCURACY]] for at in log if ACCURACY in at],
        "images": result["data"]["images"],
        "data": result["data"]["hash"],
        "torch": result["environment"]["torch"],
        "test_interval": result["test"]["interval"],
    }


# ---- what is written -------------------------------------------------------------------------------------------------


def table(lines: Sequence[Line], told: str) -> str:
    """Speed and accuracy of every run, and how its accuracy rose."""
    head = ("method", "labels", "seed", "steps", "minutes", "steps/s", "TFLOP a step", "TFLOP/s", "bf16 peak, TFLOP/s")
    rows = [
        [
            *(at[name] for name in ("method", "labels", "seed", "steps")),
            f"{at['seconds'] / 60:.1f}",
            f"{at['steps_per_second']:.3g}",
            *(f"{at[name] / 1e12:.3g}" for name in ("flop_per_step", "flop_per_second", "peak_flop_per_second")),
            f"{100 * at['utilization']:.1f}",
            f"{100 * at['validation_accuracy']:.2f}",
            f"{100 * at['accuracy']:.2f}",
            "[{:.2f}, {:.2f}]".format(*(100 * bound for bound in at["test_interval"])),
        ]
        for at in lines
    ]
    first = bench.markdown([*head, "share of it, %", "validation, %", "test, %", "interval"], rows)
    curves = [[at["method"], at["labels"], at["seed"], *(reached(at, share) for share in TENTHS)] for at in lines]
    second = bench.markdown(["method", "labels", "seed", *(f"{share} %" for share in TENTHS)], curves)
    parts = ["# CIFAR-10", first, NOTE, "## Over steps and minutes", second, RISE, origin(lines, told)]
    return "\n\n".join(parts) + "\n"


NOTE = (
    "Accuracy of the last averaged iterate; the interval is Wilson's, 95 %, over the test images alone. Minutes are of "
    "the whole training, steps/s without its start, evaluations and checkpoints. A TFLOP a step counts the products of "
    "the forward pass on weak views, and of forward and backward pass on labeled and strong views."
)
RISE = (
    "Accuracy in % of the averaged weights on the validation images, and the minutes until then, evaluations included, "
    "at the last evaluation within that share of the steps. It selects nothing."
)


def reached(at: Line, share: int) -> str:
    """The accuracy at the last evaluation within this percentage of the steps."""
    before = [(seconds, accuracy) for step, seconds, accuracy in at["curve"] if step <= at["steps"] * share / 100]
    return f"{100 * before[-1][1]:.1f} ({before[-1][0] / 60:.1f} min)" if before else "–"


def origin(lines: Sequence[Line], told: str) -> str:
    """What it takes to repeat the table."""
    facts = ("model", "batch", "precision", "channels_last", "compile", "images", "data", "torch", "commit", "device")
    listed = {name: ", ".join(sorted({str(at[name]) for at in lines})) for name in facts}
    return "\n".join([f"- command: `{told}`", *(f"- {name}: {value}" for name, value in listed.items())])


if __name__ == "__main__":
    main()
