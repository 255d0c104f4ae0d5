"""The source classifier: it reads an image as the generator's own classes.

It is trained on the generator's labeled samples alone, by `fit --method supervised --data generator:NAME`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from semisynth import models
from semisynth.errors import UserError
from semisynth.functional import class_means
from semisynth.generators import SAMPLES
from semisynth.generators.adapted import Adapter, Shape
from semisynth.generators.protocol import Permuted
from semisynth.method import External
from semisynth.weights import SHIPPED, read_json


class Source(nn.Module):
    """Images (n, c, h, w) -> logits (n, foundation), in the order of the generator's shuffled class numbers.

    adapter: to the shape that the classifier was trained on.
    """

    def __init__(self, classifier: nn.Module, order: Tensor, adapter: Adapter) -> None:
        super().__init__()
        self.classifier, self.adapter = classifier, adapter
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


def load(run: str | None, name: str, generator: Permuted, shape: Shape, images: Shape) -> Source:
    """The source classifier in the directory `run` or, if that is None, the one that ships with generator `name`.

    shape: of what the generator makes, before it is adapted; images: of those that will be read. Raises `UserError`
    when none ships for this generator, or the run is of another generator's samples, of other classes or images.
    """
    make = f"make one with: semisynth fit --method supervised --data generator:{name} --out DIR, and give --source DIR."
    if run is None and not (SHIPPED / f"{name}-source").is_dir():
        raise UserError(f"no source classifier ships for generator '{name}': {make}")
    path = SHIPPED / f"{name}-source" if run is None else Path(run)
    config, result = (read_json(path / f"{what}.json") for what in ("config", "result"))
    found, wanted = (result.get("classes"), result.get("shape")), (generator.classes, list(shape))
    if result.get("task") != "classify" or found != wanted:
        told = f"a {result.get('task')} run of {found[0]} classes, images {found[1]}"
        raise UserError(f"--source {path} is {told}; generator '{name}' has {wanted[0]}, images {wanted[1]}: {make}")
    if not _same(config.get("data", ""), f"{SAMPLES}{name}"):
        # As many classes in another order would be read without a word.
        raise UserError(f"--source {path} was trained on --data {config.get('data')}, not on this generator: {make}")
    tuning = models.Tuning(config.get("tune_features", "full"), config.get("lora_rank", models.Tuning.rank))
    classifier = models.saved(path, config.get("model", ""), tuning, shape, generator.classes)
    return Source(classifier, generator.get_buffer("order"), Adapter(images, shape))


def _same(data: str, wanted: str) -> bool:
    """Whether both name the samples of one generator, perhaps by other paths to its directory."""
    names = [name.removeprefix(SAMPLES) for name in (data, wanted)]
    alike = names[0] == names[1] or Path(names[0]).resolve() == Path(names[1]).resolve()
    return data.startswith(SAMPLES) and alike
