"""Losses on an unlabeled pool that synthetic images contaminate, from none of them to four in five.

Each seed has pools of its own: 4 images of each class of `digits-pool` keep their labels, all others lose them, and
samples of two generators are added until they are the share. FixMatch on the real images alone is FixMatch at share 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comparison import README, Column, Comparison, Row, between, contrast, figures, main

from semisynth import contamination, mixed, weights
from semisynth.recipes import cells, origin
from semisynth.recipes.bench import markdown
from semisynth.recipes.cells import Cell
from semisynth.recipes.config import Config
from semisynth.recipes.mix import Mix, mix
from semisynth.recipes.tune import Search
from semisynth.statistics import mean

LABELS, TUNED = 4, 0.4
GENERATORS = ["digits-gan", "digits-vae"]
ROWS = ("fixmatch", "flexmatch", "softmatch", "openmatch", "iomatch", "rsmatch")
DETECTORS = "detectors.json"
ABLATED = ("rsmatch-no-queue", "rsmatch-no-detector", "rsmatch-no-dummy")
BARE = "rsmatch-bare"  # FixMatch with the options that were tuned for RSMatch


def pool(work: Path, share: float, seed: int) -> Path:
    """The directory of a seed's pool."""
    return work / "pools" / f"{share:g}" / str(seed)


@dataclass(frozen=True)
class Pools(Search):
    """A search in which each seed has a pool of its own."""

    work: Path = Path()

    def at(self, number: int, seed: int) -> Config:
        """One configuration with one seed and its pool."""
        return on(super().at(number, seed), pool(self.work, TUNED, seed))


def on(config: Config, pool: Path) -> Config:
    """The same fit on this pool."""
    return replace(config, setting=replace(config.setting, data=str(pool / mixed.POOL)))


def score(run: Path, pool: Path) -> dict[str, Any]:
    """What a run's detector found, beside what a regression on histograms and spectra finds with the flags known."""
    done = run / contamination.NAME
    found = (
        weights.read_json(done) if done.exists() else contamination.score(run, pool / mixed.HIDDEN, torch.device("cpu"))
    )
    last = [values[-1] for values in found["purity"].values() if values[-1] is not None]
    return {
        "detector": found["auroc"],
        "histogram": weights.read_json(pool / origin.RECORD)["auroc"]["all"],
        "calibration error": found["calibration_error"],
        "estimated share": found["share"]["estimated"],
        "queue purity": mean(last) if last else None,
    }


def averages(scored: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """The means over seeds of what is known, and how many seeds."""
    known = {name: [one[name] for one in scored if one[name] is not None] for name in scored[0]}
    return {"seeds": len(scored), **{name: mean(values) if values else None for name, values in known.items()}}


@dataclass(frozen=True)
class Contaminated(Comparison):
    """A comparison whose columns differ in the share of synthetic images."""

    def prepare(self, work: Path) -> None:
        """Make the pools that are missing."""
        for share, seed in self.pools():
            asked = Mix("digits-pool", GENERATORS, share, labeled=LABELS, through="8x8:17", seed=seed)
            mix(asked, pool(work, share, seed))

    def pools(self) -> list[tuple[float, int]]:
        """Share and seed of each, those of the tuning first."""
        found = [(TUNED, seed) for seed in cells.numbers(self.tuning_seeds, "tuning seeds")]
        for key, (seeds, _) in self.grid.items():
            found += [(Column(*key).share or 0.0, seed) for seed in cells.numbers(seeds, "seeds")]
        return list(dict.fromkeys(found))

    def conclude(self, work: Path) -> None:
        """Score the detectors of all finished runs of RSMatch."""
        scored: dict[Column, list[dict[str, Any]]] = {}
        for key, (seeds, _) in self.grid.items():
            column = Column(*key)
            for seed in cells.numbers(seeds, "seeds"):
                cell, of = self.cell(work, column, "rsmatch", seed), pool(work, column.share or 0.0, seed)
                if (cell.path / "result.json").exists():
                    scored.setdefault(column, []).append(score(cell.path, of))
        content = [{**column._asdict(), **averages(found)} for column, found in sorted(scored.items())]
        weights.write_json(self.results / DETECTORS, {"command": self.command, "results": content})

    def search(self, init: str, name: str, work: Path) -> Search:
        """The search of a row, at the share that lies in the middle."""
        found = super().search(init, name, work)
        return Pools(found.config, found.out, found.configurations, found.seeds, found.fixed, found.command, work)

    def cell(self, work: Path, column: Column, name: str, seed: int) -> Cell:
        """One fit of a row on the pool of its seed."""
        found = super().cell(work, column, name, seed)
        return Cell(found.path, on(found.config, pool(work, column.share or 0.0, seed)))


OTHERS = (*ROWS[:-1], *ABLATED, BARE)
PAGE = README.parent / "docs" / "contaminated.md"
COMPARISON = Contaminated(
    name="rs-ssl",
    grid={
        Column("none", LABELS, 0.0): ("100-119", (*ROWS, BARE)),
        Column("none", LABELS, 0.2): ("100-109", ROWS),
        Column("none", LABELS, 0.4): ("100-119", (*ROWS, *ABLATED, BARE)),
        Column("none", LABELS, 0.6): ("100-109", ROWS),
        Column("none", LABELS, 0.8): ("100-109", (*ROWS, *ABLATED, BARE)),
        Column("foundation", LABELS, 0.0): ("100-109", ROWS),
        Column("foundation", LABELS, 0.4): ("100-109", ROWS),
    },
    configurations={"none": 16, "foundation": 16},
    pivots=("rsmatch",),
    borrowed={name: Row("rsmatch") for name in (*ABLATED, BARE)},
    tuning_labels=LABELS,
    reference="fixmatch",
    script="rs_ssl",
)


def write(lines: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """Write the README's table, and those of the page."""
    told = f"Test accuracy in %, mean over seeds and its 95 % interval. Made by `{COMPARISON.command}`. {note}".strip()
    scratch = [column for column in COMPARISON.columns if column.init == "none"]
    between(README, "rs-ssl", f"{figures(lines, ROWS, scratch)}\n\n{told}")
    between(PAGE, "accuracies", f"{figures(lines, (*ROWS, *ABLATED, BARE), COMPARISON.columns)}\n\n{told}")
    between(PAGE, "contrasts", f"{contrasts(lines)}\n\n{note}".strip())
    between(PAGE, "detector", detector())


def contrasts(lines: Sequence[Mapping[str, Any]]) -> str:
    """RSMatch minus every other row, and minus FixMatch on the real images alone, by share."""
    columns = COMPARISON.columns
    rows = [[f"rsmatch - {b}", *(contrast(lines, "rsmatch", b, column) for column in columns)] for b in OTHERS]
    clean = [contrast(lines, "rsmatch", "fixmatch", column, column._replace(share=0.0)) for column in columns]
    return markdown(
        ["difference", *map(str, columns)], [*rows, ["rsmatch - fixmatch on the real images alone", *clean]]
    )


def detector() -> str:
    """How well synthetic images were told apart: a row for each place."""
    found = weights.read_json(COMPARISON.results / DETECTORS)["results"]
    names = ("detector", "histogram", "calibration error", "estimated share", "queue purity")
    rows = [
        [Column(*(line[name] for name in Column._fields)), line["seeds"], *(_short(line[name]) for name in names)]
        for line in found
    ]
    return markdown(["pool", "seeds", "AUROC of the detector", "of histograms and spectra", *names[2:]], rows)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main(COMPARISON, write)
