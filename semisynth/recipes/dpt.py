"""DPT: a classifier labels images for a diffusion model, which makes images for a classifier.

You, Zhong, Bao, Sun, Li and Zhu, "Diffusion models and semi-supervised learners benefit mutually with few labels",
NeurIPS 2023 (arXiv 2302.10586). Each stage lies in a directory of its own whose name holds a hash of all that
determines it: what is finished is taken as it is, and what an option does not change is not made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from semisynth import clusters, distributed, weights
from semisynth.clusters import Workers
from semisynth.data.datasets import Reading
from semisynth.engine import resolve
from semisynth.errors import UserError, between
from semisynth.methods import LinearProbe
from semisynth.models import foreign
from semisynth.recipes import directory
from semisynth.recipes.config import Options, method_class, method_parts
from semisynth.recipes.stages import Stage, Work

REPLACED = ("diffusion_steps", "guidance", "sampler", "sampler_steps", "difficulty", "labels", "teach", "diffusion")


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
        generator: in place of a diffusion model that is trained, a pretrained generator, as fit's --generator, whose
            images teach the second classifier
        classes: which class of that generator stands for a class of the data, as mix's --classes; with any, images of
            all its classes get the labels that the first classifier predicts
        teach: the second classifier with synthetic images or, for comparison, with the real ones that were given labels
        rounds: how often classifier and diffusion model teach each other
        seed: of the labels and of all training
        device: as fit's --device
        reading: how one's own images are read
        generator_options: as fit's
        classifier: more options of the classifiers' method and of fit, such as lr, batch or precision, or the
            generator of a method that needs one
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
    generator: str | None = None
    classes: str = "equal"
    teach: Literal["synthetic", "real"] = "synthetic"
    rounds: int = 1
    seed: int = 0
    device: str = "auto"
    reading: Reading = field(default_factory=Reading)
    generator_options: Options = field(default_factory=Options)
    classifier: Mapping[str, Any] = field(default_factory=dict)
    diffusion: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        between(0, 10**6, images_per_class=self.images_per_class)
        between(1, 10**6, labels_per_class=self.labels_per_class)
        between(1, 100, rounds=self.rounds)
        between(0, 0.95, real_share=self.real_share)
        between(0, 1, difficulty=self.difficulty or 0)
        if method_class(self.stage1).task != "classify":
            raise UserError(f"--stage1 {self.stage1} trains no classifier: give a method that does, as fixmatch.")
        if "generator" in method_parts(self.stage1) and "generator" not in self.classifier:
            told = """name one with --classifier '{"generator": "glyphs"}'"""
            raise UserError(f"--stage1 {self.stage1} needs a generator: {told}, or give another method, as fixmatch.")
        if method_class(self.stage1) is LinearProbe and self.init == "none" and not foreign.with_weights(self.model):
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
        self._check_generator()

    def _check_generator(self) -> None:
        """`UserError` for options of what is not there: of the diffusion model, or of the generator in its place."""
        unread = REPLACED if self.generator is not None else ("classes", "generator_options")
        for name in unread:
            default = next(option for option in fields(DPT) if option.name == name)
            usual = default.default_factory() if callable(default.default_factory) else default.default
            if getattr(self, name) != usual:
                given = "there is a --generator in its place" if self.generator else "it is of a --generator"
                raise UserError(f"--{name.replace('_', '-')} is not read, as {given}: leave it out.")
        if self.generator is not None and self.rounds > 1 and self.classes != "any":
            raise UserError("--generator makes the same images in each round: leave --rounds out.")

    @property
    def teacher(self) -> str:
        """The stage whose images, with the labels that they have there, teach the second classifier."""
        given = self.classes == "any" if self.generator is not None else self.teach == "real"
        return "labels" if given else "images"


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
        classifier = work.classifier(made.get(options.teacher), number)
        stages[f"classifier-{number}"] = classifier
    return stages
