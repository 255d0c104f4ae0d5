"""Random search over a method's options, with the same budget for every method.

Scores come from the validation split and the tuning seeds alone; no figure of the test split is read here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from semisynth import noise, weights
from semisynth.clusters import Workers
from semisynth.errors import Diverged, UserError
from semisynth.recipes import cells, directory
from semisynth.recipes.cells import Cell
from semisynth.recipes.config import Config, method_class, today
from semisynth.statistics import mean

SHARED: Mapping[str, Sequence[Any]] = {"lr": (0.01, 0.3)}


def tune(
    config: Config,
    out: Path,
    configurations: int = 16,
    seeds: Sequence[int] = range(10),
    workers: Workers = 1,
    fixed: Collection[str] = (),
    command: str = "",
) -> dict[str, Any]:
    """Search into `out`, or go on where it stopped; returns `tune.json`.

    config: the first configuration, as it is; fixed: options that keep their value in all of them. `UserError` when
    `out` holds a search of another configuration or budget.
    """
    search = Search(config, out, configurations, tuple(seeds), frozenset(fixed), command)
    if (found := search.finished()) is not None:
        return found
    cells.check(search.of(0), "validation", workers)
    search.claim()
    return search.conclude(cells.run(search.cells(), workers, f"tune {config.method}"))


@dataclass(frozen=True)
class Search:
    """A search before, while and after its cells run; several may share one pool of workers."""

    config: Config
    out: Path
    configurations: int
    seeds: tuple[int, ...]
    fixed: frozenset[str] = frozenset()
    command: str = ""

    @property
    def ranges(self) -> dict[str, Sequence[Any]]:
        """What is searched: pairs (low, high) are log-uniform, lists are choices."""
        ranges = {**SHARED, **method_class(self.config.method).ranges}
        return {name: values for name, values in ranges.items() if name not in self.fixed}

    def cells(self) -> list[Cell]:
        """Configuration by configuration, so that a search that was cut short has run a smaller budget in full."""
        return [cell for number in range(self.configurations) for cell in self.of(number)]

    def of(self, number: int) -> list[Cell]:
        """The cells of one configuration."""
        folder = self.out / "cells" / f"{number:02}"
        return [Cell(folder / str(seed), self.at(number, seed)) for seed in self.seeds]

    def at(self, number: int, seed: int) -> Config:
        """One configuration with one seed."""
        options = self.options(number)
        engine = replace(self.config.engine, seed=seed, **{k: v for k, v in options.items() if k in SHARED})
        own = {name: value for name, value in options.items() if name not in SHARED}
        return replace(self.config, engine=engine, options={**self.config.options, **own})

    def options(self, number: int) -> dict[str, Any]:
        """The searched options of a configuration; number 0 is the one given."""
        given = self.config.flat() | dict(self.config.options)
        if number == 0:
            return {name: given[name] for name in self.ranges}
        return {name: draw(self.config.method, number, name, values) for name, values in self.ranges.items()}

    def finished(self) -> dict[str, Any] | None:
        """The content of `tune.json` once there is a winner; `UserError` if another search lives in `out`."""
        path = self.out / "tune.json"
        if not path.exists():
            if directory.taken(self.out, ("tune.json",)):
                raise UserError(f"--out {self.out} exists and is not a directory of tune: give another one.")
            return None
        there, wanted = weights.read_json(path), self._plan()
        told = today(there.get("config", {}))  # as a search of an earlier version would tell it now
        there["config"] = {name: told[name] for name in wanted["config"]}
        directory.require(self.out, "another search", there, wanted, (name for name in wanted if name != "command"))
        return there if there["winner"] is not None else None

    def claim(self) -> None:
        """Write down what is searched, before it starts."""
        for what, size in (("--configurations", self.configurations), ("the number of --seeds", len(self.seeds))):
            if size < 1:
                raise UserError(f"{what} is {size}: give at least 1.")
        if method_class(self.config.method).task != "classify":
            raise UserError(f"method '{self.config.method}' has no validation accuracy to tune by.")
        directory.make(self.out)
        weights.write_json(self.out / "tune.json", self._plan() | {"trials": [], "winner": None})

    def conclude(self, failures: Mapping[Path, Exception]) -> dict[str, Any]:
        """Rank the trials and write `tune.json` and `best.json`.

        A configuration whose training diverges cannot win; if all do, or a cell fails otherwise, that is a `UserError`.
        """
        own = {cell.path: failures[cell.path] for cell in self.cells() if cell.path in failures}
        cells.require({path: error for path, error in own.items() if not isinstance(error, Diverged)})
        trials = [self._trial(number, own) for number in range(self.configurations)]
        scored = [trial for trial in trials if trial["accuracy"] is not None]
        if not scored:
            cells.require(own)
        winner = min(scored, key=lambda trial: (-trial["accuracy"], trial["loss"]))["number"]
        found = self._plan() | {"trials": trials, "winner": winner}
        weights.write_json(self.out / "best.json", self.at(winner, self.config.engine.seed).flat())
        weights.write_json(self.out / "tune.json", found)
        return found

    def _trial(self, number: int, failures: Mapping[Path, Exception]) -> dict[str, Any]:
        mine = self.of(number)
        trial = {"number": number, "options": self.options(number), "accuracy": None, "per_seed": [], "loss": None}
        failed = [str(failures[cell.path]) for cell in mine if cell.path in failures]
        if failed:
            return {**trial, "failed": failed[0]}
        measured = [cell.result()["validation"] for cell in mine]
        accuracies, losses = ([m[key] for m in measured] for key in ("accuracy", "loss"))
        means = {"accuracy": mean(accuracies), "loss": mean(losses)}
        return {**trial, **means, "per_seed": accuracies}

    def _plan(self) -> dict[str, Any]:
        config = self.config.flat()
        steps = self.config.setting.steps
        return {
            "method": self.config.method,
            "budget": {"configurations": self.configurations, "seeds": list(self.seeds), "steps": steps},
            "ranges": {
                name: values if isinstance(values, list) else dict(zip(("low", "high"), values, strict=True))
                for name, values in self.ranges.items()
            },
            "fixed": sorted(self.fixed),
            "config": {name: value for name, value in config.items() if name != "seed"},
            "command": self.command,
        }


def draw(method: str, number: int, option: str, values: Sequence[Any]) -> Any:
    """The value of an option in a configuration: a pure function of these names, floats to 3 significant digits."""
    source = np.random.RandomState(noise.derive("tune", method, number, option) % 2**32)
    if isinstance(values, list):
        return values[source.randint(len(values))]
    low, high = values
    return float(f"{math.exp(source.uniform(math.log(low), math.log(high))):.3g}")
