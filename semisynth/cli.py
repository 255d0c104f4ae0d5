"""The command line: each command's options are derived from the signatures of what it calls."""

from __future__ import annotations

import json
import re
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

    return Parser(prog=f"semisynth {command}", description=description, exit_on_error=False, default_env=False)


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


def bench(arguments: list[str]) -> None:
    """Compare methods over label counts and seeds, paired by seed."""


def demo(arguments: list[str]) -> None:
    """The main job on handwritten digits, two labels per class, in minutes."""


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    command.__name__: command for command in (fit, evaluate, report, tune, bench, demo)
}
