"""Images of a generator, or those that a run's mapper asks for, in files: a data set like any other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import torch
from torch import Tensor

from semisynth import charts, generators, noise, weights
from semisynth.data import parquet
from semisynth.data.catalog import SPLITS
from semisynth.data.stream import to_float
from semisynth.engine import resolve
from semisynth.errors import UserError, between
from semisynth.generators import names
from semisynth.generators.options import Options
from semisynth.log import Bar
from semisynth.method import External
from semisynth.recipes import directory, single
from semisynth.recipes.sampling import latents, prepared, together

SHARD = 256  # images that are written together
RECORD, SHEET, IMAGES, PARTS = "generate.json", "sheet.png", "images.parquet", "parts"
UNLABELED = "images"  # folder of those that have no class
SHOWN = 10  # images of a class on the sheet
LONGEST = 255  # bytes of a folder's name
# What names of folders may not have, and what would look like it once it is replaced.
POSIX = re.compile(r"[/\0\ud800-\udfff]|^\.|%(?=[0-9A-F]{2})")
WINDOWS = re.compile(POSIX.pattern + r'|[<>:"\\|?*\x01-\x1f]|[. ]$')


@dataclass(frozen=True)
class Generate:
    """All that determines the images.

    Args:
        generator: a name or a path, as fit's --generator
        run: in its place, the run directory of a method with a mapper, whose images are made
        count: of images
        classes: names, synonyms or numbers of the generator's classes that are made in turn, all unless given
        format: parquet, one table of images and labels; or png, a folder of each class, with what folders' names may
            not have as in an address, a%2Fb for a/b
        seed: of all latents
        device: as fit's --device
        generator_options: as fit's --generator-options
    """

    generator: str | None = None
    run: str | None = None
    count: int = 100
    classes: list[str] | None = None
    format: Literal["parquet", "png"] = "parquet"
    seed: int = 0
    device: str = "auto"
    generator_options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        between(1, 10**9, count=self.count)
        if (self.generator is None) == (self.run is None):
            raise UserError("give either --generator or --run, the one or the other.")
        if self.run is not None and self.generator_options != Options():
            raise UserError("--generator-options are for --generator: a run has its own.")
        if self.run is not None and self.classes is not None:
            raise UserError("--classes is for --generator: a mapper asks for the classes of its run in turn.")


class Maker(NamedTuple):
    """Makes the images (n, c, h, w) in [0, 1] of these numbers, and tells their classes; a class is None without any.

    name: of the generator or run; fingerprint: of what determines it; classes: in the order in which they are made;
    together: images that it makes at a time.
    """

    make: Callable[[range], tuple[Tensor, Sequence[str | None]]]
    name: str
    fingerprint: str
    classes: Sequence[str]
    together: int

    def record(self, options: Generate) -> dict[str, Any]:
        """What is kept of images that it made."""
        return {"options": asdict(options), "fingerprint": self.fingerprint, "classes": list(self.classes)}


def generate(options: Generate, out: Path, show: bool = True) -> dict[str, Any]:
    """Write the images into the directory `out`, or those that are missing; returns its record, which is written last.

    The same options give the same images however often they were interrupted. `UserError` where `out` holds anything
    else, also images of a generator that has changed, for a class that it has not, and for a run without a mapper.
    """
    there = _there(options, out)
    maker = _of_run(options) if options.run is not None else _of_generator(options)
    record = maker.record(options)
    if there:
        directory.require(out, "images of another generator", there, record, record)
        if (out / RECORD).exists():
            return record
    if options.format == "png":
        _require_folders(maker.classes)
    directory.make(out / PARTS)
    weights.write_json(out / PARTS / RECORD, record)
    parts = [range(options.count)[i : i + SHARD] for i in range(0, options.count, SHARD)]
    paths = [out / PARTS / f"{part.start // SHARD:06}.parquet" for part in parts]
    done = sum(path.exists() for path in paths)
    with Bar("generate", len(parts), done, show) as bar:
        for numbers, path in zip(parts, paths, strict=True):
            if not path.exists():
                _write(maker, numbers, path)
                bar.step()
    return _conclude(options, out, paths, maker)


def _write(maker: Maker, numbers: range, path: Path) -> None:
    """A part, of which only its files are kept while the rest of it is made."""
    cells: list[bytes] = []
    labels: list[str | None] = []
    for start in range(0, len(numbers), maker.together):
        x, names_of = maker.make(numbers[start : start + maker.together])
        cells += [parquet.png(image) for image in prepared(x, None, maker.name).cpu()]
        labels += names_of
    parquet.write(path, {"image": cells, "label": labels, "index": list(numbers)})


def _there(options: Generate, out: Path) -> dict[str, Any] | None:
    """The record of images of these options, or what the first of their parts claimed."""
    claim = out / PARTS / RECORD
    if not (out / RECORD).exists() and claim.exists():
        there = weights.read_json(claim)
        directory.require(out, "other images", there.get("options", {}), asdict(options), asdict(options))
        return there
    empty = not directory.taken(out / PARTS, (RECORD,))
    return directory.finished(out, "set of generated images", RECORD, asdict(options), (PARTS,) if empty else ())


def _of_generator(options: Generate) -> Maker:
    assert options.generator is not None
    name, asked, device = options.generator, options.generator_options, resolve(options.device)
    generator, there = generators.load(name, asked), generators.class_names(name, asked)
    wanted, made = _numbers(options, there), generators.tried(generator, name, device)
    if made[0] not in (1, 3):
        raise UserError(f"generator {name} makes images of {made[0]} channels: files of images have 1 or 3.")

    def make(numbers: range) -> tuple[Tensor, Sequence[str | None]]:
        z = latents(generator, [noise.derive("generate", options.seed, i) for i in numbers]).to(device)
        y = [wanted[i % len(wanted)] for i in numbers] if wanted else []
        with torch.no_grad():
            x: Tensor = generator(z, torch.tensor(y, device=device) if wanted else None)
        return x, [there[c] for c in y] or [None] * len(numbers)

    return Maker(make, name, External(generator).fingerprint(), [there[c] for c in wanted], together(made))


def _numbers(options: Generate, there: Sequence[str]) -> list[int]:
    """The generator's classes that are made, of those that are there."""
    if options.classes is None:
        return list(range(len(there)))
    told = f"generator {options.generator} has no class"
    if not there:
        raise UserError(f"{told}es: leave --classes out.")
    return [names.number(name, there, f"{told} '{name}': {names.near(name, there)}") for name in options.classes]


def _of_run(options: Generate) -> Maker:
    assert options.run is not None
    materials, device = single.again(Path(options.run), resolve(options.device)), resolve(options.device)
    method, classes, like = materials.method, materials.data.classes, torch.empty(0, device=device)

    def make(numbers: range) -> tuple[Tensor, Sequence[str | None]]:
        with torch.no_grad(), noise.seeded(options.seed, "generate", numbers.start):
            x = method.samples(SHARD, like)["mapped"][: len(numbers)]  # as many as ever, so that a part is as a whole
        return x, [classes[i % len(classes)] for i in range(len(numbers))]

    with torch.no_grad(), noise.seeded("mapper"):
        if "mapped" not in method.samples(1, like):
            raise UserError(f"method '{materials.config.method}' of {options.run} has no mapper: give --generator.")
    return Maker(make, options.run, External(method).fingerprint(), classes, SHARD)


def _conclude(options: Generate, out: Path, paths: Sequence[Path], maker: Maker) -> dict[str, Any]:
    """The files in the form that was asked for, a sheet and, last, the record."""
    with weights.replacing(out / SHEET) as beside:
        beside.write_bytes(_sheet(paths, len(maker.classes) or SHOWN))
    if options.format == "png":
        for image, label, index in _rows(paths):
            folder = out / (UNLABELED if label is None else _folder(label))
            directory.make(folder)
            with weights.replacing(folder / f"{index:08}.png") as beside:
                beside.write_bytes(image)
    else:
        images, labels, numbers = zip(*_rows(paths), strict=True)
        parquet.write(out / IMAGES, {"image": list(images), "label": list(labels), "index": list(numbers)})
    record = maker.record(options)
    weights.write_json(out / RECORD, record)
    for path in (*paths, out / PARTS / RECORD):
        path.unlink()
    (out / PARTS).rmdir()
    return record


def _require_folders(classes: Sequence[str]) -> None:
    """`UserError` for a class whose name no folder can have, or which would be taken for something else."""
    for name in classes:
        folder = _folder(name)
        if folder in (PARTS, RECORD, SHEET, *SPLITS) or not 0 < len(folder.encode()) <= LONGEST:
            shown = name if len(name) < LONGEST // 4 else f"{name[: LONGEST // 4]}..."
            raise UserError(f"the class '{shown}' cannot have a folder of its name: give --format parquet.")


def _folder(name: str, refused: re.Pattern[str] = WINDOWS if os.name == "nt" else POSIX) -> str:
    """The name with what a file system refuses as in an address, %2F: a class may be called .. or a/b."""
    return refused.sub(
        lambda found: quote(found[0].encode("utf-8", "surrogatepass"), safe="").replace(".", "%2E"), name
    )


def _rows(paths: Sequence[Path]) -> Iterator[tuple[bytes, str | None, int]]:
    for path in paths:
        yield from parquet.read(path, ("image", "label", "index"))


def _sheet(paths: Sequence[Path], classes: int) -> bytes:
    """The first images, a column for each class."""
    first = [image for image, _, _ in _rows(paths[: -(-SHOWN * classes // SHARD)])][: SHOWN * classes]
    return charts.sheet(to_float(torch.stack([parquet.pixels(image) for image in first])).numpy(), classes)
