"""One fit: from a configuration to a run directory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisynth import calibration, card, charts, distributed, environment, generators, insight, noise, weights
from semisynth.data import datasets
from semisynth.data.datasets import Dataset
from semisynth.data.stream import to_float
from semisynth.engine import resolve
from semisynth.errors import UserError
from semisynth.evaluate import PIXELS, classify, evaluating
from semisynth.log import console
from semisynth.method import Batch, Update
from semisynth.models import foreign
from semisynth.recipes import directory, origin, restore
from semisynth.recipes.config import Config, today
from semisynth.recipes.materials import Materials
from semisynth.recipes.sampling import together
from semisynth.state import externals, same_externals

UNIFORM = 100  # images of a generator that no mapper asks for, which the report shows

TRIED = 1000  # images of the validation split that a method without labels is tried on, or a few more


def fit(
    config: Config,
    out: Path,
    show: bool = True,
    name: str = "fit",
    data: Dataset | None = None,
    study: bool = True,
) -> dict[str, Any]:
    """Train as `config` says into the run directory `out`, or go on where it stopped; returns `result.json`.

    data: in place of the data set that `config` names; study: whether the method tells of itself for the report, which
    changes nothing else. A finished run is left as it is. Raises `UserError`, before anything is written, when `out`
    cannot be written or holds a run of another configuration or on other data, and when the configuration asks for what
    there is not.
    """
    with distributed.joined(resolve(config.engine.device)):
        result = finished(config, out)
        # What is built in stays as it is, and is not loaded to see that a run is finished.
        if result is None or data is not None or datasets.is_own(config.setting.data):
            data = data or origin.load(config)
            origin.require(data, out)
        if result is not None:
            return result
        environment.commit()  # as the code is now, not when the run ends
        materials = Materials(config, data)
        foreign.require(materials.method, out, "--out")
        if show and distributed.rank() == 0:
            for line in materials.told:
                console.print(f"{config.setting.data}: {line}", markup=False, highlight=False, soft_wrap=True)
        distributed.barrier()  # no rank finds the directory half made, and none is made if a rank cannot begin
        if distributed.rank() == 0:
            _claim(materials, out)
        distributed.barrier()
        model = _train(materials, out, show, name)
        if distributed.rank() == 0:
            _conclude(materials, model, out, study)
        distributed.barrier()
        return weights.read_json(out / "result.json")


def finished(config: Config, out: Path) -> dict[str, Any] | None:
    """The result of a finished run of this configuration in `out`; `UserError` if another one lives there."""
    if not (out / "config.json").exists():
        if directory.taken(out, ("config.json",)):
            raise UserError(f"--out {out} exists and is not a run directory: give another one.")
        return None
    wanted = config.flat()
    there = today(weights.read_json(out / "config.json"))
    directory.require(out, "a run of another configuration", there, wanted, sorted({*there, *wanted}))
    return weights.read_json(out / "result.json") if (out / "result.json").exists() else None


def _claim(materials: Materials, out: Path) -> None:
    directory.make(out)
    weights.write_json(out / "config.json", materials.config.flat())
    foreign.write(materials.method, out)
    if not (out / origin.FILE).exists():
        origin.write(materials.data, out)


def _train(materials: Materials, out: Path, show: bool, name: str) -> nn.Module:
    config, data = materials.config, materials.data

    def validate(model: nn.Module) -> dict[str, float]:
        if materials.method.task == "represent":
            return _tried(materials)
        measured = classify(model, data.validation, data.classes, device=materials.device)
        return {"validation/accuracy": measured["accuracy"], "validation/loss": measured["loss"]}

    evaluate = validate if materials.method.task != "generate" and len(data.validation) else None
    return config.engine.fit(
        materials.method, materials.stream, config.setting.steps, out, evaluate, f"{name} {config.method}", show
    )


def _tried(materials: Materials) -> dict[str, float]:
    """What a method that learns without labels measures of itself, as it is now, on some images that it never sees."""
    data, method, seed = materials.data.validation, materials.method, materials.config.engine.seed
    size = max(1, PIXELS // math.prod(data.x.shape[2:]))
    update = next(update for update in method.updates().values() if isinstance(update, Update))
    found: list[Mapping[str, Tensor]] = []
    with torch.no_grad(), evaluating(method), noise.seeded(seed, "validation"):
        for x in itertools.islice(data.batches(size), 1 + TRIED // size):
            u = to_float(x.to(materials.device))
            none = torch.arange(0, device=u.device)
            losses = update.loss(Batch(u[:0], none, u, torch.full((len(u),), -1, device=u.device)))
            found.append({"loss": torch.stack([*losses.terms.values()]).sum(), **losses.metrics})
    means = torch.stack([torch.stack([part[name].float() for part in found]).mean() for name in found[0]])
    return {
        f"validation/{name}": value
        for name, value in zip(found[0], distributed.average([means])[0].tolist(), strict=True)
    }


def _conclude(materials: Materials, model: nn.Module, out: Path, study: bool) -> None:
    """Write weights, samples, what a study finds and, last, the result: a run with a result is finished."""
    config, data, method = materials.config, materials.data, materials.method
    weights.write_tensors(out / "model.safetensors", model.state_dict())
    like = torch.empty(0, device=materials.device)
    method.model.load_state_dict(model.state_dict())
    with torch.no_grad(), noise.seeded(config.engine.seed, "samples"):
        samples = method.eval().samples(10 * len(data.classes), like)
        if not samples and materials.generator is not None:
            samples = {"uniform": _uniform(materials, like)}
    if samples:
        weights.write_tensors(out / "samples.safetensors", samples)
    if study and (learned := _study(materials)):
        weights.write_tensors(out / "insight.safetensors", learned)
    if method.task == "generate":
        with weights.replacing(out / "samples.png") as beside:
            beside.write_bytes(charts.sheet(samples["uniform"].cpu().numpy(), len(data.classes)))
    splits_of = {"test": data.test, "validation": data.validation} if method.task == "classify" else {}
    measured = calibration.conclude(model, splits_of, data.classes, materials.device) if splits_of else {}
    result = {
        "method": config.method,
        "task": method.task,
        "labels_per_class": config.setting.labels_per_class,
        "seed": config.engine.seed,
        "steps": config.setting.steps,
        "seconds": torch.load(out / "checkpoint.pt", weights_only=True)["seconds"],
        "finished": True,
        "shape": list(data.shape),
        "classes": len(data.classes),
        "class_names": list(data.classes),
        "data": {**data.describe(), "notes": list(materials.told)},
        **({"externals": found} if (found := externals(method)) else {}),
        **measured,
        "environment": environment.describe(materials.device),
    }
    if method.task == "classify":
        card.write(config, result, out)
    weights.write_json(out / "result.json", result)


def _uniform(materials: Materials, like: Tensor) -> Tensor:
    """Images of the generator as it is, of which large ones are made some at a time."""
    assert materials.generator is not None and materials.made is not None, "there is a generator"
    z, y = generators.draw(materials.generator, UNIFORM, like)
    size = together(materials.made)
    asked = repeat(None) if y is None else y.split(size)
    return torch.cat([materials.generator(*part) for part in zip(z.split(size), asked)])  # noqa: B905


def _study(materials: Materials) -> dict[str, Tensor]:
    """What the method, now in eval mode with the averaged classifier, tells of itself before some labeled images."""
    labeled, seed, device = materials.labeled, materials.config.engine.seed, materials.device
    if not len(labeled):
        return {}
    order = torch.randperm(len(labeled), generator=torch.Generator().manual_seed(noise.derive(seed, "study")))
    some = labeled.subset(order[: insight.LABELED])
    x = to_float(torch.cat(list(some.batches(len(some)))).to(device))
    with noise.seeded(seed, "insight"):
        return materials.method.study(Batch(x, some.y.to(device), x[:0], torch.empty(0, dtype=torch.int64)))


def again(run: Path, device: torch.device) -> Materials:
    """What a finished run was made of, its method in the state of the last step and in eval mode.

    `UserError` if it is not finished, or its data or generator are no longer there, or no longer what they were.
    """
    config = restore.configuration(run)
    restore.require_finished(run)
    materials = Materials(replace(config, engine=replace(config.engine, device=str(device))))
    origin.require(materials.data, run)
    content = restore.checkpoint(run)
    if not same_externals(materials.method, content["externals"]):
        raise UserError(f"{run} was made with another generator, teacher or autoencoder than is there now: restore it.")
    materials.method.load_state_dict(content["method"])
    materials.method.to(device).eval()
    return materials
