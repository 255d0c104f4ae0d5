"""DPT: a classifier labels images for a diffusion model, which makes images for a classifier.

You, Zhong, Bao, Sun, Li and Zhu, "Diffusion models and semi-supervised learners benefit mutually with few labels",
NeurIPS 2023 (arXiv 2302.10586). Each stage lies in a directory of its own whose name holds a hash of all that
determines it: what is finished is taken as it is, and what an option does not change is not made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from semisynth import generators, noise, weights
from semisynth.data import parquet
from semisynth.data.datasets import Images, Reading
from semisynth.engine import resolve
from semisynth.errors import UserError, between
from semisynth.evaluate import logits
from semisynth.generators.diffusion import Diffusion
from semisynth.recipes import directory, origin, single
from semisynth.recipes.config import Config, method_class
from semisynth.recipes.materials import drawn
from semisynth.recipes.sampling import latents, prepared

SHARD = 256  # images that are made together, whatever the number of processes: so the bytes are the same
DATA = "data.parquet"


@dataclass(frozen=True)
class DPT:
    """All that determines the stages.

    Args:
        data: the data set, as fit's --data
        labels_per_class: labels drawn from its pool by the seed
        stage1: the method of both classifiers, which reads the rest of the pool: fixmatch, freematch, ...
        init: the classifiers' first features, as fit's --init
        model: the classifier's network, as fit's --model
        steps: of each classifier's training
        diffusion_steps: of the diffusion model's training
        images_per_class: K, images made of each class; 0 trains the second classifier without any, for comparison
        guidance: w, weight of the class in sampling, 1 for none
        sampler_steps: of Heun's method
        arm: careful keeps the true labels and gives real images a share of the labeled batch; faithful does as
            published, overwriting labels with predictions and letting synthetic images prevail by their number
        real_share: of the labeled batch of the second classifier, in the careful arm
        rounds: how often classifier and diffusion model teach each other
        seed: of the labels and of all training
        device: as fit's --device
        reading: how one's own images are read
        classifier: more options of the classifiers' method, and lr
        diffusion: more options of the method edm
    """

    data: str = "digits"
    labels_per_class: int = 4
    stage1: str = "fixmatch"
    init: str = "none"
    model: str = "small-cnn"
    steps: int = 400
    diffusion_steps: int = 4000
    images_per_class: int = 128
    guidance: float = 1.0
    sampler_steps: int = 18
    arm: Literal["careful", "faithful"] = "careful"
    real_share: float = 0.5
    rounds: int = 1
    seed: int = 0
    device: str = "auto"
    reading: Reading = field(default_factory=Reading)
    classifier: Mapping[str, Any] = field(default_factory=dict)
    diffusion: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        between(0, 10**6, images_per_class=self.images_per_class)
        between(1, 10**6, labels_per_class=self.labels_per_class)
        between(1, 100, rounds=self.rounds)
        between(0, 1, real_share=self.real_share)
        if method_class(self.stage1).task != "classify":
            raise UserError(f"--stage1 {self.stage1} trains no classifier: give a method that does, such as fixmatch.")


class Stage(NamedTuple):
    """A finished stage: its directory, and the key that stands for all that determined it."""

    path: Path
    key: str


def dpt(options: DPT, out: Path) -> dict[str, Any]:
    """Run all stages below `out`, or those that are missing; returns what is told of them, also in `out`/dpt.json."""
    work = Work(options, out)
    directory.make(out)
    classifier = work.classifier(None, 0)
    stages = {"classifier-0": classifier}
    for number in range(1, options.rounds + 1):
        made = work.taught(classifier) if options.images_per_class else {}
        classifier = work.classifier(made.get("images"), number)
        stages |= {f"{name}-{number}": stage for name, stage in {**made, "classifier": classifier}.items()}
    told = {"options": asdict(options), "stages": {name: work.told(name, stage) for name, stage in stages.items()}}
    weights.write_json(out / "dpt.json", told)
    return told


class Work:
    """The stages of one set of options; each method runs a stage unless it is finished."""

    def __init__(self, options: DPT, out: Path) -> None:
        self.options, self.out = options, out
        given = {"data": options.data, "labels_per_class": options.labels_per_class, **asdict(options.reading)}
        self.config = self._config(options.stage1, options.classifier, **given)
        self.data = origin.load(self.config)
        self.labeled, self.rest = drawn(self.data, options.labels_per_class, options.seed)
        # The data sets that are written here are read as they are.
        channels, size, _ = self.data.shape
        self.written = {"size": size, "channels": "gray" if channels == 1 else "rgb", "holdout": 0.0}
        self.written["mirror"] = "yes" if self.data.flip else "no"

    def classifier(self, images: Stage | None, number: int) -> Stage:
        """Of the labeled and unlabeled images and, after the first, of those that were made, if any were."""
        options = self.options
        kinds: dict[str, Any] = {"model": options.model, "init": options.init, "steps": options.steps}
        if number == 0:
            config = replace(self.config, setting=replace(self.config.setting, **kinds))
            return self._fit("classifier", config, [])
        asked = {"arm": options.arm, "share": self._share()} if images else {"base": self.config.flat()}
        data = self._stage("data", asked, [images] if images else [], self._rows(images))
        setting = {**self.written, "data": str(data.path / DATA), "labels_per_class": 0, **kinds}
        return self._fit("classifier", self._config(options.stage1, options.classifier, **setting), [data])

    def taught(self, classifier: Stage) -> dict[str, Stage]:
        """What a classifier teaches: labels, the diffusion model of these, and its images."""
        labels = self.labels(classifier)
        diffusion = self.diffusion(labels)
        return {"labels": labels, "diffusion": diffusion, "images": self.images(diffusion)}

    def labels(self, classifier: Stage) -> Stage:
        """All images for training, with the classes that the classifier takes them for or, careful, that are known."""

        def make() -> Iterable[list[Any]]:
            _, model, _ = single.trained(classifier.path, resolve(self.options.device))
            images = self.labeled.join(self.rest)
            y = logits(model, images, self.data.classes, device=resolve(self.options.device)).argmax(1)
            if self.options.arm == "careful":
                y[: len(self.labeled)] = self.labeled.y
            yield from _rows(Images(images.x, y), self.data.classes, "train")

        return self._stage("labels", {"arm": self.options.arm}, [classifier], make)

    def diffusion(self, labels: Stage) -> Stage:
        """The class-conditional model of these labels."""
        setting = {**self.written, "data": str(labels.path / DATA), "steps": self.options.diffusion_steps, "batch": 64}
        return self._fit("diffusion", self._config("edm", self.options.diffusion, **setting), [labels])

    def images(self, diffusion: Stage) -> Stage:
        """Exactly so many images of each class that has labels, in shards that are finished one after the other."""
        options = self.options
        asked = {"guidance": options.guidance, "steps": options.sampler_steps, "each": options.images_per_class}
        stage = self._named("images", asked, [diffusion])
        names, device = generators.class_names(str(diffusion.path)), resolve(options.device)
        total = options.images_per_class * len(names)
        missing = [i for i in range(-(-total // SHARD)) if not self._shard(stage, i).exists()]
        if missing:
            directory.make(stage.path)
            loaded = generators.load(str(diffusion.path))
            assert isinstance(loaded, Diffusion)
            generator = Diffusion(loaded.denoiser, options.sampler_steps, options.guidance, vae=loaded.vae).to(device)
            for i in missing:
                self._make(generator, names, range(i * SHARD, min((i + 1) * SHARD, total)), self._shard(stage, i))
        return stage

    # ---- parts of a stage -------------------------------------------------------------------------------------------

    def _make(self, generator: Diffusion, classes: Sequence[str], numbers: range, path: Path) -> None:
        """One shard: each image from a latent of its own number, of the classes in turn."""
        seeds = [noise.derive("dpt image", self.options.seed, i) for i in numbers]
        z = latents(generator, seeds)
        y = torch.tensor([i % generator.classes for i in numbers])
        device = next(generator.parameters()).device
        with torch.no_grad():
            x = prepared(generator(z.to(device), y.to(device)), None).cpu()
        labels = [classes[c] for c in y.tolist()]
        parquet.write(path, {"image": [parquet.png(image) for image in x], "label": labels, "index": list(numbers)})

    def _shard(self, stage: Stage, i: int) -> Path:
        return stage.path / f"{i:05}.parquet"

    def _rows(self, images: Stage | None) -> Callable[[], Iterable[list[Any]]]:
        """What the next classifier learns from: labeled images, those that were made, and the others as unlabeled."""

        def make() -> Iterable[list[Any]]:
            made = 0
            for shard in sorted(images.path.glob("*.parquet")) if images else ():
                for row in parquet.read(shard, ("image", "label")):
                    made += 1
                    yield [*row, "train"]
            yield from self._repeats(made) * [*_rows(self.labeled, self.data.classes, "train")]
            yield from _rows(self.rest, self.data.classes, "unlabeled")
            yield from _rows(self.data.validation, self.data.classes, "validation")
            yield from _rows(self.data.test, self.data.classes, "test")

        return make

    def _repeats(self, made: int) -> int:
        """How often each labeled image is there, so that these are about their share of all that have a label."""
        share = self._share()
        wanted = made * share / max(1 - share, 1e-6) if share is not None else 0
        return max(1, round(wanted / len(self.labeled)))

    def _share(self) -> float | None:
        return self.options.real_share if self.options.arm == "careful" else None

    def _config(self, method: str, options: Mapping[str, Any], **setting: Any) -> Config:
        """Of a fit: `options` are its method's, and perhaps its learning rate."""
        own = {name: value for name, value in options.items() if name != "lr"}
        content = {"seed": self.options.seed, "device": self.options.device, **setting}
        content |= {"lr": options["lr"]} if "lr" in options else {}
        return Config.of({**content, "method": {"name": method, **own}}, f"--{method}")

    def _fit(self, name: str, config: Config, inputs: Sequence[Stage]) -> Stage:
        """A run directory."""
        asked = config.flat() | ({"data": "the input"} if inputs else {})
        stage = self._named(name, asked, inputs)
        single.fit(config, stage.path, name=name, study=False)
        return stage

    def _stage(
        self, name: str, asked: Mapping[str, Any], inputs: Sequence[Stage], make: Callable[[], Iterable[list[Any]]]
    ) -> Stage:
        """A directory with a data set of rows: image, label, split."""
        stage = self._named(name, asked, inputs)
        if not (stage.path / DATA).exists():
            directory.make(stage.path)
            columns = zip(*make(), strict=True)
            parquet.write(stage.path / DATA, dict(zip(("image", "label", "split"), map(list, columns), strict=True)))
        return stage

    def _named(self, name: str, asked: Mapping[str, Any], inputs: Sequence[Stage]) -> Stage:
        content = json.dumps([name, dict(asked), [stage.key for stage in inputs]], sort_keys=True)
        key = hashlib.blake2b(content.encode(), digest_size=6).hexdigest()
        return Stage(self.out / f"{name}-{key}", key)

    def told(self, name: str, stage: Stage) -> dict[str, Any]:
        """What is known of a finished stage."""
        found: dict[str, Any] = {"path": str(stage.path)}
        if name.startswith("classifier"):
            result = weights.read_json(stage.path / "result.json")
            found |= {split: result[split]["accuracy"] for split in ("validation", "test") if split in result}
        return found


def _rows(images: Images, classes: Sequence[str], split: str) -> Iterator[list[Any]]:
    """Cells of these images; an unlabeled one's label is left blank."""
    y = iter(images.y.tolist())
    for x in images.batches(SHARD):
        for image in x:
            label = next(y)
            yield [parquet.png(image), classes[label] if label >= 0 and split != "unlabeled" else None, split]
