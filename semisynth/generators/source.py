"""The source classifier: it reads an image as the generator's own classes.

It is trained on the generator's labeled samples alone, by `fit --method supervised --data generator:NAME` or on what
`generate` wrote. One that was trained on other images of classes of the same names is taken too, and told of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from semisynth import models
from semisynth.adapter import Adapter, Shape
from semisynth.errors import UserError
from semisynth.functional import class_means
from semisynth.generators import SAMPLES, is_foreign
from semisynth.generators.protocol import Permuted
from semisynth.method import External
from semisynth.weights import SHIPPED, read_json

EACH = 390  # samples of a class, as the data set generator:NAME has


class Source(nn.Module):
    """Images (n, c, h, w) -> logits (n, foundation), in the order of the generator's shuffled class numbers.

    order: the classifier's number of each of these; adapter: to the shape that it was trained on; told: what a user
    should know of it.
    """

    def __init__(self, classifier: nn.Module, order: Tensor, adapter: Adapter, told: str = "") -> None:
        super().__init__()
        self.classifier, self.adapter, self.told = classifier, adapter, told
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.adapter(x))
        return logits[:, self.get_buffer("order")]


class Reader(nn.Module):
    """What the source classifier reads in the labeled images of each target class: `transport` (classes, foundation).

    It is the mean over batches of a batch's mean posterior, uniform for a class of which no image was seen: our
    reconstruction of what P-SSL (Yamaguchi 2022, arXiv 2204.12833) does image by image. `count` is of batches.
    """

    def __init__(self, source: nn.Module, classes: int, foundation: int) -> None:
        super().__init__()
        if not foundation:
            raise UserError(
                "the generator has no classes that a source classifier could read: choose a method without."
            )
        self.source = External(source)
        self.register_buffer("transport", torch.full((classes, foundation), 1 / foundation))
        self.register_buffer("count", torch.zeros(classes))

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Views x (n, c, h, w) of labeled images, labels y (n,) -> the new values of both buffers, over all ranks."""
        before, count = self.get_buffer("transport"), self.get_buffer("count")
        found, present = class_means(self.source(x).softmax(1).to(before.dtype), y, len(before))
        count = count + present
        return {"transport": before + (found - before) * (present / count.clamp_min(1))[:, None], "count": count}


def load(
    run: str | None, name: str, generator: Permuted, shape: Shape, images: Shape, names: Sequence[str] = ()
) -> Source:
    """The source classifier in the directory `run` or, if that is None, the one that ships with generator `name`.

    shape: of what the generator makes, before it is adapted; images: of those that will be read; names: of the
    generator's classes. Raises `UserError` when none ships for this generator, or the run is of other classes.
    """
    make = _command(name, generator.classes, shape)
    if run is None and not (SHIPPED / f"{name}-source").is_dir():
        raise UserError(f"no source classifier ships for generator '{name}': {make}")
    path = SHIPPED / f"{name}-source" if run is None else Path(run)
    config, result = (read_json(path / f"{what}.json") for what in ("config", "result"))
    classes, there = result.get("classes"), result.get("shape") or [0, 0, 0]
    if result.get("task") != "classify" or classes != generator.classes:
        told = f"a {result.get('task')} run of {classes} classes"
        raise UserError(f"--source {path} is {told}; generator '{name}' has {generator.classes}: {make}")
    data, known, order, told = config.get("data", ""), result.get("class_names", []), generator.get_buffer("order"), ""
    if not _same(data, f"{SAMPLES}{name}"):
        if not names or sorted(known) != sorted(names):  # as many classes in another order would be read without a word
            raise UserError(f"--source {path} was trained on --data {data}, not on this generator: {make}")
        order = torch.tensor([known.index(own) for own in names])[order]
        told = f"the classes of --source {path}, trained on {data}, are taken for those of the generator by their names"
    tuning = models.Tuning(config.get("tune_features", "full"), config.get("lora_rank", models.Tuning.rank))
    channels, high, wide = map(int, there)
    classifier = models.saved(path, config.get("model", ""), tuning, (channels, high, wide), generator.classes)
    return Source(classifier, order, Adapter(images, (channels, high, wide)), told)


def _command(name: str, classes: int, shape: Shape) -> str:
    """How to make one, in words."""
    if not is_foreign(name):
        return (
            f"make one with: semisynth fit --method supervised --data {SAMPLES}{name} --out DIR, and give --source DIR."
        )
    images = f"semisynth generate --generator {name} --count {EACH * classes} --out IMAGES"
    fit = f"semisynth fit --method supervised --data IMAGES/images.parquet --size {max(shape[1:])} --out DIR"
    return f"make one with: {images}; {fit}; and give --source DIR."


def _same(data: str, wanted: str) -> bool:
    """Whether both name the samples of one generator, perhaps by other paths to its directory."""
    names = [name.removeprefix(SAMPLES) for name in (data, wanted)]
    alike = names[0] == names[1] or Path(names[0]).resolve() == Path(names[1]).resolve()
    return data.startswith(SAMPLES) and alike
