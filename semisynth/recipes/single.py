"""One fit: from a configuration to a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisynth import charts, distributed, environment, generators, insight, models, noise, weights
from semisynth.data import datasets
from semisynth.data.datasets import Dataset
from semisynth.data.stream import to_float
from semisynth.engine import resolve
from semisynth.errors import UserError
from semisynth.evaluate import classify
from semisynth.method import Batch
from semisynth.recipes.config import Config, method_class
from semisynth.recipes.materials import Materials


def fit(config: Config, out: Path, show: bool = True, name: str = "fit") -> dict[str, Any]:
    """Train as `config` says into the run directory `out`, or go on where it stopped; returns `result.json`.

    A finished run is left as it is. Raises `UserError`, before anything is written, when `out` cannot be written or
    holds another configuration, and when the configuration asks for what there is not.
    """
    began = distributed.start(resolve(config.engine.device))
    try:
        if (result := finished(config, out)) is not None:
            return result
        environment.commit()  # as the code is now, not when the run ends
        materials = Materials(config)
        distributed.barrier()  # no rank finds the directory half made, and none is made if a rank cannot begin
        if distributed.rank() == 0:
            _claim(config, out)
        distributed.barrier()
        model = _train(materials, out, show, name)
        if distributed.rank() == 0:
            _conclude(materials, model, out)
        distributed.barrier()
        return weights.read_json(out / "result.json")
    finally:
        if began:
            distributed.stop()


def finished(config: Config, out: Path) -> dict[str, Any] | None:
    """The result of a finished run of this configuration in `out`; `UserError` if another one lives there."""
    if not (out / "config.json").exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {out} exists and is not a run directory: give another one.")
        return None
    there, wanted = weights.read_json(out / "config.json"), config.flat()
    if there != wanted:
        differ = [
            f"{k} ({there.get(k)} there, {wanted.get(k)} asked)"
            for k in sorted({*there, *wanted})
            if there.get(k) != wanted.get(k)
        ]
        raise UserError(f"--out {out} holds a run of another configuration: {', '.join(differ)}. Give another --out.")
    return weights.read_json(out / "result.json") if (out / "result.json").exists() else None


def _claim(config: Config, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        weights.write_json(out / "config.json", config.flat())
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}. Give another --out.") from error


def _train(materials: Materials, out: Path, show: bool, name: str) -> nn.Module:
    config, data = materials.config, materials.data

    def validate(model: nn.Module) -> dict[str, float]:
        measured = classify(model, data.validation, data.classes, device=materials.device)
        return {"validation/accuracy": measured["accuracy"], "validation/loss": measured["loss"]}

    evaluate = validate if materials.method.task == "classify" else None
    return config.engine.fit(
        materials.method, materials.stream, config.setting.steps, out, evaluate, f"{name} {config.method}", show
    )


def _conclude(materials: Materials, model: nn.Module, out: Path) -> None:
    """Write weights, samples, what a study finds and, last, the result: a run with a result is finished."""
    config, data, method = materials.config, materials.data, materials.method
    weights.write_tensors(out / "model.safetensors", model.state_dict())
    like = torch.empty(0, device=materials.device)
    method.model.load_state_dict(model.state_dict())
    with torch.no_grad(), noise.seeded(config.engine.seed, "samples"):
        samples = method.eval().samples(10 * len(data.classes), like)
        if not samples and materials.generator is not None:
            samples = {"uniform": generators.sample(materials.generator, 100, like)}
    if samples:
        weights.write_tensors(out / "samples.safetensors", samples)
    if learned := _study(materials):
        weights.write_tensors(out / "insight.safetensors", learned)
    if method.task == "generate":
        with weights.replacing(out / "samples.png") as beside:
            beside.write_bytes(charts.sheet(samples["uniform"].cpu().numpy(), len(data.classes)))
    splits_of = {"test": data.test, "validation": data.validation} if method.task == "classify" else {}
    measured = {k: classify(model, images, data.classes, device=materials.device) for k, images in splits_of.items()}
    weights.write_json(
        out / "result.json",
        {
            "method": config.method,
            "task": method.task,
            "labels_per_class": config.setting.labels_per_class,
            "seed": config.engine.seed,
            "steps": config.setting.steps,
            "seconds": torch.load(out / "checkpoint.pt", weights_only=True)["seconds"],
            "finished": True,
            "shape": list(data.shape),
            "classes": len(data.classes),
            **measured,
            "environment": environment.describe(materials.device),
            "command": "semisynth fit --config config.json --out AGAIN",
        },
    )


def _study(materials: Materials) -> dict[str, Tensor]:
    """What the method, now in eval mode with the averaged classifier, tells of itself before some labeled images."""
    labeled, seed, device = materials.labeled, materials.config.engine.seed, materials.device
    order = torch.randperm(len(labeled), generator=torch.Generator().manual_seed(noise.derive(seed, "study")))
    some = labeled.subset(order[: insight.LABELED])
    x = to_float(some.x.to(device))
    with noise.seeded(seed, "insight"):
        return materials.method.study(Batch(x, some.y.to(device), x[:0], torch.empty(0, dtype=torch.int64)))


def trained(run: Path, device: torch.device) -> tuple[Config, nn.Module, Dataset]:
    """The configuration, the averaged classifier and the data of a finished run; `UserError` if there is none."""
    config = Config.of(weights.read_json(run / "config.json"), str(run / "config.json"))
    data = datasets.load(config.setting.data)
    if method_class(config.method).task != "classify":
        raise UserError(f"{run} holds a generator, not a classifier: see its samples with semisynth report {run}.")
    model = models.build(config.setting.model, data.shape[0], len(data.classes))
    weights.load_into(model, run / "model.safetensors")
    return config, model.to(device).eval(), data
