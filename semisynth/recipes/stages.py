"""The stages of DPT, each in a directory of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from semisynth import clusters, distributed, generators, quality, weights
from semisynth.clusters import Workers
from semisynth.data import parquet
from semisynth.data.datasets import Images
from semisynth.engine import Engine, resolve
from semisynth.errors import UserError
from semisynth.evaluate import logits
from semisynth.generators.diffusion import Diffusion
from semisynth.method import External
from semisynth.methods import EDM
from semisynth.models import Classifier, Tuning, foreign
from semisynth.recipes import directory, network, origin, restore, shards, single, teaching
from semisynth.recipes.config import GENERATOR, Config, Options
from semisynth.recipes.materials import drawn
from semisynth.recipes.quality import HELD_OUT, compare

if TYPE_CHECKING:
    from semisynth.recipes.dpt import DPT

SHARD = 256  # images that are made together, whatever the number of processes: so the bytes are the same
DATA, QUALITY, SHEET = "data.parquet", "quality.json", "sheet.png"
CHOSEN = {"batch", "unlabeled_batch", *(option.name for option in fields(Engine))} - {"seed", "device"}
OF_FIT = {
    "generator",
    GENERATOR,
    "source",
    "unlabeled",
    "tune_features",
    "lora_rank",
}  # which a classifier's stage may choose besides


class Stage(NamedTuple):
    """A finished stage: its directory, and the key that stands for all that determined it."""

    path: Path
    key: str


class Work:
    """The stages of one set of options; each method runs a stage unless it is finished."""

    def __init__(self, options: DPT, out: Path, workers: Workers = 1) -> None:
        self.options, self.out, self.workers = options, out, workers
        given = {"data": options.data, "labels_per_class": options.labels_per_class, **asdict(options.reading)}
        self.config = self._config(options.stage1, options.classifier, **given)
        self.data = origin.load(self.config)
        self._check()
        self.labeled, self.rest = drawn(self.data, options.labels_per_class, options.seed)
        # The data sets that are written here are read as they are.
        channels, size, _ = self.data.shape
        self.written = {"size": size, "channels": "gray" if channels == 1 else "rgb", "holdout": 0.0}
        self.written["mirror"] = "yes" if self.data.flip else "no"

    def _check(self) -> None:
        """`UserError` for what would be told only after hours: of the diffusion model, and names that tables lose."""
        options, classes = self.options, self.data.classes
        for name in classes:
            if name != name.strip() or [other.casefold() for other in classes].count(name.casefold()) > 1:
                raise UserError(
                    f"class '{name}' of {options.data} differs from others, or from no blank, by case or "
                    "blanks only: rename it."
                )
        if options.labels == "true" and self.data.unlabeled is not None:
            raise UserError(f"--labels true: some images of {options.data} have no label: leave it out.")
        if options.generator is not None:
            self._pretrained().maker()
            return
        config = self._config("edm", options.diffusion, steps=options.diffusion_steps)
        with torch.random.fork_rng(devices=[]):
            made = EDM(self.data.shape, len(classes), None, **config.options)
        Diffusion(made.model, options.sampler_steps, options.guidance, sampler=options.sampler)

    def classifier(self, images: Stage | None, number: int) -> Stage:
        """Of the labeled and unlabeled images and, after the first, of those that were made, if any were."""
        options = self.options
        kinds: dict[str, Any] = {"model": options.model, "init": options.init, "steps": options.steps}
        if number == 0:
            config = replace(self.config, setting=replace(self.config.setting, **kinds))
            return self._fit("classifier", config, [])
        # Images may be the same for every draw of labels, and what is learned from both is not.
        asked: dict[str, Any] = {"base": _keyed(self.config)}
        asked |= {"arm": options.arm, "share": self._share(), "teach": options.teach} if images else {}
        data = self._stage("data", asked, [images] if images else [], self._rows(images))
        setting = {**self.written, "data": str(data.path / DATA), "labels_per_class": 0, **kinds}
        return self._fit("classifier", self._config(options.stage1, options.classifier, **setting), [data])

    def taught(self, classifier: Stage) -> dict[str, Stage]:
        """What a classifier teaches: labels, the diffusion model of these, and its images."""
        if self.options.generator is not None:
            return self._of_generator(classifier)
        labels = self.labels(classifier)
        if self.options.teach == "real":
            return {"labels": labels}
        diffusion = self.diffusion(labels, classifier if self.options.difficulty is not None else None)
        images = self.images(diffusion)
        measures = self.quality(images, classifier)
        return {"labels": labels, "diffusion": diffusion, "images": images, "quality": measures}

    def _of_generator(self, classifier: Stage) -> dict[str, Stage]:
        """Images of the generator and, unless it was asked for the data's classes, the labels that are predicted."""
        found = self._pretrained()
        asked = found._asdict() | {"generator": External(found.maker().generator).fingerprint()}
        asked |= {"options": asdict(found.options), "device": None, "each": self.options.images_per_class}
        images = self._made(self._named("images", asked, []), found, len(self.data.classes))
        if self.options.teacher == "images":
            return {"images": images, "quality": self.quality(images, classifier)}

        def make() -> Iterable[list[Any]]:
            x = torch.stack(
                [parquet.pixels(image) for path in _shards(images) for (image,) in parquet.read(path, ("image",))]
            )
            y = self._logits(classifier, Images(x, torch.zeros(len(x), dtype=torch.int64))).argmax(1)
            yield from _rows(Images(x, y), self.data.classes, "train")

        labels = self._stage("labels", {}, [images, classifier], make)
        return {"images": images, "labels": labels, "quality": self.quality(labels, classifier)}

    def _pretrained(self) -> shards.Pretrained:
        options, data = self.options, self.data
        assert options.generator is not None
        return shards.Pretrained(
            options.generator,
            options.generator_options,
            options.classes,
            data.classes,
            data.shape,
            options.seed,
            options.device,
        )

    def labels(self, classifier: Stage) -> Stage:
        """All images for training, with the classes that the classifier takes them for or, careful, that are known."""
        if self.options.labels != "predicted":
            return self._compared()

        def make() -> Iterable[list[Any]]:
            images = self.labeled.join(self.rest)
            y = self._logits(classifier, images).argmax(1)
            if self.options.arm == "careful":
                y[: len(self.labeled)] = self.labeled.y
            yield from _rows(Images(images.x, y), self.data.classes, "train")

        return self._stage("labels", {"arm": self.options.arm}, [classifier], make)

    def _compared(self) -> Stage:
        """What the diffusion model learns from where no classifier teaches it."""
        kind, data = self.options.labels, self.data
        images = self.labeled if kind == "labeled" else data.pool
        # All images are the same for every draw of labels, and so is what is learned from them.
        asked: dict[str, Any] = {"labels": kind, "data": self.options.data, **asdict(self.options.reading)}
        asked |= {"per class": self.options.labels_per_class, "seed": self.options.seed} if kind == "labeled" else {}
        if kind == "none":
            images = images if data.unlabeled is None else images.join(data.unlabeled)
            images = Images(images.x, torch.arange(len(images)) % len(data.classes))  # which is never told
        return self._stage("labels", asked, [], lambda: _rows(images, data.classes, "train"))

    def diffusion(self, labels: Stage, judge: Stage | None = None) -> Stage:
        """The class-conditional model of these labels, told by a classifier how hard each image is if one is given."""
        inputs = {"data": (labels, str(labels.path / DATA))} | ({"judge": (judge, str(judge.path))} if judge else {})
        setting = {**self.written, **{name: path for name, (_, path) in inputs.items()}}
        setting |= {"steps": self.options.diffusion_steps, "batch": 64}
        options = {**self.options.diffusion, **({"drop": 1.0} if self.options.labels == "none" else {})}
        config = self._config("edm", options, **setting)
        return self._fit("diffusion", config, [stage for stage, _ in inputs.values()])

    def images(self, diffusion: Stage) -> Stage:
        """Exactly so many images of each class that has labels, in shards that are finished one after the other."""
        options = self.options
        asked: dict[str, Any] = {
            "guidance": options.guidance,
            "sampler": options.sampler,
            "steps": options.sampler_steps,
        }
        asked |= {"each": options.images_per_class, "difficulty": options.difficulty}
        stage = self._named("images", asked, [diffusion])
        sampler = shards.Sampler(
            str(diffusion.path),
            options.sampler_steps,
            options.guidance,
            options.sampler,
            options.seed,
            options.device,
            options.labels != "none",
            options.difficulty,
        )
        return self._made(stage, sampler, len(generators.class_names(str(diffusion.path))))

    def _made(self, stage: Stage, source: shards.Source, classes: int) -> Stage:
        total = self.options.images_per_class * classes
        parts = [(range(total)[i : i + SHARD], stage.path / f"{i // SHARD:05}.parquet") for i in range(0, total, SHARD)]
        mine = parts[distributed.rank() :: distributed.world()]
        tasks = [(source, numbers, path) for numbers, path in mine if not path.exists()]
        if tasks:
            directory.make(stage.path)
            clusters.each(shards.make, tasks, self.workers, self.options.device)
            shards.forget()
        distributed.barrier()
        return stage

    def quality(self, images: Stage, classifier: Stage) -> Stage:
        """What they look like, and their quality by the features of the classifier that they come from."""
        stage = self._named("quality", {"labels": self.options.labels}, [images, classifier])
        if distributed.rank() == 0 and not (stage.path / QUALITY).exists():
            directory.make(stage.path)
            made, device = self.made(images), resolve(self.options.device)
            with weights.replacing(stage.path / SHEET) as beside:
                beside.write_bytes(teaching.sheet(made))
            model = restore.classifier(classifier.path, device)[1]
            assert isinstance(model, Classifier)
            sets = {"synthetic": made, HELD_OUT: self.data.test, "": self.labeled.join(self.rest)}
            enough = {name: images for name, images in sets.items() if len(images) > quality.NEIGHBOURS}
            reference = enough.pop("", None)
            found = compare(model, reference, enough, device) if reference and enough else {}
            if self.options.labels != "none" and not (self.options.generator and self.options.teacher == "labels"):
                found["agreement"] = teaching.agreement(self._logits(classifier, made), made.y, self.data.classes)
            weights.write_json(stage.path / QUALITY, found)
        distributed.barrier()
        return stage

    def made(self, images: Stage) -> Images:
        """The images of all shards, with the classes that they were asked for."""
        rows = [row for path in _shards(images) for row in parquet.read(path, ("image", "label"))]
        x = torch.stack([parquet.pixels(image) for image, _ in rows])
        return Images(x, torch.tensor([self.data.classes.index(label) for _, label in rows]))

    def _logits(self, classifier: Stage, images: Images) -> Tensor:
        """What a classifier makes of them, in the order of the data's classes; a written data set may have another."""
        device = resolve(self.options.device)
        _, model, names, _ = restore.classifier(classifier.path, device)
        found = logits(model, images, names, device=device)
        return found[:, [names.index(name) for name in self.data.classes]]

    # ---- parts of a stage -------------------------------------------------------------------------------------------

    def _rows(self, images: Stage | None) -> Callable[[], Iterable[list[Any]]]:
        """What the next classifier learns from: labeled images, those that were made, and the others as unlabeled."""

        def make() -> Iterable[list[Any]]:
            made = 0
            for shard in _shards(images) if images else ():
                rows = parquet.read(shard, ("image", "label"))
                # The labeled images come first among the real ones that were given labels, and are added below.
                for row in rows if self.options.teach == "synthetic" else list(rows)[len(self.labeled) :]:
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
        wanted = made * share / (1 - share) if share is not None else 0
        return max(1, round(wanted / len(self.labeled)))

    def _share(self) -> float | None:
        return self.options.real_share if self.options.arm == "careful" else None

    def _config(self, method: str, options: Mapping[str, Any], **setting: Any) -> Config:
        """Of a fit: `options` are its method's, and those of `fit` that a stage may choose."""
        content = {"seed": self.options.seed, "device": self.options.device, **setting}
        chosen = CHOSEN if method == "edm" else CHOSEN | OF_FIT
        content |= {name: value for name, value in options.items() if name in chosen}
        own = {name: value for name, value in options.items() if name not in chosen}
        source = "--diffusion" if method == "edm" else "--classifier"
        return Config.of({**content, "method": {"name": method, **own}}, source)

    def _fit(self, name: str, config: Config, inputs: Sequence[Stage]) -> Stage:
        """A run directory."""
        flat = config.flat()
        asked = _keyed(config) | {name: "the input" for name in ("data", "judge") if inputs and flat[name] is not None}
        if weights_of := network.first(config.setting):
            asked["init"] = hashlib.blake2b(weights_of.read_bytes(), digest_size=6).hexdigest()
        if foreign.named(config.setting.model):
            asked["model"] = network.fingerprint(config.setting, self.data.shape, len(self.data.classes))
        if config.setting.generator is not None:
            asked["generator"] = External(generators.load(config.setting.generator, config.asked)).fingerprint()
        stage = self._named(name, asked, inputs)
        if inputs and (stage.path / "result.json").exists():
            return stage
        if inputs and (stage.path / "config.json").exists() and distributed.rank() == 0:
            weights.write_json(stage.path / "config.json", flat)  # the inputs' paths may be written in another way now
        distributed.barrier()
        single.fit(config, stage.path, name=name, study=False)
        return stage

    def _stage(
        self, name: str, asked: Mapping[str, Any], inputs: Sequence[Stage], make: Callable[[], Iterable[list[Any]]]
    ) -> Stage:
        """A directory with a data set of rows: image, label, split; of several ranks the first one writes it."""
        stage = self._named(name, asked, inputs)
        if distributed.rank() == 0 and not (stage.path / DATA).exists():
            directory.make(stage.path)
            columns = zip(*make(), strict=True)
            parquet.write(stage.path / DATA, dict(zip(("image", "label", "split"), map(list, columns), strict=True)))
        distributed.barrier()
        return stage

    def _named(self, name: str, asked: Mapping[str, Any], inputs: Sequence[Stage]) -> Stage:
        content = json.dumps([name, dict(asked), [stage.key for stage in inputs]], sort_keys=True)
        key = hashlib.blake2b(content.encode(), digest_size=6).hexdigest()
        return Stage(self.out / f"{name}-{key}", key)

    def told(self, name: str, stage: Stage) -> dict[str, Any]:
        """What is known of a finished stage."""
        found: dict[str, Any] = {"path": str(stage.path)}
        kind = name.partition("-")[0]
        if kind == "classifier":
            result = weights.read_json(stage.path / "result.json")
            found |= {split: result[split]["accuracy"] for split in ("validation", "test") if split in result}
        elif kind == "quality":
            found |= weights.read_json(stage.path / QUALITY)
        elif kind == "labels" and self.options.labels == "predicted" and self.options.generator is None:
            given = [self.data.classes.index(label) for (label,) in parquet.read(stage.path / DATA, ("label",))]
            # Those that were known say nothing of the classifier.
            found |= teaching.right(torch.tensor(given)[len(self.labeled) :], self.rest.y, self.data.classes)
        return found


def _keyed(config: Config) -> dict[str, Any]:
    """What stands for a configuration in a key; options that came later count where they are given."""
    flat = config.flat()
    usual: dict[str, Any] = {"tune_features": Tuning.way, "lora_rank": Tuning.rank, "features_lr": Engine.features_lr}
    usual[GENERATOR] = asdict(Options())
    return {name: value for name, value in flat.items() if name not in usual or value != usual[name]}


def _shards(stage: Stage) -> list[Path]:
    return sorted(stage.path.glob("*.parquet"))


def _rows(images: Images, classes: Sequence[str], split: str) -> Iterator[list[Any]]:
    """Cells of these images; an unlabeled one's label is left blank."""
    y = iter(images.y.tolist())
    for x in images.batches(SHARD):
        for image in x:
            label = next(y)
            yield [parquet.png(image), classes[label] if label >= 0 and split != "unlabeled" else None, split]
