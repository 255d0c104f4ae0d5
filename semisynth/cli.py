"""The command line: each command's options are derived from the signatures of what it calls."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from semisynth.errors import UserError, choose

USAGE = """usage: semisynth COMMAND [OPTIONS]

Trains image classifiers from a handful of labels and a generative model.

commands:
{commands}

semisynth COMMAND --help lists the options of a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 for a mistake of the user's, told in one sentence."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            lines = [f"  {name:10}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
            print(USAGE.format(commands="\n".join(lines)))
            return 0
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(version("semisynth"))
            return 0
        COMMANDS[choose(arguments[0], COMMANDS, "command")](arguments[1:])
    except UserError as error:
        print(f"semisynth: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("semisynth: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        print(f"semisynth: error: {error.filename or 'output'}: {error.strerror}. Give another place.", file=sys.stderr)
        return 2
    return 0


def fit(arguments: list[str]) -> None:
    """Train a classifier or a generator into a run directory, or resume it."""
    from semisynth import options
    from semisynth.recipes import single
    from semisynth.recipes.config import Config

    parser = options.config_parser("fit", fit.__doc__, arguments)
    parser.add_argument("--out", type=str, required=True, help="the run directory")
    given = options.parse(parser, arguments)
    out = Path(given.pop("out"))
    config = Config.of(given, "the options")
    done = single.finished(config, out) is not None
    result = single.fit(config, out)
    if os.environ.get("RANK", "0") != "0":  # of torchrun's processes one is enough to tell
        return
    print(f"{out} is finished{' already' if done else ''}.")
    if "test" in result:
        low, high = result["test"]["interval"]
        print(f"test accuracy {result['test']['accuracy']:.3f} [{low:.3f}, {high:.3f}]")


def evaluate(arguments: list[str]) -> None:
    """Measure the classifier of a run on the test split."""
    from semisynth import options
    from semisynth.engine import resolve
    from semisynth.evaluate import classify
    from semisynth.recipes import single

    parser = options.new_parser("evaluate", evaluate.__doc__)
    parser.add_argument("run", type=str, help="a finished run directory")
    parser.add_argument("--split", type=Literal["test", "validation"], default="test", help="of the run's data set")
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    given = options.parse(parser, arguments)
    device = resolve(given["device"])
    _, model, data = single.trained(Path(given["run"]), device)
    measured = classify(model, getattr(data, given["split"]), data.classes, device=device)
    if given["json"]:
        print(json.dumps(measured))
        return
    low, high = measured["interval"]
    print(f"{given['split']} accuracy {measured['accuracy']:.3f} [{low:.3f}, {high:.3f}], {measured['images']} images")
    print(f"cross-entropy {measured['loss']:.3f}, calibration error {measured['calibration_error']:.3f}")
    for name, row in measured["per_class"].items():
        recall, precision = (f"{row[key]:.3f}" if row[key] is not None else "none" for key in ("accuracy", "precision"))
        print(f"  {name}: recall {recall}, precision {precision}, {row['images']} images")


def report(arguments: list[str]) -> None:
    """Write one HTML file about one or more runs."""
    from semisynth import options
    from semisynth.report import write

    parser = options.new_parser("report", report.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run directories, or directories of them")
    parser.add_argument("--out", type=str, required=True, help="the HTML file")
    given = options.parse(parser, arguments)
    write([Path(run) for run in given["runs"]], Path(given["out"]))
    print(f"wrote {given['out']}")


def tune(arguments: list[str]) -> None:
    """Search a method's options with an equal budget, on tuning seeds and the validation split."""
    from semisynth import options
    from semisynth.recipes import cells
    from semisynth.recipes import tune as recipe
    from semisynth.recipes.config import Config

    row = options.as_row(arguments)
    parser = options.config_parser("tune", tune.__doc__, row)
    parser.add_argument("--configurations", type=int, default=16, help="to try; the first is the one given")
    parser.add_argument("--seeds", type=str, default="0-9", help="tuning seeds, as 0-9 or 0,3,7")
    options.add_pool(parser, "the directory of the search")
    given = options.parse(parser, row)
    if options.value(arguments, "--seed") is not None:
        raise UserError("tune takes --seeds, and each configuration runs with all of them: leave --seed out.")
    out, seeds = Path(given.pop("out")), cells.numbers(given.pop("seeds"), "--seeds")
    size, workers = given.pop("configurations"), given.pop("workers")
    config = Config.of(given, "the options")
    command = shlex.join(["semisynth", "tune", *arguments])
    found = recipe.tune(config, out, size, seeds, workers, options.own_options(row), command)
    best = found["trials"][found["winner"]]
    print(f"{out} is finished: configuration {best['number']} of {size} has the best mean validation accuracy.")
    print(f"validation accuracy {best['accuracy']:.3f}, {', '.join(f'{k} {v}' for k, v in best['options'].items())}")
    print(f"train with it: semisynth fit --config {out / 'best.json'} --out DIR")


def bench(arguments: list[str]) -> None:
    """Compare methods over label counts and seeds, paired by seed."""
    from semisynth import options
    from semisynth.engine import Engine
    from semisynth.recipes import bench as recipe
    from semisynth.recipes import cells, presets
    from semisynth.recipes.config import Setting

    rows = ", ".join(presets.rows())
    parser = options.new_parser("bench", bench.__doc__)
    parser.add_argument("--methods", type=str, required=True, help=f"separated by commas: {rows}, or any method's name")
    parser.add_argument("--labels_per_class", type=str, required=True, help="as 1,2,4")
    parser.add_argument("--seeds", type=str, default="100-109", help="as 100-109 or 100,105")
    parser.add_argument("--tuned", type=str, help="a directory that holds, for each method, a directory of tune")
    parser.add_argument("--against", type=str, help="one of the methods, to be contrasted with each other one")
    options.add_pool(parser, "the directory of the bench")
    parser.add_class_arguments(Setting, None, skip={"labels_per_class", "unlabeled"})
    parser.add_class_arguments(Engine, None, skip={"seed"})
    given = options.parse(parser, arguments)
    names, pivot = given.pop("methods").replace(" ", "").split(","), given.pop("against")
    if pivot is not None:
        choose(pivot, names, "method in --against:")
    labels, seeds = (cells.numbers(given.pop(key), f"--{key}") for key in ("labels_per_class", "seeds"))
    out, workers, tuned = Path(given.pop("out")), given.pop("workers"), given.pop("tuned")
    command = shlex.join(["semisynth", "bench", *arguments])
    tuned = Path(tuned) if tuned else None
    print(recipe.bench(given, names, labels, seeds, out, workers, tuned, pivot, command))


def demo(arguments: list[str]) -> None:
    """The main job on real handwritten digits, two labels per class, in minutes."""
    from semisynth import options
    from semisynth.recipes import bench as recipe
    from semisynth.recipes import cells
    from semisynth.report import write
    from semisynth.weights import SHIPPED

    parser = options.new_parser("demo", demo.__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=str, default="100-102", help="of the label draws, as 100-102")
    parser.add_argument("--workers", type=int, default=2, help="fits at a time, each a process on one thread")
    parser.add_argument("--out", type=str, default="runs/demo")
    given = options.parse(parser, arguments)
    base, out = {"init": "foundation", "steps": given["steps"]}, Path(given["out"])
    seeds = cells.numbers(given["seeds"], "--seeds")
    rows = ("supervised", "naive-fixmatch", "mpssl", "fixmatch-real")
    command = shlex.join(["semisynth", "demo", *arguments])
    # The options that the committed comparison found by tuning, on other seeds than these.
    tuned = SHIPPED / "tuned-digits"
    print(recipe.bench(base, rows, [2], seeds, out, given["workers"], tuned, command=command))
    write([out / "cells"], out / "report.html")
    print(f"The report, with curves and the images that the mapper asks for: {out / 'report.html'}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    command.__name__: command for command in (fit, evaluate, report, tune, bench, demo)
}
