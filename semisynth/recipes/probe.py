"""What the features of a run know: probes of each block, nearest neighbours, fine-tuning with few labels."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from semisynth import blocks, environment, statistics, weights
from semisynth import probe as measure
from semisynth.clusters import Workers
from semisynth.data import parquet
from semisynth.data.datasets import Images, Reading
from semisynth.engine import Engine, resolve
from semisynth.errors import UserError, between
from semisynth.evaluate import wilson
from semisynth.log import Bar
from semisynth.probe import Chosen, Labeled
from semisynth.recipes import cells, directory, subject
from semisynth.recipes.cells import Cell
from semisynth.recipes.config import Config, Setting
from semisynth.recipes.materials import drawn

RECORD, PARTS, FITS, EXPORT = "probe.json", "parts", "fits", "features.parquet"
ARMS = {"frozen": "linearprobe", "full": "supervised"}  # the method of each kind of fine-tuning
SPLITS = ("pool", "validation", "test")


@dataclass(frozen=True)
class Probe:
    """All that determines a probe.

    Args:
        run: what is probed: a finished run of a classifier or of features, or what fit's --init names: foundation, or
            none, random features drawn by each seed
        data: the data set, as fit's --data; one's own images are made to have the size and channels of the run's
        model: the network of foundation or none, small-cnn unless given; a run has its own
        labels_per_class: how many are drawn from the pool by each seed; 0 for all of them, with which nothing is
            fine-tuned
        seeds: of the label draws and fits
        steps: of fine-tuning
        lr: of fine-tuning
        device: auto (CUDA where there is one), cpu, cuda, cuda:1, ...
        reading: how one's own images are read
    """

    run: str
    data: str
    model: str | None = None
    labels_per_class: list[int] = field(default_factory=lambda: [0])
    seeds: list[int] = field(default_factory=lambda: [100, 101, 102, 103, 104])
    steps: int = Setting.steps
    lr: float = Engine.lr
    device: str = "auto"
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        for count in self.labels_per_class:
            between(0, 10**9, labels_per_class=count)
        if not self.labels_per_class or not self.seeds:
            raise UserError("give at least one of --labels-per-class and one of --seeds.")


def probe(
    options: Probe, out: Path, workers: Workers = 1, command: str = "", export: bool = False, show: bool = True
) -> dict[str, Any]:
    """Measure what is missing in the directory `out`; returns its record, probe.json, which is written last.

    workers: who fine-tunes; export: whether features.parquet, if missing, is written there too. The run itself is only
    read. `UserError` where `out` holds anything else, such as a probe of a run or of data that have changed since; for
    what is no run, has no features or reads other images; and for a class with too few labels.
    """
    if export:
        parquet.require(out / EXPORT)
    work = Work(options)
    record = _finished(work.identity, out)
    if record is None:
        fits = work.fits(out)
        work.check(fits, workers)
        directory.make(out / PARTS)
        weights.write_json(out / PARTS / RECORD, work.identity)
        measured = work.parts(out / PARTS, show)
        cells.require(cells.run(fits, workers, "fine-tuning") if fits else {})
        record = {**work.told(command), "rows": [*work.probes(measured), *work.fine_tuned(fits)]}
        weights.write_json(out / RECORD, record)
        for path in (out / PARTS).iterdir():
            path.unlink()
        (out / PARTS).rmdir()
    if export and not (out / EXPORT).exists():
        work.export(out / EXPORT)
    return record


def _finished(identity: dict[str, Any], out: Path) -> dict[str, Any] | None:
    claim = out / PARTS / RECORD
    if not (out / RECORD).exists() and claim.exists():
        directory.require(out, "another probe", weights.read_json(claim), identity, identity)
        return None
    empty = not directory.taken(out / PARTS, (RECORD,))
    return directory.finished(out, "probe", RECORD, identity, (PARTS,) if empty else ())


class Work:
    """A probe of these features on these data; identity: all that its results depend on."""

    def __init__(self, options: Probe) -> None:
        self.options, self.device = options, resolve(options.device)
        self.subject = subject.load(options.run, options.model, self.device)
        self.data = self.subject.data(options.data, options.reading)
        of_what = {"fingerprint": self.subject.told["fingerprint"], "hash": self.data.describe()["hash"]}
        self.identity = {**asdict(options), **of_what}
        self.random = self.subject.features is None  # so that each seed has its own
        self.counts, self.seeds = sorted({*options.labels_per_class}), list(dict.fromkeys(options.seeds))
        self.seen = functools.lru_cache(maxsize=1)(self._seen)

    def check(self, fits: Sequence[Cell], workers: Workers) -> None:
        """`UserError` for what could not be measured, before anything is written."""
        data, name = self.data, self.options.data
        for split in ("validation", "test"):
            if not len(getattr(data, split)):
                raise UserError(f"--data {name} has no images for {split}: add some, or give --holdout 0.2.")
        for count in self.counts:
            drawn(data, count, self.seeds[0])
        cells.check(fits, "test", workers)

    def features(self, seed: int) -> nn.Module:
        """The network of the run, or the random one of this seed."""
        return self.subject.drawn(self.data, seed).to(self.device)

    # ---- probes and neighbours ---------------------------------------------------------------------------------------

    def parts(self, place: Path, show: bool) -> dict[tuple[int, int], dict[str, Any]]:
        """What was measured with each number of labels and seed; on all labels of a run seeds change nothing."""
        tasks = [(n, s) for s in self.seeds for n in self.counts if n or self.random or s == self.seeds[0]]
        paths = {task: place / f"{task[0]}-{task[1]}.json" for task in tasks}
        with Bar("probe", len(paths), sum(path.exists() for path in paths.values()), show) as bar:
            for task, path in paths.items():
                if not path.exists():
                    weights.write_json(path, self._measured(*task))
                    bar.step()
        return {task: weights.read_json(path) for task, path in paths.items()}

    def _measured(self, count: int, seed: int) -> dict[str, Any]:
        seen, data, rows = self.seen(seed if self.random else self.seeds[0]), self.data, self._rows(count, seed)

        def labeled(block: str, device: torch.device | str = "cpu") -> tuple[Labeled, Labeled, Labeled]:
            pool, validation, test = (
                Labeled(seen[name][block].to(device), getattr(data, name).y.to(device)) for name in SPLITS
            )
            return Labeled(pool.x[rows], pool.y[rows]), validation, test

        linear = {
            block: {"width": x.shape[1], **_told("l2", measure.linear(*labeled(block), pool=x))}
            for block, x in seen["pool"].items()
        }
        last = [*linear][-1]
        found = _told("k", measure.neighbours(*labeled(last, self.device)))
        return {"linear": linear, "knn": {last: {"width": linear[last]["width"], **found}}}

    def _rows(self, count: int, seed: int) -> Tensor:
        """The rows of the pool whose labels a fit of this seed would know."""
        pool = self.data.pool
        rows = drawn(replace(self.data, pool=Images(torch.arange(len(pool)), pool.y), unlabeled=None), count, seed)[0].x
        assert isinstance(rows, Tensor)
        return rows

    def _seen(self, seed: int) -> dict[str, dict[str, Tensor]]:
        """The features (n, d) of each split by block."""
        features = self.features(seed)
        return {name: blocks.extract(features, getattr(self.data, name), self.device) for name in SPLITS}

    # ---- fine-tuning -------------------------------------------------------------------------------------------------

    def fits(self, out: Path) -> list[Cell]:
        """A fit for each seed, number of labels but all, and way: the head alone, or the whole network."""
        options = self.options
        base = {"data": options.data, **asdict(self.data.reading), "model": self.subject.model, "init": options.run}
        base |= {"steps": options.steps, "lr": options.lr, "device": options.device}
        return [
            Cell(
                out / FITS / arm / str(count) / str(seed),
                Config.of({**base, "labels_per_class": count, "seed": seed, "method": {"name": method}}, "the options"),
            )
            for seed in self.seeds
            for count in self.counts
            if count
            for arm, method in ARMS.items()
        ]

    # ---- what is told ------------------------------------------------------------------------------------------------

    def told(self, command: str) -> dict[str, Any]:
        """The head of the record."""
        return {
            "options": self.identity,
            "command": command,
            "run": dict(self.subject.told),
            "data": self.data.describe(),
            "pooling": blocks.POOLING,
            "selection": {"l2": list(measure.L2), "k": list(measure.NEIGHBOURS), "images": len(self.data.validation)},
            "environment": environment.describe(self.device),
        }

    def probes(self, measured: Mapping[tuple[int, int], Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A row for each number of labels and block, and one of the neighbours."""
        rows = []
        for count in self.counts:
            parts = {seed: part for (n, seed), part in measured.items() if n == count}
            for kind in ("linear", "knn"):
                for block in next(iter(parts.values()))[kind]:
                    rows.append(self._row(kind, block, count, {seed: p[kind][block] for seed, p in parts.items()}))
        return rows

    def fine_tuned(self, fits: Sequence[Cell]) -> list[dict[str, Any]]:
        """A row for each number of labels and way."""
        found: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
        for cell in fits:
            arm, count = cell.path.parent.parent.name, cell.config.setting.labels_per_class
            accuracies = {split: cell.result()[split]["accuracy"] for split in ("validation", "test")}
            found.setdefault((arm, count), {})[cell.config.engine.seed] = accuracies
        return [self._row(arm, None, count, each) for (arm, count), each in found.items()]

    def _row(self, kind: str, block: str | None, count: int, each: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """The mean over seeds with its t interval or, of a single value, Wilson's over the images."""
        values, images = [found["test"] for found in each.values()], len(self.data.test)
        interval = list(statistics.t_interval(values)) if len(values) > 1 else wilson(round(values[0] * images), images)
        return {
            "measure": kind,
            "block": block,
            "labels_per_class": count,
            "accuracy": statistics.mean(values),
            "interval": [min(max(end, 0.0), 1.0) for end in interval],
            "over": "seeds" if len(values) > 1 else "images",
            "each": [{"seed": seed if count or self.random else None, **found} for seed, found in each.items()],
        }

    def export(self, path: Path) -> None:
        """The features of all images as a table: split, index in the split, label and a list of numbers."""
        data, features = self.data, self.features(self.seeds[0])
        splits = {"train": data.pool, "validation": data.validation, "test": data.test, "unlabeled": data.unlabeled}
        there = {name: images for name, images in splits.items() if images is not None and len(images)}
        found = [[*blocks.extract(features, images, self.device).values()][-1] for images in there.values()]
        names = np.array([*data.classes, None], dtype=object)  # of which the last is that of -1
        columns = {
            "split": np.repeat([*there], [len(images) for images in there.values()]).tolist(),
            "index": np.concatenate([np.arange(len(images)) for images in there.values()]).tolist(),
            "label": names[torch.cat([images.y for images in there.values()]).numpy()].tolist(),
            "features": parquet.vectors(torch.cat(found)),
        }
        parquet.write(path, columns)


def _told(name: str, found: Chosen) -> dict[str, float]:
    return {name: found.value, "validation": found.validation, "test": found.test}
