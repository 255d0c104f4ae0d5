"""Options of the commands, derived from signatures and docstrings, and told of in the user's own words."""

from __future__ import annotations

import re
from argparse import ArgumentError, HelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from semisynth.clusters import LOCAL, Ray, Workers
from semisynth.engine import Engine
from semisynth.errors import UserError, choose
from semisynth.recipes import config, presets
from semisynth.recipes.config import Config
from semisynth.weights import read_json


class Parser(ArgumentParser):
    """Shows options as they are typed, with hyphens."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help text."""
        return re.sub(r"--[a-z_.]+", lambda name: name[0].replace("_", "-"), super().format_help(formatter))


def new_parser(command: str, description: str | None) -> ArgumentParser:
    """A parser without options."""
    return Parser(prog=f"semisynth {command}", description=description, exit_on_error=False, allow_abbrev=False)


def config_parser(command: str, description: str | None, arguments: Sequence[str]) -> ArgumentParser:
    """A parser of all that a `Config` has; the method's own options are those of the method that is named."""
    path = value(arguments, "--config")
    base = _read_config(Path(path)) if path else {}
    name = value(arguments, "--method.name") or base.get("method", {}).get("name")
    parser = new_parser(command, description)
    parser.add_argument("--config", type=str, help="a config.json to start from; options given beside it override it")
    parser.add_argument("--method.name", type=str, help=f"short: --method, one of {', '.join(config.method_names())}")
    parser.add_class_arguments(config.Setting, None)
    parser.add_class_arguments(config.Reading, None)
    parser.add_class_arguments(config.Options, config.GENERATOR)
    parser.add_class_arguments(Engine, None)
    if name is not None:
        parser.add_class_arguments(config.method_class(name), "method", skip=config.method_parts(name))
    elif not {"-h", "--help"} & set(arguments):
        raise UserError(f"--method is missing: give one of {', '.join(config.method_names())}.")
    if base and base["method"]["name"] == name:
        parser.set_defaults(_dotted(base))
    else:
        parser.set_defaults(_dotted({key: value for key, value in base.items() if key != "method"}))
    return parser


def _read_config(path: Path) -> dict[str, Any]:
    content = read_json(path)
    Config.of(content, str(path))
    return config.today(content)


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
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
    name, equals, given = argument.partition("=")
    name = "--" + name[2:].replace("-", "_")
    return ("--method.name" if name == "--method" else name) + equals + given


def value(arguments: Sequence[str], name: str) -> str | None:
    """What an option was given, before any parser knows it."""
    for position, argument in enumerate(arguments):
        option, equals, given = _underscored(argument).partition("=")
        if option == name:
            return given if equals else next(iter(arguments[position + 1 :]), None)
    return None


def _dotted(content: dict[str, Any]) -> dict[str, Any]:
    groups = [name for name in ("method", config.GENERATOR) if name in content]
    inside = {f"{group}.{key}": value for group in groups for key, value in content[group].items()}
    return {key: value for key, value in content.items() if key not in groups} | inside


def as_row(arguments: Sequence[str]) -> Sequence[str]:
    """The options with `--method ROW` written out: a row of a comparison keeps what makes it that row."""
    name = value(arguments, "--method.name")
    if name is None:
        return arguments
    path = value(arguments, "--config")
    generator = value(arguments, "--generator") or (_read_config(Path(path)).get("generator") if path else None)
    row = _dotted(presets.row(name, generator))
    typed = [f"--{key}={'null' if value is None else value}" for key, value in row.items()]
    return [f"--method={row['method.name']}", *arguments, *typed] if name in presets.rows() else [*typed, *arguments]


def own_options(arguments: Sequence[str]) -> set[str]:
    """Which of a search's options were typed, and so are not searched."""
    typed = {_underscored(argument).partition("=")[0] for argument in arguments}
    return {
        name.removeprefix("--").removeprefix("method.") for name in typed if re.match(r"--(lr$|method\.)", name)
    } - {"name"}


def add_pool(parser: ArgumentParser, out: str, what: str = "fits") -> None:
    """The options of what is made by many workers."""
    parser.add_argument("--workers", type=int, default=1, help=f"{what} at a time, each a process on one thread")
    told = (
        f"a Ray cluster makes the {what}: that at this address, whose machines have semisynth and share this file "
        "system; without an address a local one of so many --workers"
    )
    parser.add_argument("--ray", type=str, nargs="?", const=LOCAL, metavar="ADDRESS", help=told)
    parser.add_argument("--out", type=str, required=True, help=f"{out}; the same command goes on where it stopped")


def pool(given: dict[str, Any]) -> Workers:
    """The workers that the options ask for, which are taken out."""
    count, address = given.pop("workers"), given.pop("ray")
    return count if address is None else Ray(address, count)
