"""DPT: a classifier labels images for a diffusion model, which makes images for a classifier.

You, Zhong, Bao, Sun, Li and Zhu, "Diffusion models and semi-supervised learners benefit mutually with few labels",
NeurIPS 2023 (arXiv 2302.10586). Each stage lies in a directory of its own whose name holds a hash of all that
determines it: what is finished is taken as it is, and what an option does not change is not made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from semisynth import clusters, distributed, generators, models, quality, weights
from semisynth.clusters import Workers
from semisynth.data import parquet
from semisynth.data.datasets import Images, Reading
from semisynth.engine import Engine, resolve
from semisynth.errors import UserError, between
from semisynth.evaluate import logits
from semisynth.generators.diffusion import Diffusion
from semisynth.methods import EDM, LinearProbe
from semisynth.models import Classifier
from semisynth.recipes import directory, origin, restore, shards, single, teaching
from semisynth.recipes.config import Config, method_class, method_parts
from semisynth.recipes.materials import drawn
from semisynth.recipes.quality import HELD_OUT, compare

SHARD = 256  # images that are made together, whatever the number of processes: so the bytes are the same
DATA, QUALITY, SHEET = "data.parquet", "quality.json", "sheet.png"
CHOSEN = {"batch", "unlabeled_batch", *(option.name for option in fields(Engine))} - {"seed", "device"}


@dataclass(frozen=True)
class DPT:
    """All that determines the stages.

    Args:
        data: the data set, as fit's --data
        labels_per_class: labels drawn from its pool by the seed
        stage1: the method of both classifiers: fixmatch, freematch, ..., which read the rest of the pool, or
            linear-probe, which learns from what has labels on the features of --init
        init: the classifiers' first features, as fit's --init
        model: the classifier's network, as fit's --model
        steps: of each classifier's training
        diffusion_steps: of the diffusion model's training
        images_per_class: K, images made of each class; 0 trains the second classifier without any, for comparison
        guidance: w, weight of the class in sampling, 1 for none; 1.4 is the paper's on ImageNet, where it is s = 0.4
        sampler: heun, of two passes of the network a step, or dpm++, of one, which needs the library diffusers
        sampler_steps: of the sampler
        arm: careful keeps the true labels and gives real images a share of the labeled batch; faithful does as
            published, overwriting labels with predictions and letting synthetic images prevail by their number
        real_share: of the labeled batch of the second classifier, in the careful arm, up to 0.95; each labeled image is
            there once at least
        difficulty: s; the diffusion model is told how hard the first classifier finds each image, and asked for images
            about that hard, from 0 to 1, drawn from N(s, 0.1); unless given it is not told
        labels: what the diffusion model learns from: predicted labels; for comparison, the true ones of every image (an
            oracle), the labeled images alone, or all images without labels (none), whose samples teach no classifier
        teach: the second classifier with synthetic images or, for comparison, with the real ones that were given labels
        rounds: how often classifier and diffusion model teach each other
        seed: of the labels and of all training
        device: as fit's --device
        reading: how one's own images are read
        classifier: more options of the classifiers' method and of fit, such as lr, batch or precision
        diffusion: more options of the method edm and of fit
    """

    data: str = "digits"
    labels_per_class: int = 4
    stage1: str = "fixmatch"
    init: str = "none"
    model: str = "small-cnn"
    steps: int = 400
    diffusion_steps: int = 4000
    images_per_class: int = 128
    guidance: float = 1.4
    sampler: Literal["heun", "dpm++"] = "heun"
    sampler_steps: int = 18
    arm: Literal["careful", "faithful"] = "careful"
    real_share: float = 0.5
    difficulty: float | None = None
    labels: Literal["predicted", "true", "labeled", "none"] = "predicted"
    teach: Literal["synthetic", "real"] = "synthetic"
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
        between(0, 0.95, real_share=self.real_share)
        between(0, 1, difficulty=self.difficulty or 0)
        if method_class(self.stage1).task != "classify" or "generator" in method_parts(self.stage1):
            raise UserError(
                f"--stage1 {self.stage1} trains no classifier without a generator: give one that does, as fixmatch."
            )
        if method_class(self.stage1) is LinearProbe and self.init == "none":
            raise UserError("--stage1 linear-probe reads features as they are: give --init foundation or a run.")
        if (self.labels != "predicted" and self.teach == "real") or (
            self.teach == "real" and not self.images_per_class
        ):
            raise UserError(
                "--teach real takes predicted labels, and --images-per-class above 0: leave the others out."
            )
        if self.labels == "none" and self.difficulty is not None:
            raise UserError("--labels none tells the diffusion model no class, and so no difficulty: leave one out.")
        if taken := sorted({"guidance", "sampler", "sampler_steps", "hard"} & set(self.diffusion)):
            raise UserError(f"--diffusion has {taken[0]}, by which its images are made: dpt has an option for that.")
        if self.diffusion.get("drop") == 0 and self.guidance != 1:
            raise UserError("--diffusion with drop 0 never learns without a class: give --guidance 1, or another drop.")


class Stage(NamedTuple):
    """A finished stage: its directory, and the key that stands for all that determined it."""

    path: Path
    key: str


def several(asked: Sequence[DPT], out: Path) -> list[dict[str, Any]]:
    """Each in turn, in one directory, so that they share the stages that are alike."""
    return [dpt(options, out) for options in asked]


def dpt(options: DPT, out: Path, workers: Workers = 1) -> dict[str, Any]:
    """Run all stages below `out`, or those that are missing; returns what is told of them, also in `out`/dpt.json.

    workers: who makes the images, which are the same whoever does; torchrun's processes share them, as they do the fits
    """
    clusters.require(workers)
    with distributed.joined(resolve(options.device)):
        if distributed.world() > 1 and workers != 1:
            raise UserError("torchrun's processes make the images: leave --workers and --ray out.")
        work = Work(options, out, workers)
        directory.make(out)
        stages = _stages(work, options)
        told = {"options": asdict(options), "stages": {name: work.told(name, stage) for name, stage in stages.items()}}
        if distributed.rank() == 0:
            weights.write_json(out / "dpt.json", told)
        return told


def _stages(work: Work, options: DPT) -> dict[str, Stage]:
    classifier = work.classifier(None, 0)
    stages = {"classifier-0": classifier}
    for number in range(1, options.rounds + 1):
        made = work.taught(classifier) if options.images_per_class else {}
        stages |= {f"{name}-{number}": stage for name, stage in made.items()}
        if options.labels == "none":
            break
        classifier = work.classifier(made.get("images" if options.teach == "synthetic" else "labels"), number)
        stages[f"classifier-{number}"] = classifier
    return stages


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
        config = self._config("edm", options.diffusion, steps=options.diffusion_steps)
        with torch.random.fork_rng(devices=[]):
            made = EDM(self.data.shape, len(classes), None, **config.options)
        Diffusion(made.model, options.sampler_steps, options.guidance, sampler=options.sampler)
        if options.labels == "true" and self.data.unlabeled is not None:
            raise UserError(f"--labels true: some images of {options.data} have no label: leave it out.")

    def classifier(self, images: Stage | None, number: int) -> Stage:
        """Of the labeled and unlabeled images and, after the first, of those that were made, if any were."""
        options = self.options
        kinds: dict[str, Any] = {"model": options.model, "init": options.init, "steps": options.steps}
        if number == 0:
            config = replace(self.config, setting=replace(self.config.setting, **kinds))
            return self._fit("classifier", config, [])
        # Images may be the same for every draw of labels, and what is learned from both is not.
        asked: dict[str, Any] = {"base": self.config.flat()}
        asked |= {"arm": options.arm, "share": self._share(), "teach": options.teach} if images else {}
        data = self._stage("data", asked, [images] if images else [], self._rows(images))
        setting = {**self.written, "data": str(data.path / DATA), "labels_per_class": 0, **kinds}
        return self._fit("classifier", self._config(options.stage1, options.classifier, **setting), [data])

    def taught(self, classifier: Stage) -> dict[str, Stage]:
        """What a classifier teaches: labels, the diffusion model of these, and its images."""
        labels = self.labels(classifier)
        if self.options.teach == "real":
            return {"labels": labels}
        diffusion = self.diffusion(labels, classifier if self.options.difficulty is not None else None)
        images = self.images(diffusion)
        measures = self.quality(images, classifier)
        return {"labels": labels, "diffusion": diffusion, "images": images, "quality": measures}

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
        total = options.images_per_class * len(generators.class_names(str(diffusion.path)))
        parts = [(range(total)[i : i + SHARD], stage.path / f"{i // SHARD:05}.parquet") for i in range(0, total, SHARD)]
        mine = parts[distributed.rank() :: distributed.world()]
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
        tasks = [(sampler, numbers, path) for numbers, path in mine if not path.exists()]
        if tasks:
            directory.make(stage.path)
            clusters.each(shards.make, tasks, self.workers, options.device)
            shards.loaded.cache_clear()
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
            if self.options.labels != "none":
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
        content |= {name: value for name, value in options.items() if name in CHOSEN}
        own = {name: value for name, value in options.items() if name not in CHOSEN}
        source = "--diffusion" if method == "edm" else "--classifier"
        return Config.of({**content, "method": {"name": method, **own}}, source)

    def _fit(self, name: str, config: Config, inputs: Sequence[Stage]) -> Stage:
        """A run directory."""
        flat = config.flat()
        asked = flat | {name: "the input" for name in ("data", "judge") if inputs and flat[name] is not None}
        if config.setting.init != "none":
            weights_of = models.foundation(config.setting.init, config.setting.model)
            asked["init"] = hashlib.blake2b(weights_of.read_bytes(), digest_size=6).hexdigest()
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
        elif kind == "labels" and self.options.labels == "predicted":
            given = [self.data.classes.index(label) for (label,) in parquet.read(stage.path / DATA, ("label",))]
            # Those that were known say nothing of the classifier.
            found |= teaching.right(torch.tensor(given)[len(self.labeled) :], self.rest.y, self.data.classes)
        return found


def _shards(stage: Stage) -> list[Path]:
    return sorted(stage.path.glob("*.parquet"))


def _rows(images: Images, classes: Sequence[str], split: str) -> Iterator[list[Any]]:
    """Cells of these images; an unlabeled one's label is left blank."""
    y = iter(images.y.tolist())
    for x in images.batches(SHARD):
        for image in x:
            label = next(y)
            yield [parquet.png(image), classes[label] if label >= 0 and split != "unlabeled" else None, split]
