"""The commands as Python: from a folder of images to predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt

from semisynth import predictor, report
from semisynth.data import datasets, given, npz
from semisynth.data.datasets import Dataset, Reading
from semisynth.data.items import Arrays
from semisynth.errors import UserError, between, check_all
from semisynth.recipes import single
from semisynth.recipes.config import Config
from semisynth.weights import read_json


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of an image: its most probable class, and the probability of each.

    label: None where the confidence, the probability of that class, is below what was asked for, or where the image
    cannot be read; then `reason` tells why, and there are no probabilities.
    """

    file: str
    label: str | None
    confidence: float
    probabilities: Mapping[str, float]
    reason: str = ""


class Trained:
    """A finished run: its classifier, and in `result` what was measured of it.

    >>> import numpy as np
    >>> run = fit("digits", "runs/a", "supervised", labels_per_class=2, steps=2, show=False)
    >>> run.result["test"]["images"]
    500
    >>> [image] = run.predict(np.zeros((1, 16, 16)))
    >>> image.label in run.classes, sorted(image.probabilities) == sorted(run.classes)
    (True, True)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.result = read_json(self.path / "result.json")

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.result["class_names"])

    def predict(
        self, images: str | Path | npt.NDArray[Any], *, reject: float = 0.0, batch: int = 64, device: str = "auto"
    ) -> Iterator[Prediction]:
        """A prediction for each image of a file, a folder, a manifest, or an array (n, h, w) or (n, h, w, 3), in order.

        Arrays are uint8, or floats in [0, 1]. A confidence below `reject` gives no label. `batch` images are in memory
        at a time. `UserError` if there is no image, and for an array of another shape, type or range.
        """
        check_all({"reject": reject, "batch": batch}, {"reject": float, "batch": int}, "predict")
        between(0, 1, reject=reject)
        between(1, 2**20, batch=batch)
        items = _arrays(images) if isinstance(images, np.ndarray) else given.images(str(images))
        by = predictor.Predictor.of(self.path, device)
        return (_prediction(by, answer, reject) for answer in predictor.answers(by, items, len(items), batch))

    def evaluate(self, data: str | Path, *, device: str = "auto") -> dict[str, Any]:
        """What the classifier gets right of other labeled images: accuracy with interval, calibration, per class."""
        return predictor.measure(self.path, str(data), device=device)

    def report(self, out: str | Path) -> Path:
        """Write one HTML page about the run to the file `out`."""
        report.write([self.path], Path(out))
        return Path(out)


def fit(
    data: str | Path | Dataset,
    out: str | Path,
    method: str,
    *,
    method_options: Mapping[str, Any] | None = None,
    show: bool = True,
    **options: Any,
) -> Trained:
    """Train a classifier on `data` into the run directory `out`, or go on where that stopped, as `semisynth fit` does.

    data: a folder (`train/<class>/*` or `<class>/*`, and `unlabeled/*`), a manifest, an .npz file, "hub:NAME", a set
    that is built in, or what `load_data` gave; method_options: as {"threshold": 0.9}; options: those of the command,
    such as labels_per_class=2, generator="glyphs", steps=1000, size=32. `UserError` for what cannot be.

    >>> run = fit("digits", "runs/b", "fixmatch", labels_per_class=4, steps=2, show=False)
    >>> Trained("runs/b").result == run.result
    True
    """
    loaded = data if isinstance(data, Dataset) else None
    told = {"data": str(data)} if loaded is None else {"data": loaded.name, **_reading(loaded, options)}
    content = {**options, **told, "method": {"name": method, **(method_options or {})}}
    config = Config.of(content, "the options")
    single.fit(config, Path(out), show=show, data=loaded)
    return Trained(out)


def load_data(source: str | Path, **reading: Any) -> Dataset:
    """The images at `source` as `fit` reads them, to be looked at first; reading: size, channels, fit, holdout, ...

    >>> digits = load_data("digits")
    >>> digits.shape, len(digits.classes), len(digits.pool)
    ((1, 16, 16), 10, 997)
    """
    check_all(reading, get_type_hints(Reading), "load_data")
    return datasets.load(str(source), Reading(**reading))


def _reading(data: Dataset, options: Mapping[str, Any]) -> dict[str, Any]:
    """How data were read, for the configuration; `UserError` for an option that says otherwise."""
    found = asdict(data.reading)
    if data.preparation and options.get("generator") and not data.reading.size:
        found["size"] = data.shape[1]  # left open, it would be that of the generator
    for name in found.keys() & options.keys():
        if options[name] != found[name]:
            raise UserError(
                f"{name} is {options[name]!r}, but the data were read with {found[name]!r}: give it to load_data."
            )
    return found


def _arrays(images: npt.NDArray[Any]) -> Arrays:
    if images.ndim and not images.size:
        raise UserError(f"predict: the array of shape {images.shape} holds no image.")
    return Arrays(npz.eight_bits("predict", images)[0], "")


def _prediction(by: predictor.Predictor, answer: predictor.Answer, reject: float) -> Prediction:
    if answer.logits is None:
        return Prediction(answer.name, None, 0.0, {}, answer.reason)
    label, confidence, p = by.decide(answer.logits, reject)
    return Prediction(answer.name, label, confidence, dict(zip(by.classes, p, strict=True)))
