"""All images of a catalog, decoded once, in parallel, into a file of pixels that is read as if it were memory.

The file lies in $SEMISYNTH_CACHE or ~/.cache/semisynth, under a hash of what each image was (path, size, time of
change) and of what it was made to be. Decoding that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from semisynth import processes, weights
from semisynth.data import chunks
from semisynth.data.catalog import Catalog
from semisynth.data.chunks import Chunk
from semisynth.data.decode import Preparation
from semisynth.data.items import Item
from semisynth.errors import UserError
from semisynth.log import console

VERSION = 1  # of what decoding does: another one decodes anew
FIRST = 16  # images by which the speed is first measured
PATIENCE = 4.0  # seconds of decoding for which no process is started
MEASURED = 0.3  # seconds after which that speed is believed
TASK = 0.1  # seconds of work that a process is given at a time, which is what killing it costs
MOMENT, TOLD = 1.0, 5.0  # seconds before progress is shown, and between its lines where there is no terminal
MOST = 5  # unreadable images that are named; nothing more is decoded then, as one of them will be changed


@dataclass(frozen=True)
class Decoded:
    """A file of pixels (n, c, h, w) uint8; hash: of what was read; done: how many images were converted in what way."""

    path: Path
    shape: tuple[int, int, int, int]
    hash: str
    done: dict[str, int]
    unreadable: dict[int, str]


def folder() -> Path:
    """Where the caches lie."""
    return Path(os.environ.get("SEMISYNTH_CACHE") or Path.home() / ".cache" / "semisynth")


def load(catalog: Catalog, preparation: Preparation, skip: bool = False) -> Decoded:
    """The images of a catalog, decoded if they are not yet; those that could not be read are tried again.

    Raises `UserError` if there is no room for them and, unless `skip`, if some cannot be read.
    """
    place = folder() / f"{_slug(catalog.name)}-{_key(catalog, preparation)}"
    shape = (len(catalog.items), preparation.channels, *preparation.size)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):  # another process may be decoding the same
            filling = _Filling(catalog, preparation, place, shape, skip, FIRST)
            whole = filling.again() or filling.run()
    except FileNotFoundError as error:
        raise UserError(
            f"{place} was removed while the images of {catalog.name} were decoded into it: give the same command again."
        ) from error
    except OSError as error:
        raise UserError(
            f"the images of {catalog.name} cannot be kept in {place}: {error.strerror or error}. Make room, or set "
            "SEMISYNTH_CACHE to a folder that has it; what is decoded is kept."
        ) from error
    except BrokenProcessPool as error:
        raise UserError(
            f"a process that decoded {catalog.name} was ended from outside, perhaps for want of memory. "
            "The same command goes on where it stopped."
        ) from error
    unreadable = {int(row): told for row, told in whole.unreadable.items()}
    if unreadable and not skip:
        raise refusal(catalog.name, list(unreadable.values()))
    return Decoded(place / "images.u8", shape, f"{whole.hash:032x}", whole.done, unreadable)


def refusal(source: str, told: Sequence[str]) -> UserError:
    """What is said of unreadable images, of which up to five are named."""
    named = "; ".join(told[:MOST]) + ("; ..." if len(told) > MOST else "")
    return UserError(
        f"{source} has images that cannot be read: {named}. Mend or remove them (semisynth data check lists all), or "
        "leave them out with --unreadable skip."
    )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-40:]


def _key(catalog: Catalog, preparation: Preparation) -> str:
    parts = (VERSION, catalog.stamp, preparation)
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


@dataclass
class _Filling:
    """One decoding of a catalog into its place."""

    catalog: Catalog
    preparation: Preparation
    place: Path
    shape: tuple[int, int, int, int]
    skip: bool
    size: int  # images of the next task

    def again(self) -> Chunk | None:
        """What was decoded before, with another look at what could not be read; None if it must be decoded anew."""
        pixels, meta, size = self.place / "images.u8", self.place / "meta.json", math.prod(self.shape)
        if not (meta.exists() and pixels.exists() and pixels.stat().st_size == size):
            return None
        known = chunks.checked(meta.read_text(errors="replace"), self.shape[0])
        if known is None or known.count < self.shape[0]:
            return None
        if not known.unreadable:
            return known
        return self._write(chunks.retried(known, self.catalog.items, self.preparation, pixels))

    def run(self) -> Chunk:
        """Decode what the journal lacks; what is known of the whole is written last."""
        kept, total = self._begin(), self.shape[0]
        bad = [told for chunk in kept for told in chunk.unreadable.values()]
        decoded = contextlib.closing(self._decoded(list(chunks.gaps(kept, total))))
        done = sum(chunk.count for chunk in kept)
        with Bar(f"decoding {self.catalog.name}", total, done) as bar, decoded as found:
            for chunk in found:
                bar.step(chunk.count)
                bad += chunk.unreadable.values()
                if len(bad) >= MOST and not self.skip:
                    raise refusal(self.catalog.name, bad)
        kept = chunks.journaled(self.journal, total)
        if list(chunks.gaps(kept, total)):
            raise FileNotFoundError(self.journal)
        os.replace(self.pixels, self.place / "images.u8")
        whole = self._write(chunks.joined(kept))
        self.journal.unlink()
        return whole

    @property
    def pixels(self) -> Path:
        """Where they are until all are there."""
        return self.place / "images.part"

    @property
    def journal(self) -> Path:
        """A line for each chunk that is in `pixels`."""
        return self.place / "journal.jsonl"

    def _begin(self) -> list[Chunk]:
        """Make room for all pixels, unless there is; returns what is decoded already."""
        size = math.prod(self.shape)
        if self.pixels.exists() and self.pixels.stat().st_size == size:
            kept = [
                chunks.retried(chunk, self.catalog.items, self.preparation, self.pixels)
                for chunk in chunks.journaled(self.journal, self.shape[0])
            ]
            weights.write_text(self.journal, "".join(json.dumps(asdict(chunk)) + "\n" for chunk in kept))
            return kept
        self.journal.unlink(missing_ok=True)
        with self.pixels.open("wb") as file:
            try:
                if sys.platform == "linux":
                    os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told now, and not by a signal later
                file.truncate(size)
            except OSError:
                self.pixels.unlink()
                raise
        return []

    def _decoded(self, gaps: list[range]) -> Generator[Chunk]:
        """Every chunk as it is done: here, and in other processes once that will take longer than `PATIENCE`."""
        began, done, left = time.perf_counter(), 0, sum(map(len, gaps))
        tasks = self._tasks(gaps)
        for rows in tasks:
            chunk = chunks.decode(*self._task(rows))
            yield chunk
            done, spent = done + chunk.count, time.perf_counter() - began
            rate = done / spent
            self.size = max(1, min(int(TASK * rate), 1000))
            if spent > MEASURED and (left - done) / rate > PATIENCE and _cores() > 1:
                yield from self._parallel(tasks)

    def _parallel(self, tasks: Iterator[range]) -> Iterator[Chunk]:
        with processes.pool(_cores(), patient=True) as pool:  # left early, it waits for what its processes began
            running: set[Future[Chunk]] = set()
            for rows in tasks:
                running.add(pool.submit(chunks.decode, *self._task(rows)))
                if len(running) == 2 * _cores():
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            yield from (future.result() for future in as_completed(running))

    def _tasks(self, gaps: list[range]) -> Iterator[range]:
        for gap in gaps:
            while gap:
                rows, gap = gap[: self.size], gap[self.size :]  # before the size may change
                yield rows

    def _task(self, rows: range) -> tuple[Sequence[Item], int, Preparation, Path, Path]:
        return self.catalog.items[rows.start : rows.stop], rows.start, self.preparation, self.pixels, self.journal

    def _write(self, whole: Chunk) -> Chunk:
        about = {"source": self.catalog.name, "preparation": asdict(self.preparation)}
        weights.write_json(self.place / "meta.json", about | asdict(whole))
        return whole


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Bar:
    """Progress and the time left, where decoding takes longer than a moment; lines where there is no terminal."""

    def __init__(self, name: str, total: int, done: int) -> None:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.task = self.progress.add_task(escape(name), total=total, completed=done)
        self.told = time.perf_counter() + MOMENT

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress.live.is_started:  # without a terminal its end is a blank line
            self.progress.stop()

    def step(self, count: int) -> None:
        """So many more images are decoded."""
        self.progress.advance(self.task, count)
        if time.perf_counter() < self.told:
            return
        if console.is_terminal:
            self.progress.start()
            self.told = math.inf
        else:
            task = self.progress.tasks[0]
            console.print(f"{task.description}: {task.completed:.0f}/{task.total:.0f} images", highlight=False)
            self.told = time.perf_counter() + TOLD
