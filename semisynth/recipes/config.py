"""What a run is: its setting, its engine's options, its method and that method's options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_type_hints

from semisynth import methods
from semisynth.data.datasets import Reading as Reading
from semisynth.engine import Engine
from semisynth.errors import UserError, between, check, check_all, choose
from semisynth.generators.options import Options as Options
from semisynth.method import Method
from semisynth.models.tuning import Tuning, Ways

GENERATOR = "generator_options"
LARGEST_BATCH = 2**20  # images: more is a slip


@dataclass(frozen=True)
class Setting:
    """What is learned from what.

    Args:
        data: the data set: digits, glyphs, letters; digits-pool and digits-others, the digits of some writers and those
            of the others; generator:NAME for the labeled samples of a generator; or one's own images:
            a folder, a manifest (.csv, .tsv, .parquet), arrays (.npz), or hub:NAME
        labels_per_class: labels drawn from the data set's pool by the seed; 0 for all of them
        model: the classifier: small-cnn or wrn-DEPTH-FACTOR; with -bn behind it, BatchNorm instead of GroupNorm; or
            features from elsewhere: timm:NAME; hf:FOLDER or hub:ORG/NAME of transformers; one's own network by
            FILE.py:FACTORY or module:PACKAGE.MODULE:FACTORY (see docs/models.md)
        init: the classifier's first features: none (of our own and timm's random ones), foundation (trained on the
            labeled glyphs), a run directory, pretrained (timm's, which are fetched), or a FILE.safetensors of a
            network from elsewhere
        tune_features: how the features are trained: full; frozen, the head alone; lora, low-rank adapters and the head
        lora_rank: of the adapters
        generator: glyphs, letters, the run directory of a gan, vae or edm, or one from elsewhere: a folder of diffusers
            (or hub:OWNER/NAME), of a BigGAN, or of one's own network (see docs/generators.md)
        source: what reads labeled images as the generator's classes, for methods that ask for it: the run directory of
            a fit on --data generator:NAME; for a shipped generator it ships too
        judge: the run directory of a classifier whose doubt about an image tells method edm how hard it is
        unlabeled: where unlabeled images come from; auto: the generator if one is given, else the rest of the pool
            and what comes without labels; both: half of each batch from there, half from the generator
        steps: length of the training
        batch: labeled images of a step, which repeat when there are fewer
        unlabeled_batch: unlabeled or synthetic images of a step
    """

    data: str = "digits"
    labels_per_class: int = 0
    model: str = "small-cnn"
    init: str = "none"
    tune_features: Ways = "full"
    lora_rank: int = Tuning.rank
    generator: str | None = None
    source: str | None = None
    judge: str | None = None
    unlabeled: Literal["auto", "pool", "generator", "both", "none"] = "auto"
    steps: int = 400
    batch: int = 32
    unlabeled_batch: int = 64

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: give at least 1.")
        between(1, LARGEST_BATCH, batch=self.batch, unlabeled_batch=self.unlabeled_batch)
        if self.lora_rank != Tuning.rank and self.tune_features != "lora":
            raise UserError("lora_rank is read by --tune-features lora alone: leave it out.")

    @property
    def tuning(self) -> Tuning:
        """How the features are trained."""
        return Tuning(self.tune_features, self.lora_rank)


@dataclass(frozen=True)
class Config:
    """All that determines a run; its flat form is `config.json`."""

    setting: Setting
    engine: Engine
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    asked: Options = field(default_factory=Options)

    def flat(self) -> dict[str, Any]:
        """The content of `config.json`."""
        method = {"name": self.method, **self.options}
        nested = {GENERATOR: asdict(self.asked), "method": method}
        return asdict(self.setting) | asdict(self.reading) | asdict(self.engine) | nested

    @staticmethod
    def of(content: Mapping[str, Any], source: str = "the configuration") -> Config:
        """From the flat form; options left out take their defaults. `UserError` names an unknown field."""
        content = today(content)
        method = content.pop("method", {})
        check(method, dict, f"'method' in {source}")
        asked = content.pop(GENERATOR)
        check(asked, dict, f"'{GENERATOR}' in {source}")
        check_all(asked, get_type_hints(Options), f"'{GENERATOR}' of {source}")
        name = canonical(str(method.get("name", "")))
        options = {key: value for key, value in method.items() if key != "name"}
        known = method_options(name)
        hints = get_type_hints(Setting) | get_type_hints(Reading) | get_type_hints(Engine)
        check_all(content, hints, source)
        hints = get_type_hints(method_class(name).__init__)
        for key, value in options.items():
            choose(key, known, f"option of method '{name}' in {source}:")
            check(value, hints[key], f"'method.{key}' in {source}")
        setting = Setting(**{f.name: content[f.name] for f in fields(Setting) if f.name in content})
        reading = Reading(**{f.name: content[f.name] for f in fields(Reading) if f.name in content})
        engine = Engine(**{f.name: content[f.name] for f in fields(Engine) if f.name in content})
        return Config(setting, engine, name, {**known, **options}, reading, Options(**asked))


def today(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` of any version, in the terms of this one."""
    mirror = {"mirror": "no"} if content.get("mirror") == "auto" else {}
    asked = asdict(Options()) | content.get(GENERATOR, {})
    return {**asdict(Setting()), **asdict(Reading()), **asdict(Engine()), **content, **mirror, GENERATOR: asked}


def method_names() -> list[str]:
    """What --method may be."""
    return sorted(key.lower() for key, value in vars(methods).items() if inspect.isclass(value))


def canonical(name: str) -> str:
    """A method's name as it is kept: mp-ssl is mpssl, linear-probe linearprobe."""
    return name.lower().replace("-", "")


def method_class(name: str) -> type[Method]:
    """The method of that name; `UserError` suggests the nearest."""
    known: dict[str, Any] = {key.lower(): value for key, value in vars(methods).items() if inspect.isclass(value)}
    found: type[Method] = known[choose(canonical(name), method_names(), "method")]
    return found


def method_options(name: str) -> dict[str, Any]:
    """The options of a method and their defaults."""
    parameters = inspect.signature(method_class(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def method_parts(name: str) -> set[str]:
    """The names of what a recipe must give a method's constructor."""
    return {p.name for p in inspect.signature(method_class(name)).parameters.values() if p.default is p.empty}
