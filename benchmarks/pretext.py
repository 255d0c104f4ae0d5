"""What features pretext tasks learn without labels, and what is started from them.

On CIFAR-10 (--data, 1,000 training images of each class are enough) the rows are random features, rotation alone,
IE-Rot, all tasks with fixed weights, and all tasks weighed by Frank-Wolfe. On digits all tasks by Frank-Wolfe learn
from the real pool, from samples of the glyph generator alone, and from both; FixMatch and MP-SSL are then started from
such features and from nothing, with the options that are tuned for the latter.

Each network is probed block by block: logistic regression, and the votes of nearest neighbours at the last block. Of
every row alike the learning rate is chosen among LRS on the tuning seed, by the linear probe's accuracy on the
validation images at the block where it is best; so are the block, the penalty and k of each network. The test images
are asked once. Rows are paired by seed.

Stages: tune, bench, table (from what is finished), all. Each may be stopped at any time: the same command goes on.
--data is a folder of CIFAR-10's images by split and class, train/<class>/* and test/<class>/*, in any format that
Pillow reads. Its official page, https://www.cs.toronto.edu/~kriz/cifar.html, has them as arrays, each with its label,
to be written out as PNG: what was written as JPEG is another data set, whose error rates compare only with one another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import HERE, README, between

from semisynth import clusters, environment, weights
from semisynth.data.datasets import Reading
from semisynth.errors import UserError
from semisynth.recipes import bench, cells, presets
from semisynth.recipes.cells import Cell
from semisynth.recipes.config import Config
from semisynth.recipes.probe import Probe, probe
from semisynth.statistics import paired, t_interval

PAGE, RESULTS = HERE.parent / "docs" / "pretext.md", HERE / "results" / "pretext"
LRS, TUNING_SEED = (0.003, 0.01, 0.03), 0
READING = Reading(size=32, channels="rgb", mirror="yes", holdout=0.1)
STEPS = {"cifar": 1500, "digits": 1000}
SEEDS = {"cifar": range(100, 105), "digits": range(100, 110)}
ROWS = {"cifar": ("random", *presets.pretexts()), "digits": ("random", "real", "synthetic", "both")}
ORIGINS = {"real": "pool", "synthetic": "generator", "both": "both"}
STARTS = {"fixmatch": ("none", "real"), "mpssl": ("none", "synthetic")}  # and so no real unlabeled image for MP-SSL
LABELS = 2
LINEAR, NEIGHBOURS = "linear probe", "nearest neighbours"
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """The runs below a folder; folder: of CIFAR-10's images, without which there are only digits."""

    root: Path
    folder: Path | None

    @property
    def sets(self) -> list[str]:
        """The sets of images that are there."""
        return ["digits"] if self.folder is None else ["cifar", "digits"]

    def images(self, name: str) -> dict[str, Any]:
        """The part of a configuration that names a set."""
        return {"data": "digits"} if name == "digits" else {"data": str(self.folder), **vars(READING)}

    def cell(self, name: str, row: str, lr: float, seed: int) -> Cell:
        """A fit of a pretext row."""
        fixed = presets.pretexts()["frank-wolfe" if name == "digits" else row]
        if name == "digits":
            fixed |= {"unlabeled": ORIGINS[row], "generator": None if row == "real" else "glyphs"}
        content = {**self.images(name), **fixed, "steps": STEPS[name], "lr": lr, "seed": seed}
        asked = Config.of(
            {**content, "unlabeled_batch": 64, "evaluate_every": 0, "checkpoint_every": 0}, f"row '{row}'"
        )
        return Cell(self.root / name / row / f"{lr:g}" / str(seed), asked)

    def probed(self, name: str, row: str, lr: float | None, seed: int) -> Path:
        """Where the probe of a row's network is kept."""
        return self.root / name / "probes" / row / ("-" if lr is None else f"{lr:g}") / str(seed)

    def asked(self, name: str, row: str, lr: float | None, seed: int) -> Probe:
        """The probe of a row's network."""
        run = "none" if lr is None else str(self.cell(name, row, lr, seed).path)
        reading = READING if name == "cifar" else Reading()
        return Probe(run, str(self.images(name)["data"]), seeds=[seed], reading=reading)

    def tuned(self, name: str, row: str) -> float | None:
        """The learning rate that was best on validation; None for random features."""
        if row == "random":
            return None
        found = {lr: chosen(self.probed(name, row, lr, TUNING_SEED))["validation"] for lr in LRS}
        return max(LRS, key=lambda lr: found[lr])

    def starts(self) -> Iterator[tuple[str, str, Cell]]:
        """The fits of methods that are started from features, and from nothing."""
        for seed in SEEDS["digits"]:
            for method, rows in STARTS.items():
                for row in rows:
                    tuned = "fixmatch-real" if method == "fixmatch" else "mpssl"
                    best = weights.read_json(weights.SHIPPED / "tuned-digits" / tuned / "best.json")
                    init = "none"
                    if row != "none":
                        lr = self.tuned("digits", row)
                        assert lr is not None
                        init = str(self.cell("digits", row, lr, seed).path)
                    content = {**presets.row(tuned), "lr": best["lr"], "method": best["method"], "init": init}
                    content |= {"data": "digits", "labels_per_class": LABELS, "steps": best["steps"], "seed": seed}
                    yield method, row, Cell(self.root / "starts" / method / row / str(seed), Config.of(content, method))


def main() -> None:
    given = parse()
    work = Work(given.work, given.data)
    try:
        environment.commit()
        if given.stage in ("tune", "all"):
            trained(
                work,
                [(name, row, lr, TUNING_SEED) for name in work.sets for row in ROWS[name][1:] for lr in LRS],
                given.workers,
            )
        if given.stage in ("bench", "all"):
            planned = [
                (name, row, work.tuned(name, row), seed)
                for name in work.sets
                for seed in SEEDS[name]
                for row in ROWS[name]
            ]
            trained(work, planned, given.workers)
            cells.require(cells.run([cell for _, _, cell in work.starts()], given.workers, "starts"))
        write(work)
    except UserError as error:
        sys.exit(f"pretext: error: {error}")
    except KeyboardInterrupt:
        sys.exit("pretext: interrupted; the same command goes on.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's images; left out, only digits are run")
    parser.add_argument("--stage", choices=("tune", "bench", "table", "all"), default="all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/pretext"), help="where the runs are kept")
    return parser.parse_args()


def trained(work: Work, planned: Sequence[tuple[str, str, float | None, int]], workers: int) -> None:
    """Train and probe what is missing of these."""
    fits = [work.cell(name, row, lr, seed) for name, row, lr, seed in planned if lr is not None]
    cells.require(cells.run(fits, workers, "pretext"))
    waiting = [key for key in planned if not (work.probed(*key) / "probe.json").exists()]
    if waiting:
        with clusters.pool(workers, len(waiting), "cpu") as pool:
            futures = [pool.submit(probe, work.asked(*key), work.probed(*key), show=False) for key in waiting]
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                print(f"pretext: {number}/{len(futures)} probes", flush=True)


# ---- results --------------------------------------------------------------------------------------------------------


def rows(place: Path) -> list[dict[str, Any]]:
    """What a probe measured: of each block, and of the neighbours."""
    found = weights.read_json(place / "probe.json")["rows"]
    return [{"measure": row["measure"], "block": row["block"], **row["each"][0]} for row in found]


def chosen(place: Path) -> dict[str, Any]:
    """Of the linear probes the one that is best on validation."""
    return max((row for row in rows(place) if row["measure"] == "linear"), key=lambda row: row["validation"])


def lines(work: Work) -> Iterator[dict[str, Any]]:
    """A line for each measure of each network that is there, and for each fit that was started from one."""
    for name in work.sets:
        for row in ROWS[name]:
            lr = work.tuned(name, row)
            for seed in SEEDS[name]:
                place = work.probed(name, row, lr, seed)
                if (place / "probe.json").exists():
                    measured = {
                        f"{LINEAR}, {found['block']}": found for found in rows(place) if found["measure"] == "linear"
                    }
                    measured |= {LINEAR: chosen(place)}
                    measured[NEIGHBOURS] = next(found for found in rows(place) if found["measure"] == "knn")
                    for measure, found in measured.items():
                        yield {
                            **common(name, row, seed, measure, lr, found["test"], place / "probe.json"),
                            "block": found["block"],
                        }
    for method, row, cell in work.starts():
        if (cell.path / "result.json").exists():
            accuracy = weights.read_json(cell.path / "result.json")["test"]["accuracy"]
            yield common(
                "digits",
                row,
                cell.config.engine.seed,
                method,
                cell.config.engine.lr,
                accuracy,
                cell.path / "result.json",
            )


def common(
    name: str, row: str, seed: int, measure: str, lr: float | None, accuracy: float, file: Path
) -> dict[str, Any]:
    """What every line has."""
    on = weights.read_json(file)["environment"]
    return {
        "set": name,
        "row": row,
        "seed": seed,
        "measure": measure,
        "lr": lr,
        "accuracy": accuracy,
        "commit": on["commit"],
        "device": on["device"],
    }


def write(work: Work) -> None:
    """The committed results, and the tables on the page and in the README."""
    found = list(lines(work))
    RESULTS.mkdir(parents=True, exist_ok=True)
    bench.write(found, "\n\n".join(tables(found).values()) + "\n", RESULTS)
    fill(found)


def fill(found: Sequence[Line]) -> None:
    """The tables on the page and in the README."""
    for name, text in tables(found).items():
        between(PAGE, name, text)
    between(README, "pretext", tables(found)["cifar"])


def tables(found: Sequence[Line]) -> dict[str, str]:
    """By the names of their markers."""
    blocks = sorted({line["measure"] for line in found if line["measure"].startswith(f"{LINEAR},")})
    made = {}
    for name in ROWS:
        measures = [measure for measure in (LINEAR, NEIGHBOURS, *blocks) if of(found, name, "random", measure)]
        head = [name, "lr", *measures]
        body = [[row, rates(found, name, row), *(mean(found, name, row, m) for m in measures)] for row in ROWS[name]]
        made[name] = bench.markdown(head, body)
        pairs = CONTRASTS[name]
        body = [[f"{a} - {b}", *(difference(found, name, a, b, m) for m in measures[:2])] for a, b in pairs]
        made[f"{name}-contrasts"] = bench.markdown(["difference", *measures[:2]], body)
    body = [
        [
            method,
            *(mean(found, "digits", row, method) for row in pair),
            difference(found, "digits", pair[1], pair[0], method),
        ]
        for method, pair in STARTS.items()
    ]
    made["starts"] = bench.markdown(["method", "from nothing", "from pretext features", "difference"], body)
    origin = f"commits {told(found, 'commit')}; {told(found, 'device')}"
    note = f"Made by `python benchmarks/pretext.py --data FOLDER` ({origin})."
    return {name: f"{text}\n\n{note}" for name, text in made.items()}


CONTRASTS = {
    "cifar": [
        *((row, "random") for row in presets.pretexts()),
        *((row, "rotation") for row in ("ierot", "pretext", "frank-wolfe")),
        ("frank-wolfe", "pretext"),
        ("frank-wolfe", "ierot"),
    ],
    "digits": [*((row, "random") for row in ORIGINS), ("synthetic", "real"), ("both", "real")],
}


def told(found: Sequence[Line], key: str) -> str:
    return ", ".join(sorted({str(line[key]) for line in found}))


def rates(found: Sequence[Line], name: str, row: str) -> str:
    """The learning rate that was chosen for a row; of random features none."""
    chosen_rates = {line["lr"] for line in found if (line["set"], line["row"], line["measure"]) == (name, row, LINEAR)}
    return ", ".join(f"{lr:g}" for lr in chosen_rates - {None}) or "–"


def of(found: Sequence[Line], name: str, row: str, measure: str) -> dict[int, float]:
    """The accuracies of a row by seed."""
    wanted = (name, row, measure)
    return {
        line["seed"]: 100 * line["accuracy"] for line in found if (line["set"], line["row"], line["measure"]) == wanted
    }


def mean(found: Sequence[Line], name: str, row: str, measure: str) -> str:
    """In %, with half the width of its t interval."""
    values = [*of(found, name, row, measure).values()]
    if len(values) < 2:
        return "–"
    low, high = t_interval(values)
    return f"{(low + high) / 2:.1f} ± {(high - low) / 2:.1f}"


def difference(found: Sequence[Line], name: str, a: str, b: str, measure: str) -> str:
    """Row a minus row b in points, paired by seed: mean and t interval, uncorrected."""
    one, two = of(found, name, a, measure), of(found, name, b, measure)
    common = sorted(one.keys() & two.keys())
    if len(common) < 2:
        return "–"
    between_them = paired([one[seed] for seed in common], [two[seed] for seed in common])
    low, high = between_them.t
    return f"{between_them.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
