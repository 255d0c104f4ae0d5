"""One fit: from a configuration to a run directory."""

from __future__ import annotations

import inspect
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from torch import nn

import semisynth
from semisynth import charts, distributed, generators, methods, models, noise, weights
from semisynth.augment.policies import Strong, Weak
from semisynth.data import datasets, splits
from semisynth.data.datasets import Dataset, Images
from semisynth.data.stream import Pool, Source, Stream, Synthetic
from semisynth.engine import Engine, resolve
from semisynth.errors import UserError, check, choose
from semisynth.evaluate import classify
from semisynth.method import Method


@dataclass(frozen=True)
class Setting:
    """What is learned from what.

    Args:
        data: the data set: digits, glyphs or letters
        labels_per_class: labels drawn from the data set's pool by the seed; 0 for all of them
        model: the classifier: small-cnn or wrn-DEPTH-FACTOR; with -bn behind it, BatchNorm instead of GroupNorm
        init: the classifier's first features: none, foundation (trained on the labeled glyphs), or a run directory
        generator: glyphs, letters, or the run directory of a gan
        unlabeled: where unlabeled images come from; auto: the generator if one is given, else the rest of the pool
        steps: length of the training
        batch: labeled images of a step, which repeat when there are fewer
        unlabeled_batch: unlabeled or synthetic images of a step
    """

    data: str = "digits"
    labels_per_class: int = 0
    model: str = "small-cnn"
    init: str = "none"
    generator: str | None = None
    unlabeled: Literal["auto", "pool", "generator", "none"] = "auto"
    steps: int = 400
    batch: int = 32
    unlabeled_batch: int = 64

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "unlabeled_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give at least 1.")


@dataclass(frozen=True)
class Config:
    """All that determines a run; its flat form is `config.json`."""

    setting: Setting
    engine: Engine
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return asdict(self.setting) | asdict(self.engine) | {"method": {"name": self.method, **self.options}}

    @staticmethod
    def of(content: Mapping[str, Any], source: str = "the configuration") -> Config:
        """From the flat form; options left out take their defaults. `UserError` names an unknown field."""
        content = dict(content)
        method = content.pop("method", {})
        check(method, dict, f"'method' in {source}")
        name = str(method.get("name", ""))
        options = {key: value for key, value in method.items() if key != "name"}
        known = method_options(name)
        hints = get_type_hints(Setting) | get_type_hints(Engine)
        for key, value in content.items():
            check(value, hints[choose(key, hints, f"field in {source}:")], f"'{key}' in {source}")
        hints = get_type_hints(method_class(name).__init__)
        for key, value in options.items():
            choose(key, known, f"option of method '{name}' in {source}:")
            check(value, hints[key], f"'method.{key}' in {source}")
        setting = Setting(**{f.name: content[f.name] for f in fields(Setting) if f.name in content})
        engine = Engine(**{f.name: content[f.name] for f in fields(Engine) if f.name in content})
        return Config(setting, engine, name, {**known, **options})


def method_names() -> list[str]:
    """What --method may be."""
    return sorted(key.lower() for key, value in vars(methods).items() if inspect.isclass(value))


def method_class(name: str) -> type[Method]:
    """The method of that name; `UserError` suggests the nearest."""
    known: dict[str, Any] = {key.lower(): value for key, value in vars(methods).items() if inspect.isclass(value)}
    found: type[Method] = known[choose(name, method_names(), "method")]
    return found


def method_options(name: str) -> dict[str, Any]:
    """The options of a method and their defaults."""
    parameters = inspect.signature(method_class(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def method_parts(name: str) -> set[str]:
    """The names of what a recipe must give a method's constructor."""
    return {p.name for p in inspect.signature(method_class(name)).parameters.values() if p.default is p.empty}


class Materials:
    """What a configuration names, loaded and built: data, labels, generator, method, stream."""

    def __init__(self, config: Config) -> None:
        self.config, setting, seed = config, config.setting, config.engine.seed
        self.device = resolve(config.engine.device)
        self.data = datasets.load(setting.data)
        self.labeled, self.rest = self._draw(self.data.pool, setting.labels_per_class, seed)
        parts = sorted(method_parts(config.method))  # a set has no order, and the weights are drawn in it
        self.generator = generators.Permuted(generators.load(setting.generator), seed) if setting.generator else None
        if "generator" in parts and self.generator is None:
            raise UserError(
                f"method '{config.method}' needs --generator: {', '.join(generators.NAMES)} or a run directory."
            )
        torch.manual_seed(noise.derive(seed, "initial weights"))
        self.method = method_class(config.method)(**{part: self._part(part) for part in parts}, **config.options)
        config.engine.optimizers(self.method.updates())  # tells of a rate that cannot be before anything is written
        self.stream = Stream(
            self.labeled,
            self._unlabeled(),
            batch=self._share("batch"),
            steps=setting.steps,
            seed=seed,
            device=self.device,
        )

    def _draw(self, pool: Images, per_class: int, seed: int) -> tuple[Images, Images]:
        if per_class == 0:
            return pool, pool
        labeled, rest = splits.draw_labels(pool.y, per_class, noise.derive(seed, "labels"))
        return pool.subset(labeled), pool.subset(rest)

    def _part(self, name: str) -> Any:
        setting, data = self.config.setting, self.data
        parts: dict[str, Callable[[], Any]] = {
            "model": lambda: self._model(setting, data),
            "generator": lambda: self.generator,
            "weak": lambda: Weak(data.flip),
            "strong": lambda: Strong(data.flip),
            "shape": lambda: data.shape,
            "classes": lambda: len(data.classes),
            "synthetic": lambda: setting.unlabeled_batch,
        }
        return parts[name]()

    def _model(self, setting: Setting, data: Dataset) -> nn.Module:
        model = models.build(setting.model, data.shape[0], len(data.classes))
        if setting.init != "none":
            weights.load_into(model.features, models.foundation(setting.init, setting.model), "features.")
        return model

    def _share(self, name: str) -> int:
        size: int = getattr(self.config.setting, name)
        distributed.share(size, name)
        return size

    def _unlabeled(self) -> Source | None:
        """Where the stream's `u` comes from, by the setting or, for "auto", by what there is."""
        setting, seed, name = self.config.setting, self.config.engine.seed, self.config.method
        source = setting.unlabeled
        if source == "auto":
            source = ("pool" if self.generator is None else "generator") if self.method.reads_u else "none"
        if self.method.reads_u == (source == "none"):
            told = (
                "needs unlabeled images: --unlabeled pool or generator"
                if self.method.reads_u
                else ("reads no unlabeled images: leave --unlabeled out")
            )
            raise UserError(f"method '{name}' {told}.")
        batch = self._share("unlabeled_batch")
        if source == "generator":
            if self.generator is None:
                raise UserError("--unlabeled generator needs --generator.")
            generator, like = self.generator.to(self.device), torch.empty(0, device=self.device)
            return Synthetic(lambda n: generators.sample(generator, n, like), batch, seed)
        return Pool(self.rest, batch, seed, self.device) if source == "pool" else None


def fit(config: Config, out: Path, show: bool = True, name: str = "fit") -> dict[str, Any]:
    """Train as `config` says into the run directory `out`, or go on where it stopped; returns `result.json`.

    A finished run is left as it is. Raises `UserError`, before anything is written, when `out` cannot be written or
    holds another configuration, and when the configuration asks for what there is not.
    """
    began = distributed.start(resolve(config.engine.device))
    try:
        if (result := finished(config, out)) is not None:
            return result
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
    """Write weights, samples and, last, the result: a run with a result is finished."""
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
    if method.task == "generate":
        (out / "samples.png").write_bytes(charts.sheet(samples["uniform"].cpu().numpy(), len(data.classes)))
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
            "environment": environment(materials.device),
            "command": "semisynth fit --config config.json --out AGAIN",
        },
    )


def trained(run: Path, device: torch.device) -> tuple[Config, nn.Module, Dataset]:
    """The configuration, the averaged classifier and the data of a finished run; `UserError` if there is none."""
    config = Config.of(weights.read_json(run / "config.json"), str(run / "config.json"))
    data = datasets.load(config.setting.data)
    if method_class(config.method).task != "classify":
        raise UserError(f"{run} holds a generator, not a classifier: see its samples with semisynth report {run}.")
    model = models.build(config.setting.model, data.shape[0], len(data.classes))
    weights.load_into(model, run / "model.safetensors")
    return config, model.to(device).eval(), data


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and commit: what a figure depends on besides its configuration."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "semisynth": semisynth.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with "+" if it was changed; None outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
