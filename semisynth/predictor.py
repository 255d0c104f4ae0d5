"""A run's classifier at work on images from anywhere, of which a batch is in memory at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from semisynth import calibration, evaluate
from semisynth.data import catalog
from semisynth.data.catalog import SPLITS
from semisynth.data.decode import Preparation, open_image, prepare
from semisynth.data.items import Item
from semisynth.data.stream import to_float
from semisynth.engine import resolve
from semisynth.errors import UserError, between
from semisynth.log import console, watched
from semisynth.recipes import restore

NAMED = 5  # unreadable images, or classes, that an error names


class Decision(NamedTuple):
    """The most probable class, or None; its probability, and that of each class."""

    label: str | None
    confidence: float
    probabilities: list[float]


@dataclass(frozen=True)
class Predictor:
    """The classifier of a run, its classes, how images are prepared for it, and its temperature."""

    model: nn.Module
    classes: tuple[str, ...]
    preparation: Preparation
    temperature: float
    device: torch.device

    @staticmethod
    def of(run: Path, device: str = "auto") -> Predictor:
        """Of a finished run, without its data; `UserError` if there is none."""
        on = resolve(device)
        _, model, classes, preparation = restore.classifier(run, on)
        return Predictor(model, classes, preparation, calibration.temperature(run), on)

    def logits(self, x: npt.NDArray[np.uint8]) -> Tensor:
        """Of prepared images (n, c, h, w), before the temperature: float64 (n, classes) on the CPU."""
        with torch.no_grad():
            z: Tensor = self.model(to_float(torch.from_numpy(x).to(self.device)))
        z = z.cpu().double()
        evaluate.check_logits(z, self.classes)
        return z

    def probabilities(self, z: Tensor) -> Tensor:
        """Of logits (n, classes) or (classes,), calibrated."""
        return (z / self.temperature).softmax(-1)

    def decide(self, z: Tensor, reject: float = 0.0) -> Decision:
        """Of the logits (classes,) of one image; a confidence below `reject` gives no label."""
        p: list[float] = self.probabilities(z).tolist()
        confidence = max(p)
        return Decision(self.classes[p.index(confidence)] if confidence >= reject else None, confidence, p)


class Answer(NamedTuple):
    """The logits (classes,) of an image, or why it cannot be read."""

    name: str
    logits: Tensor | None
    reason: str = ""


def answers(predictor: Predictor, images: Iterable[Item], total: int, batch: int) -> Iterator[Answer]:
    """The answer to each of so many images, in order; with a progress bar where there is a terminal."""
    found = _answers(predictor, images, batch)
    return (answer for answer, _ in zip(found, watched(range(total), "predicting"), strict=True))


def _answers(predictor: Predictor, images: Iterable[Item], batch: int) -> Iterator[Answer]:
    def pixels(item: Item) -> npt.NDArray[np.uint8] | UserError:
        try:
            return prepare(open_image(item.read(), item.name), predictor.preparation)
        except UserError as error:
            return error

    images = iter(images)
    with ThreadPoolExecutor() as pool:
        while some := list(itertools.islice(images, batch)):
            x = list(pool.map(pixels, some))
            good = [each for each in x if not isinstance(each, UserError)]
            z = iter(predictor.logits(np.stack(good)) if good else ())
            for item, each in zip(some, x, strict=True):
                yield Answer(item.name, None, str(each)) if isinstance(each, UserError) else Answer(item.name, next(z))


@dataclass
class Unreadable:
    """Counts the images that can be read, and keeps what is said of the others."""

    show: bool
    readable: int = 0

    def __post_init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def skip(self, answer: Answer) -> bool:
        """Whether this image cannot be read, which is told on stderr."""
        if answer.logits is not None:
            self.readable += 1
            return False
        self.rows.append({"file": answer.name, "reason": answer.reason})
        if self.show:
            console.print(f"left out: {answer.reason}", markup=False, highlight=False, soft_wrap=True)
        return True

    def check(self) -> None:
        """`UserError` unless an image could be read."""
        if not self.readable:
            named = " ".join(row["reason"] for row in self.rows[:NAMED])
            raise UserError(f"none of {len(self.rows)} images can be read. {named}".rstrip())


def measure(
    run: Path, source: str, *, split: str | None = None, batch: int = 64, device: str = "auto", show: bool = True
) -> dict[str, Any]:
    """What the classifier of a run gets right of other labeled images, by the names of their classes.

    As `evaluate.classify`, and "calibrated", with the run's temperature, and "unreadable". All labeled images count, or
    those of one split. `UserError` for a class that the run does not know.
    """
    between(1, 2**20, batch=batch)
    predictor, images, unreadable = Predictor.of(run, device), catalog.read(source), Unreadable(show)
    there = (images.labels >= 0) & (split is None or images.splits == SPLITS.index(split))
    rows = np.flatnonzero(there).tolist()
    known = {label: _known(images.classes[label], predictor, source) for label in set(images.labels[rows].tolist())}
    found = answers(predictor, (images.items[row] for row in rows), len(rows), batch)
    read = [(answer.logits, row) for answer, row in zip(found, rows, strict=True) if not unreadable.skip(answer)]
    unreadable.check()
    z = torch.stack([logits for logits, _ in read if logits is not None])
    y = torch.tensor([known[int(images.labels[row])] for _, row in read])
    return {**_measured(z, y, predictor.classes, predictor.temperature), "unreadable": unreadable.rows}


def measure_again(run: Path, split: str = "test", device: str = "auto") -> dict[str, Any]:
    """What the classifier of a run gets right of a split of its own data: as `evaluate.classify`, and "calibrated"."""
    on = resolve(device)
    _, model, data = restore.trained(run, on)
    images = data.pool if split == "train" else getattr(data, split)
    z = evaluate.logits(model, images, data.classes, device=on)
    return _measured(z, images.y.cpu(), data.classes, calibration.temperature(run))


def _measured(z: Tensor, y: Tensor, classes: Sequence[str], temperature: float) -> dict[str, Any]:
    calibrated = {"temperature": temperature, **calibration.reliability(z / temperature, y)}
    return {**evaluate.measure(z, y, classes), "calibrated": calibrated}


def _known(name: str, predictor: Predictor, source: str) -> int:
    if name not in predictor.classes:
        some = ", ".join(predictor.classes[:NAMED]) + ", ..." * (len(predictor.classes) > NAMED)
        raise UserError(f"{source} has the class '{name}', which the run does not know: it knows {some}. Rename it.")
    return predictor.classes.index(name)
