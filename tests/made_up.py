"""Run directories as the engine writes them, with numbers that a test can choose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from semisynth import models
from semisynth.weights import write_tensors

CONFUSION = [[4, 1], [2, 3]]


def config(seed: int = 0, labels: int = 2, method: str = "mpssl", **other: Any) -> dict[str, Any]:
    options = {"name": method, "threshold": other.pop("threshold", 0.95)}
    base = {"data": "digits", "labels_per_class": labels, "init": "foundation", "method": options, "seed": seed}
    return {**base, "steps": 100, **other}


def result(accuracy: float = 0.7, **other: Any) -> dict[str, Any]:
    test = {
        "images": 10,
        "accuracy": accuracy,
        "interval": [0.397, 0.892],
        "loss": 0.625,
        "calibration_error": 0.0412,
        "per_class": {"cat & dog": {"images": 5}, "ship": {"images": 5}},
        "confusion": CONFUSION,
    }
    environment = {"python": "3.11.2", "device": "cpu"}
    found = {"seconds": 40.0, "finished": True, "test": test, "calibration": calibration(), "environment": environment}
    return {**found, **other}


def calibration(temperature: float = 2.0, **other: Any) -> dict[str, Any]:
    """Of ten test images: too sure as trained, then less so."""
    fitted = {"temperature": temperature, "images": 20, "bounded": False, "fitted_on": "validation"}
    before, after = diagram({14: (10, 0.98, 0.7)}, error=0.28), diagram({9: (4, 0.65, 0.5), 12: (6, 0.83, 5 / 6)})
    return {**fitted, "test": {"before": before, "after": after}, **other}


def diagram(bins: dict[int, tuple[int, float, float]], error: float = 0.06, loss: float = 0.6) -> dict[str, Any]:
    """A reliability diagram with these bins: their images, confidence and accuracy."""
    columns = [[bins[i][c] if i in bins else (None if c else 0) for i in range(15)] for c in range(3)]
    return {"loss": loss, "error": error, **dict(zip(("count", "confidence", "accuracy"), columns, strict=True))}


def classifier(path: Path, classes: Sequence[str], temperature: float = 2.0, **told: Any) -> Path:
    """The run directory of an untrained classifier of gray images of 8x8 pixels, which has opinions all the same."""
    model = models.build("small-cnn", 1, len(classes))
    with torch.no_grad():
        usual = model.features(torch.rand(50, 1, 8, 8) * torch.rand(50, 1, 1, 1)).mean(0)
        model.head.weight.mul_(30)
        model.head.bias.copy_(-model.head.weight @ usual)  # so that not all images are of one class
    path.mkdir(parents=True)
    write_tensors(path / "model.safetensors", model.state_dict())
    data = {"source": "images", "size": [8, 8], "channels": 1, "fit": "crop"}
    known = {"shape": [1, 8, 8], "classes": len(classes), "class_names": list(classes), "data": data}
    result = {"finished": True, **known, "calibration": {"temperature": temperature}, **told}
    (path / "result.json").write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    (path / "config.json").write_text(json.dumps({"data": "digits", "method": {"name": "supervised"}, "seed": 0}))
    return path


def log(*validation: float, shift: float = 0.0) -> list[dict[str, Any]]:
    return [
        {
            "step": 50 * i,
            "seconds": 1.5 * i,
            "time/classifier": 0.2,
            "time/data": 0.05,
            "lr": 0.03,
            "classifier/supervised": 1.0 / i + shift,
            "validation/accuracy": share,
        }
        for i, share in enumerate(validation, 1)
    ]


def write(
    path: Path,
    config: dict[str, Any],
    result: dict[str, Any] | None = None,
    log: list[dict[str, Any]] | None = None,
    images: int = 0,
) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log or []))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    if images:
        sheet = np.linspace(0, 1, images * 16, dtype=np.float32).reshape(images, 1, 4, 4)
        save_file({"uniform": sheet, "mapped": 1 - sheet}, path / "samples.safetensors")
    return path


def insight(path: Path, **other: Any) -> None:
    """What a study of two classes over three foundation classes found, added to a run; None leaves a tensor out."""
    bright = np.full((1, 1, 4, 4), 200, np.uint8)
    found: dict[str, Any] = {
        "angle": np.array([[0, 10, 20, 30, 40], [5, 15, 25, 35, 45]], np.float32),
        "mixture": np.array([[0.7, 0.25, 0.05], [0.1, 0.3, 0.6]], np.float32),
        "top": np.array([[0, 1], [2, 1]]),
        "foundation": np.array([0, 1, 2]),
        "portraits": bright.repeat(3, 0),
        "asked": np.array([0, 1, 0, 1]),
        "images": bright.repeat(4, 0),
        "neighbours": bright.repeat(4, 0),
        "neighbour_classes": np.array([1, 1, 0, 0]),
        "effect": np.array([0.002, -0.03, 0.0123, -0.001], np.float32),
        "error": np.array([0.001, 0.002, 0.003, 0.004], np.float32),
        "pixels/labeled": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "pixels/mapped": np.array([0.05, 0.15, 0.2, 0.5], np.float32),
        "pixels/uniform": np.array([0.5, 0.5, 0.5, 0.24], np.float32),
        "features/labeled": np.array([1.0, 2.0, 3.0, 4.0], np.float32),
        "features/mapped": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "features/uniform": np.array([5.0, 5.0, 5.0, 5.0], np.float32),
    }
    save_file({k: v for k, v in {**found, **other}.items() if v is not None}, path / "insight.safetensors")
