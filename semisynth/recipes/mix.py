"""A pool of which nobody says what is real: real images with synthetic ones mixed in, and the truth in a file apart.

The benchmark of Wang, Mao, Xiang and Yamasaki 2024 (arXiv 2405.16930), RS-SSL, for any data and any generators.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semisynth import generators, mixed, noise, separable, weights
from semisynth.data import datasets, splits
from semisynth.data.datasets import Dataset, Images, Reading
from semisynth.data.stream import to_float
from semisynth.data.through import Through
from semisynth.engine import resolve
from semisynth.errors import UserError, between
from semisynth.generators.options import Options
from semisynth.method import External
from semisynth.mixed import HIDDEN, POOL, REAL, Row
from semisynth.recipes import directory
from semisynth.recipes.origin import RECORD
from semisynth.recipes.sampling import TOGETHER, Maker, prepared, samples

EASY = 0.9  # AUROC above which telling real from synthetic is no test of anything


@dataclass(frozen=True)
class Mix:
    """All that determines a mix.

    Args:
        real: the data set that real images are of, as fit's --data
        synthetic: generators, each as fit's --generator
        share: of synthetic images among the unlabeled ones, from 0 to below 1
        images: number of unlabeled images; left out, all real ones stay and synthetic ones are added
        labeled: real images of each class that keep their labels and are in no mix; what fit's --labels-per-class
            leaves of them it takes as unlabeled too
        classes: which class of the generators stands for a class of the data: equal, that of the same name; any, all
            that they have in turn; or pairs such as cat=tabby,dog=hound, of whole names, of one of the synonyms that
            commas part in a name, or of numbers
        through: WIDTHxHEIGHT:LEVELS that all images are reduced to before they are enlarged again, as 8x8:17, so that
            no trace of resampling or storing tells them apart
        seed: of which images are labeled and drawn, of all samples, and of the order
        device: where samples are made, as fit's --device
        reading: how one's own images are read
        generator_options: as fit's, each for those of the generators that know it
    """

    real: str
    synthetic: list[str]
    share: float = 0.4
    images: int = 0
    labeled: int = 25
    classes: str = "equal"
    through: str | None = None
    seed: int = 0
    device: str = "auto"
    reading: Reading = field(default_factory=Reading)
    generator_options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        between(0, math.inf, images=self.images)
        between(1, math.inf, labeled=self.labeled)
        if not 0 <= self.share < 1:
            raise UserError(f"share is {self.share}: give a number from 0 to below 1.")
        if len({*self.synthetic, REAL}) <= len(self.synthetic):
            raise UserError(f"--synthetic {' '.join(self.synthetic)}: name each generator once, and none '{REAL}'.")

    @property
    def command(self) -> str:
        """What makes the same mix again."""
        typed = ["semisynth", "mix"]
        options = _own(self.generator_options, "generator-options.")
        for name, value in [*_own(self, "").items(), *_own(self.reading, "reading.").items(), *options.items()]:
            typed += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
        return shlex.join([*typed, "--out", "AGAIN"])


def _own(options: Mix | Reading | Options, prefix: str) -> dict[str, Any]:
    """The options that are not the defaults."""
    found = {
        f.name: getattr(options, f.name) for f in fields(options) if f.name not in ("reading", "generator_options")
    }
    return {prefix + f.name: found[f.name] for f in fields(options) if found.get(f.name, f.default) != f.default}


def mix(options: Mix, out: Path) -> dict[str, Any]:
    """Write the mix into the directory `out`; returns its record, `mix.json`, which is written last.

    pool.parquet is a data set: train has the real images that keep their labels, unlabeled the mix, validation and test
    are real. hidden.parquet tells of each unlabeled image, in the same order, what it is. The same options give the
    same bytes. A mix that is there is left as it is. Raises `UserError` where `out` holds anything else, where there
    are too few real images, and for a class that a generator has not.
    """
    data = datasets.load(options.real, options.reading)
    if (there := _finished(options, data, out)) is not None:
        found = _fingerprints(_makers(options, data))
        directory.require(out, "a mix of other generators", there.get("generators", {}), found, found)
        return there
    through = Through.parse(options.through) if options.through else None
    labeled, real = _drawn(options, data)
    count = _synthetic(options, len(real))
    makers = _makers(options, data)
    rows = [
        *_rows(labeled, data, "train", through),
        *_rows(real, data, "unlabeled", through),
        *samples(makers, data, count, options.seed, through),
        *_rows(data.validation, data, "validation", through),
        *_rows(data.test, data, "test", through),
    ]
    order = np.random.RandomState(noise.derive("mix order", options.seed) % 2**32).permutation(len(rows))
    directory.make(out)
    mixed.write([rows[i] for i in order], out)
    record = _record(options, data, rows, makers, out)
    weights.write_json(out / RECORD, record)
    return record


def _finished(options: Mix, data: Dataset, out: Path) -> dict[str, Any] | None:
    record = directory.finished(out, "mix", RECORD, asdict(options), (POOL, HIDDEN))
    if record is not None:
        directory.require(out, "a mix of other images", record, {"data": data.describe()["hash"]}, ["data"])
    return record


def _makers(options: Mix, data: Dataset) -> list[Maker]:
    device, asked = resolve(options.device), generators.dealt(options.synthetic, options.generator_options)
    known = zip(options.synthetic, asked, strict=True)
    return [Maker.of(name, own, options.classes, data.classes, data.shape, device) for name, own in known]


def _fingerprints(makers: Sequence[Maker]) -> dict[str, str]:
    return {maker.name: External(maker.generator).fingerprint() for maker in makers}


# ---- what is mixed --------------------------------------------------------------------------------------------------


def _drawn(options: Mix, data: Dataset) -> tuple[Images, Images]:
    """The real images that keep their labels, and those of the mix."""
    smallest = int(data.pool.y.bincount().min())
    if options.labeled > smallest:
        raise UserError(
            f"--labeled is {options.labeled}, and the smallest class of {options.real} has {smallest} images for "
            "training: lower it."
        )
    chosen, others = splits.draw_labels(data.pool.y, options.labeled, noise.derive("mix labels", options.seed))
    rest = data.pool.subset(others)
    real = rest if data.unlabeled is None else rest.join(data.unlabeled)
    if options.images:
        wanted = options.images - round(options.share * options.images)
        if wanted > len(real):
            raise UserError(
                f"--images {options.images} with --share {options.share:g} asks for {wanted} real images, and "
                f"{options.real} has {len(real)} that are not labeled: lower --images or --labeled, or raise --share."
            )
        drawn, _ = splits.stratified(real.y + 1, [wanted], noise.derive("mix real", options.seed))
        real = real.subset(drawn)
    elif not len(real):
        raise UserError(f"--labeled {options.labeled} leaves no image of {options.real} without its label: lower it.")
    return data.pool.subset(chosen), real


def _synthetic(options: Mix, real: int) -> int:
    """How many synthetic images make the share."""
    count = options.images - real if options.images else round(real * options.share / (1 - options.share))
    if (count > 0) != (options.share > 0) or not real:
        raise UserError(
            f"--share {options.share:g} of {options.images or real} images makes {count} synthetic and {real} real "
            "ones: give more --images, or another --share."
        )
    return count


def _rows(images: Images, data: Dataset, split: str, through: Through | None) -> Iterator[Row]:
    x = (prepared(to_float(part), through) for part in images.batches(TOGETHER))
    for image, y in zip((image for part in x for image in part), images.y.tolist(), strict=True):
        name = data.classes[y] if y >= 0 else None
        yield Row(image, None, split, shown=name) if split == "unlabeled" else Row(image, name, split)


# ---- what is told of it ----------------------------------------------------------------------------------------------


def _record(options: Mix, data: Dataset, rows: Sequence[Row], makers: Sequence[Maker], out: Path) -> dict[str, Any]:
    pool = [row for row in rows if row.split == "unlabeled"]
    made = [row for row in pool if row.synthetic]
    # By generator too: one that is easily told apart hides among others that are not.
    found = {name: _auroc(pool, names) for name, names in _groups(makers).items()}
    worst = max((value for value in found.values() if value is not None), default=None)
    return {
        "command": options.command,
        "options": asdict(options),
        "data": data.describe()["hash"],
        "notes": list(data.told),
        "share": len(made) / len(pool),
        "images": dict(Counter(row.split for row in rows)),
        "sources": dict(Counter(row.source for row in pool)),
        "classes": dict(sorted(Counter(row.shown or "" for row in made).items())),
        "generators": _fingerprints(makers),
        "sha256": {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in (POOL, HIDDEN)},
        "auroc": found,
        "verdict": None if worst is None else "too easy" if worst > EASY else "hard enough",
    }


def _groups(makers: Sequence[Maker]) -> dict[str, set[str]]:
    """All generators and, where there are several, each."""
    names = [maker.name for maker in makers]
    return {"all": set(names)} | ({name: {name} for name in names} if len(names) > 1 else {})


def _auroc(pool: Sequence[Row], names: set[str]) -> float | None:
    """How easily the samples of these generators are told from real images; None where there are too few of a kind."""
    real = [row.image for row in pool if not row.synthetic]
    synthetic = [row.image for row in pool if row.source in names]
    if min(len(real), len(synthetic)) < separable.FOLDS:
        return None
    return separable.auroc(torch.stack(real), torch.stack(synthetic))
