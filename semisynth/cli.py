"""The command line: each command's options are derived from the signatures of what it calls."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from argparse import ArgumentError, HelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semisynth.errors import UserError, choose

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

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
    return 0


def fit(arguments: list[str]) -> None:
    """Train a classifier or a generator into a run directory, or resume it."""
    from semisynth.recipes import single

    parser = _config_parser("fit", arguments)
    parser.add_argument("--out", type=str, required=True, help="the run directory")
    options = _parse(parser, arguments)
    out = Path(options.pop("out"))
    config = single.Config.of(options, "the options")
    done = single.finished(config, out) is not None
    result = single.fit(config, out)
    if os.environ.get("RANK", "0") != "0":  # of torchrun's processes one is enough to tell
        return
    print(f"{out} is finished{' already' if done else ''}.")
    if "test" in result:
        low, high = result["test"]["interval"]
        print(f"test accuracy {result['test']['accuracy']:.3f} [{low:.3f}, {high:.3f}]")


def _config_parser(command: str, arguments: list[str]) -> ArgumentParser:
    """A parser of all that a `Config` has; the method's own options are those of the method that is named."""
    from semisynth.engine import Engine
    from semisynth.recipes import single

    path = _value(arguments, "--config")
    base = _read_config(Path(path)) if path else {}
    name = _value(arguments, "--method") or base.get("method", {}).get("name")
    parser = _parser(command, (fit.__doc__ if command == "fit" else tune.__doc__) or "")
    parser.add_argument("--config", type=str, help="a config.json to start from; options given beside it override it")
    parser.add_argument("--method.name", type=str, help=f"short: --method, one of {', '.join(single.method_names())}")
    parser.add_class_arguments(single.Setting, None)
    parser.add_class_arguments(Engine, None)
    if name is not None:
        parser.add_class_arguments(single.method_class(name), "method", skip=single.method_parts(name))
    elif not {"-h", "--help"} & set(arguments):
        raise UserError(f"--method is missing: give one of {', '.join(single.method_names())}.")
    if base and base["method"]["name"] == name:
        parser.set_defaults(_dotted(base))
    else:
        parser.set_defaults(_dotted({key: value for key, value in base.items() if key != "method"}))
    return parser


def _read_config(path: Path) -> dict[str, Any]:
    from semisynth.recipes import single
    from semisynth.weights import read_json

    content = read_json(path)
    single.Config.of(content, str(path))
    return content


def _parser(command: str, description: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        """Shows options as they are typed, with hyphens."""

        def format_help(self, formatter: HelpFormatter | None = None) -> str:
            return re.sub(r"--[a-z_.]+", lambda name: name[0].replace("_", "-"), super().format_help(formatter))

    return Parser(prog=f"semisynth {command}", description=description, exit_on_error=False, allow_abbrev=False)


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """The options as a plain nested dictionary; a wrong one is a `UserError` with the nearest name."""
    typed = [_underscored(argument) for argument in arguments]
    try:
        found: dict[str, Any] = parser.parse_args(typed).as_dict()
    except ArgumentError as error:
        message = " ".join(str(error).split())
        unknown = re.match(r"unrecognized arguments: (--\S+)", message)
        if unknown:
            names = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
            wrong = unknown[1].split("=")[0].replace("_", "-")
            choose(wrong, [name.replace("_", "-") for name in names], f"option of {parser.prog}:")
        raise UserError(f"{message}. See {parser.prog} --help.") from error
    found.pop("config", None)
    return found


def _underscored(argument: str) -> str:
    """--labels-per-class=2 -> --labels_per_class=2, and --method -> --method.name."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = "--" + name[2:].replace("-", "_")
    return ("--method.name" if name == "--method" else name) + equals + value


def _value(arguments: Sequence[str], name: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(name + "="):
            return argument.partition("=")[2]
    return None


def _dotted(content: dict[str, Any]) -> dict[str, Any]:
    method = {f"method.{key}": value for key, value in content.get("method", {}).items()}
    return {key: value for key, value in content.items() if key != "method"} | method


def evaluate(arguments: list[str]) -> None:
    """Measure the classifier of a run on the test split."""
    from semisynth.engine import resolve
    from semisynth.evaluate import classify
    from semisynth.recipes import single

    parser = _parser("evaluate", evaluate.__doc__ or "")
    parser.add_argument("run", type=str, help="a finished run directory")
    parser.add_argument("--split", type=Literal["test", "validation"], default="test", help="of the run's data set")
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    options = _parse(parser, arguments)
    device = resolve(options["device"])
    _, model, data = single.trained(Path(options["run"]), device)
    measured = classify(model, getattr(data, options["split"]), data.classes, device=device)
    if options["json"]:
        print(json.dumps(measured))
        return
    low, high = measured["interval"]
    print(
        f"{options['split']} accuracy {measured['accuracy']:.3f} [{low:.3f}, {high:.3f}], {measured['images']} images"
    )
    print(f"cross-entropy {measured['loss']:.3f}, calibration error {measured['calibration_error']:.3f}")
    for name, row in measured["per_class"].items():
        print(f"  {name}: recall {row['accuracy']:.3f}, precision {row['precision']:.3f}, {row['images']} images")


def report(arguments: list[str]) -> None:
    """Write one HTML file about one or more runs."""
    from semisynth.report import write

    parser = _parser("report", report.__doc__ or "")
    parser.add_argument("runs", type=str, nargs="+", help="run directories, or directories of them")
    parser.add_argument("--out", type=str, required=True, help="the HTML file")
    options = _parse(parser, arguments)
    write([Path(run) for run in options["runs"]], Path(options["out"]))
    print(f"wrote {options['out']}")


def tune(arguments: list[str]) -> None:
    """Search a method's options with an equal budget, on tuning seeds and the validation split."""
    from semisynth.recipes import cells, single
    from semisynth.recipes import tune as recipe

    given = _as_row(arguments)
    parser = _config_parser("tune", given)
    parser.add_argument("--configurations", type=int, default=16, help="to try; the first is the one given")
    parser.add_argument("--seeds", type=str, default="0-9", help="tuning seeds, as 0-9 or 0,3,7")
    _add_pool(parser, "the directory of the search")
    options = _parse(parser, given)
    if _value(arguments, "--seed") is not None:
        raise UserError("tune takes --seeds, and each configuration runs with all of them: leave --seed out.")
    out, seeds = Path(options.pop("out")), cells.numbers(options.pop("seeds"), "--seeds")
    size, workers = options.pop("configurations"), options.pop("workers")
    config = single.Config.of(options, "the options")
    command = shlex.join(["semisynth", "tune", *arguments])
    found = recipe.tune(config, out, size, seeds, workers, _own_options(given), command)
    best = found["trials"][found["winner"]]
    print(f"{out} is finished: configuration {best['number']} of {size} has the best mean validation accuracy.")
    print(f"validation accuracy {best['accuracy']:.3f}, {', '.join(f'{k} {v}' for k, v in best['options'].items())}")
    print(f"train with it: semisynth fit --config {out / 'best.json'} --out DIR")


def _as_row(arguments: list[str]) -> list[str]:
    """The options with `--method ROW` written out: a row of a comparison keeps what makes it that row."""
    from semisynth.recipes import presets

    name = _value(arguments, "--method")
    if name is None:
        return arguments
    path = _value(arguments, "--config")
    generator = _value(arguments, "--generator") or (_read_config(Path(path)).get("generator") if path else None)
    row = _dotted(presets.row(name, generator or "glyphs"))
    typed = [f"--{key}={'null' if value is None else value}" for key, value in row.items()]
    return [f"--method={row['method.name']}", *arguments, *typed] if name in presets.rows() else [*typed, *arguments]


def _own_options(arguments: Sequence[str]) -> set[str]:
    """Which of a search's options were typed, and so are not searched."""
    typed = {_underscored(argument).partition("=")[0] for argument in arguments}
    return {
        name.removeprefix("--").removeprefix("method.") for name in typed if re.match(r"--(lr$|method\.)", name)
    } - {"name"}


def _add_pool(parser: ArgumentParser, out: str) -> None:
    parser.add_argument("--workers", type=int, default=1, help="fits at a time, each a process on one thread")
    parser.add_argument("--out", type=str, required=True, help=f"{out}; the same command goes on where it stopped")


def bench(arguments: list[str]) -> None:
    """Compare methods over label counts and seeds, paired by seed."""
    from semisynth.engine import Engine
    from semisynth.recipes import bench as recipe
    from semisynth.recipes import cells, presets, single

    rows = ", ".join(presets.rows())
    parser = _parser("bench", bench.__doc__ or "")
    parser.add_argument("--methods", type=str, required=True, help=f"separated by commas: {rows}, or any method's name")
    parser.add_argument("--labels_per_class", type=str, required=True, help="as 1,2,4")
    parser.add_argument("--seeds", type=str, default="100-109", help="as 100-109 or 100,105")
    parser.add_argument("--tuned", type=str, help="a directory that holds, for each method, a directory of tune")
    parser.add_argument("--against", type=str, help="one of the methods, to be contrasted with each other one")
    _add_pool(parser, "the directory of the bench")
    parser.add_class_arguments(single.Setting, None, skip={"labels_per_class", "unlabeled"})
    parser.add_class_arguments(Engine, None, skip={"seed"})
    options = _parse(parser, arguments)
    names, pivot = options.pop("methods").replace(" ", "").split(","), options.pop("against")
    if pivot is not None:
        choose(pivot, names, "method in --against:")
    labels, seeds = (cells.numbers(options.pop(key), f"--{key}") for key in ("labels_per_class", "seeds"))
    out, workers, tuned = Path(options.pop("out")), options.pop("workers"), options.pop("tuned")
    command = shlex.join(["semisynth", "bench", *arguments])
    tuned = Path(tuned) if tuned else None
    print(recipe.bench(options, names, labels, seeds, out, workers, tuned, pivot, command))


def demo(arguments: list[str]) -> None:
    """The main job on real handwritten digits, two labels per class, in minutes."""
    from semisynth.recipes import bench as recipe
    from semisynth.recipes import cells
    from semisynth.report import write

    parser = _parser("demo", demo.__doc__ or "")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=str, default="100-102", help="of the label draws, as 100-102")
    parser.add_argument("--workers", type=int, default=2, help="fits at a time, each a process on one thread")
    parser.add_argument("--out", type=str, default="runs/demo")
    options = _parse(parser, arguments)
    base, out = {"init": "foundation", "steps": options["steps"]}, Path(options["out"])
    seeds = cells.numbers(options["seeds"], "--seeds")
    rows = ("supervised", "naive-fixmatch", "mpssl", "fixmatch-real")
    command = shlex.join(["semisynth", "demo", *arguments])
    print(recipe.bench(base, rows, [2], seeds, out, options["workers"], command=command))
    write([out / "cells"], out / "report.html")
    print(f"The report, with curves and the images that the mapper asks for: {out / 'report.html'}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    command.__name__: command for command in (fit, evaluate, report, tune, bench, demo)
}
