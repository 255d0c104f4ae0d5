"""What is here to work with, and whether it works: versions, devices, the cache, and a small run from end to end."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from semisynth.api import Trained
from semisynth.data import cache, datasets
from semisynth.errors import UserError
from semisynth.method import Batch
from semisynth.recipes import single
from semisynth.recipes.config import Config
from semisynth.recipes.materials import Materials
from semisynth.weights import write_json

# What may be missing: its package, what it is for, and how to get it.
OPTIONAL = (
    ("pyarrow", "Parquet manifests, and images in Parquet", "pip install 'semisynth[parquet]'"),
    ("datasets", "--data hub:NAME", "pip install 'semisynth[hub]'"),
    ("diffusers", "edm with a U-Net, dpm++ or in a latent space", "pip install 'semisynth[diffusers]'"),
    ("transformers", "--model hf:...", "pip install 'semisynth[transformers]'"),
    ("timm", "--model timm:...", "pip install 'semisynth[timm]'"),
    ("peft", "--tune-features lora", "pip install 'semisynth[peft]'"),
    ("s3fs", "--data s3://...", "pip install s3fs"),
    ("gcsfs", "--data gs://...", "pip install gcsfs"),
)
CLASSES, IMAGES, STEPS, CUT = 3, 6, 4, 3  # of the small run: images of a class; it is cut off at a step
MIB = 2**20


@dataclass(frozen=True)
class Check:
    """One step of the self-test, told in a sentence."""

    name: str
    passed: bool
    told: str
    seconds: float


def examine() -> dict[str, Any]:
    """All of it, as plain values ready for JSON; "passed" says whether the self-test did."""
    checks = self_test()
    return {
        "versions": {"python": platform.python_version(), "platform": platform.platform(), **_versions()},
        "optional": [
            {"name": name, "version": _version(name), "for": what, "get": how} for name, what, how in OPTIONAL
        ],
        "devices": _devices(),
        "threads": torch.get_num_threads(),
        "cache": {"path": str(cache.folder()), "bytes": _size(cache.folder())},
        "self_test": [asdict(check) for check in checks],
        "passed": all(check.passed for check in checks) and len(checks) == len(CHECKS),
    }


def told(found: dict[str, Any]) -> str:
    """The same for people."""
    parts = {
        "versions": [f"{name} {value}" for name, value in found["versions"].items()],
        "optional": [
            f"{part['name']} {part['version'] or 'is missing: ' + part['get']}, for {part['for']}"
            for part in found["optional"]
        ],
        "devices": [f"{name}: {what}" for name, what in found["devices"].items()] + [f"threads: {found['threads']}"],
        "cache": [f"{found['cache']['path']}, {found['cache']['bytes'] / MIB:.1f} MiB"],
        "self-test": [
            f"{'passed' if check['passed'] else 'FAILED'} {check['name']}, {check['seconds']:.1f} s: {check['told']}"
            for check in found["self_test"]
        ],
    }
    return "\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in parts.items())


def self_test() -> list[Check]:
    """Cache, fit, resume and predict in a temporary directory; what comes after a failure is not tried."""
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="semisynth-") as folder:
        for name, attempt in CHECKS.items():
            began = time.perf_counter()
            try:
                passed, sentence = True, attempt(Path(folder))
            except Exception as error:  # whatever it is, it is what was asked for
                passed, sentence = False, f"{type(error).__name__}: {error}"
            checks.append(Check(name, passed, sentence, round(time.perf_counter() - began, 2)))
            if not passed:
                break
    return checks


def _cache(folder: Path) -> str:
    """Before the small run has a cache of its own."""
    place = cache.folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return f"{place} can be written."
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror}): set SEMISYNTH_CACHE to a folder.") from error


def _fit(folder: Path) -> str:
    digits = datasets.load("digits").pool
    assert isinstance(digits.x, torch.Tensor), "they are built in"
    for label in range(CLASSES):
        (folder / "images" / f"class {label}").mkdir(parents=True)
        for number, image in enumerate(digits.x[digits.y == label][:IMAGES, 0].numpy()):
            Image.fromarray(image).save(folder / "images" / f"class {label}" / f"{number}.png")
    with _own_cache(folder):
        result = single.fit(_config(folder), folder / "whole", show=False, study=False)
    return f"{STEPS} steps of mpssl on {CLASSES * IMAGES} PNG images, in {result['seconds']:.1f} s."


def _resume(folder: Path) -> str:
    config, out = _config(folder), folder / "cut"
    with _own_cache(folder):
        materials = Materials(config)
        out.mkdir()
        write_json(out / "config.json", config.flat())

        def stream(step: int) -> Batch:
            if step == CUT:
                raise _CutOff
            return materials.stream(step)

        with contextlib.suppress(_CutOff):
            config.engine.fit(materials.method, stream, STEPS, out)
        single.fit(config, out, show=False, study=False)
    whole, cut = ((folder / run / "model.safetensors").read_bytes() for run in ("whole", "cut"))
    if whole != cut:
        raise UserError(f"cut off at step {CUT} and resumed, the run has other weights than the one left alone.")
    return f"cut off at step {CUT} and resumed, the run has the same bytes as the one left alone."


class _CutOff(Exception):
    """What happens to the run."""


def _predict(folder: Path) -> str:
    found = list(Trained(folder / "whole").predict(folder / "images"))
    if len(found) != CLASSES * IMAGES:
        raise UserError(f"{len(found)} predictions of {CLASSES * IMAGES} images.")
    sums = [sum(image.probabilities.values()) for image in found]
    if not np.allclose(sums, 1):
        raise UserError(f"the probabilities of an image sum to {min(sums)} up to {max(sums)}.")
    return f"{len(found)} images have a label, and probabilities that sum to 1."


CHECKS: dict[str, Callable[[Path], str]] = {"cache": _cache, "fit": _fit, "resume": _resume, "predict": _predict}


def _config(folder: Path) -> Config:
    sizes = {"steps": STEPS, "batch": 8, "unlabeled_batch": 8, "checkpoint_every": CUT - 1}
    own = {"data": str(folder / "images"), "generator": "glyphs"}
    return Config.of({**sizes, **own, "method": {"name": "mpssl"}})


@contextlib.contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """The small run leaves nothing in the user's cache."""
    before = os.environ.get("SEMISYNTH_CACHE")
    os.environ["SEMISYNTH_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        del os.environ["SEMISYNTH_CACHE"]
        if before is not None:
            os.environ["SEMISYNTH_CACHE"] = before


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    """Of this package and of those that it needs."""
    needed = [need for need in metadata.requires("semisynth") or () if "extra ==" not in need]
    names = ["semisynth", *(re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needed)]
    return {name: _version(name) for name in names}


def _devices() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    found = {"cpu": f"{platform.processor() or platform.machine()}, {cores} cores"}
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found[f"cuda:{number}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    return found


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
