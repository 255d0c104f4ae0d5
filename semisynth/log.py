"""What a run says while it goes on: `log.jsonl`, the time of each part of a step, and a progress bar."""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from semisynth.weights import write_text

console = Console(stderr=True)


class Log:
    """Appends JSON lines; on resume the lines past the checkpoint are cut. With no path it writes nothing."""

    def __init__(self, path: Path | None, step: int) -> None:
        self.path = path
        if path is None:
            return
        write_text(path, "".join(line + "\n" for line in _lines_to(path, step)))

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def _lines_to(path: Path, step: int) -> Iterator[str]:
    # A killed run may leave half a last line: what follows it is lost anyway.
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except (ValueError, TypeError, LookupError, RecursionError):
            return


class Timer:
    """Adds up the seconds of each part of a step; on CUDA by events, which are read only when asked."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the body under `name`."""
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        taken, self._seconds, self._events = dict(self._seconds), defaultdict(float), []
        return taken


class Bar:
    """A progress bar with steps per second and the time left; a plain line now and then where there is no terminal."""

    def __init__(self, name: str, steps: int, done: int, show: bool) -> None:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        self.steps, self.name = steps, name
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not show)
        self.plain = show and not console.is_terminal
        self.task = self.progress.add_task(name, total=steps, completed=done, note="")

    def __enter__(self) -> Bar:
        if not self.plain:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.plain:
            self.progress.stop()

    def step(self) -> None:
        """One step is done."""
        self.progress.advance(self.task)

    def note(self, step: int, rate: float, metrics: dict[str, Any]) -> None:
        """Show the speed and the newest validation accuracy."""
        accuracy = metrics.get("validation/accuracy")
        note = f"{rate:.1f} steps/s" + ("" if accuracy is None else f", validation {accuracy:.3f}")
        self.progress.update(self.task, note=note)
        if self.plain:
            left = (self.steps - step) / rate if rate else 0.0
            console.print(f"{self.name}: step {step}/{self.steps}, {note}, {left:.0f} s left", highlight=False)


def watched(rows: Sequence[int], name: str) -> Iterable[int]:
    """The same rows, with a bar that follows them where there is a terminal."""
    return track(rows, name, console=console, disable=not console.is_terminal, transient=True)
