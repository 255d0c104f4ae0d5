"""What a decoding process does: some images of a catalog into the file of pixels, and a line about them in the journal.

It imports no torch, so that a process starts quickly and stays small.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from semisynth.data.decode import Preparation, converted, prepare, quiet
from semisynth.data.items import Item
from semisynth.errors import UserError

MODULUS = 2**128
GRAYED = "RGB made gray"


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows that were decoded: their share of the hash, what was done to how many, and why some failed."""

    first: int
    count: int
    hash: int
    done: dict[str, int]
    unreadable: dict[str, str]  # JSON has no other keys


def decode(items: Sequence[Item], first: int, preparation: Preparation, pixels: Path, journal: Path) -> Chunk:
    """Write the images of rows `first` on; an unreadable one stays black. Once the journal has them, they are kept."""
    chunk = fill(items, first, preparation, pixels)
    line = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(line, (json.dumps(asdict(chunk)) + "\n").encode())  # in one call, as others write there too
    finally:
        os.close(line)
    return chunk


def fill(items: Sequence[Item], first: int, preparation: Preparation, pixels: Path) -> Chunk:
    """As `decode`, without the journal."""
    block = np.zeros((len(items), preparation.channels, *preparation.size), np.uint8)
    done, unreadable, total = Counter[str](), dict[str, str](), 0
    with quiet:  # once, and not for each image
        for place, item in enumerate(items):
            try:
                content = item.read()
                image, conversions = converted(content, item.name)
                total += fingerprint(first + place, content if isinstance(content, bytes) else content.tobytes())
                done.update([*conversions, *_fitting(image.size, image.mode, preparation)])
                block[place] = prepare(image, preparation)
            except UserError as error:
                unreadable[str(first + place)] = str(error)
    with pixels.open("r+b") as file:
        file.seek(first * block[0].size)
        file.write(block.data)
    return Chunk(first, len(items), total % MODULUS, dict(done), unreadable)


def retried(chunk: Chunk, items: Sequence[Item], preparation: Preparation, pixels: Path) -> Chunk:
    """The chunk after another look at what could not be read: a file that was made readable has its old stamp."""
    found, done, unreadable = chunk.hash, Counter(chunk.done), dict[str, str]()
    for row in map(int, chunk.unreadable):
        one = fill(items[row : row + 1], row, preparation, pixels)
        found, unreadable = found + one.hash, unreadable | one.unreadable
        done.update(one.done)
    return Chunk(chunk.first, chunk.count, found % MODULUS, dict(done), unreadable)


def fingerprint(row: int, content: bytes) -> int:
    """A term of a sum that identifies contents and their order, in whatever parts they are read."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=16, salt=row.to_bytes(16, "little")).digest(), "little")


def joined(parts: Sequence[Chunk]) -> Chunk:
    """All of them as one, of all rows."""
    done = sum((Counter(chunk.done) for chunk in parts), Counter[str]())
    unreadable = {row: told for chunk in parts for row, told in chunk.unreadable.items()}
    count, found = sum(chunk.count for chunk in parts), sum(chunk.hash for chunk in parts) % MODULUS
    return Chunk(0, count, found, dict(sorted(done.items())), unreadable)


def gaps(kept: Sequence[Chunk], total: int) -> Iterator[range]:
    """The rows that no chunk has, in order."""
    following = [*(chunk.first for chunk in kept), total]
    ends = [0, *(chunk.first + chunk.count for chunk in kept)]
    return (range(first, stop) for first, stop in zip(ends, following, strict=True) if first < stop)


def resized(preparation: Preparation) -> str:
    """What is said of an image of another size."""
    h, w = preparation.size
    return f"resized to {w}x{h} ({preparation.fit})"


def _fitting(size: tuple[int, int], mode: str, preparation: Preparation) -> Iterator[str]:
    if size != preparation.size[::-1]:
        yield resized(preparation)
    if (mode == "L") != (preparation.channels == 1):
        yield "gray made RGB" if mode == "L" else GRAYED


def journaled(path: Path, total: int) -> list[Chunk]:
    """The chunks of `total` rows in a journal, by their rows: what is damaged is as if it were not there.

    A process that was killed may leave a part of a line.
    """
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    chunks, end = list[Chunk](), 0
    for chunk in sorted(filter(None, (checked(line, total) for line in lines)), key=lambda chunk: chunk.first):
        if chunk.first >= end:
            chunks.append(chunk)
            end = chunk.first + chunk.count
    return chunks


def checked(text: str, total: int) -> Chunk | None:
    """A chunk of `total` rows from JSON, which may hold more; None where it holds none."""
    try:
        content = json.loads(text)
        chunk = Chunk(*(content[field.name] for field in fields(Chunk)))
        numbers = (chunk.first, chunk.count, chunk.hash, *chunk.done.values(), *map(int, chunk.unreadable))
        texts = (*chunk.done, *chunk.unreadable.values())
        rows = range(chunk.first, chunk.first + chunk.count)
        fits = 0 <= chunk.first < rows.stop <= total and all(int(row) in rows for row in chunk.unreadable)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return chunk if fits and {*map(type, numbers)} == {int} and {*map(type, texts)} <= {str} else None
