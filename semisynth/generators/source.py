"""The source classifier: it reads an image as the generator's own classes.

It is trained on the generator's labeled samples alone, by `fit --method supervised --data generator:NAME`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from semisynth import models
from semisynth.errors import UserError
from semisynth.generators import NAMES
from semisynth.generators.protocol import Permuted
from semisynth.weights import SHIPPED, load_into, read_json


class Source(nn.Module):
    """Images (n, c, h, w) -> logits (n, foundation), in the order of the generator's shuffled class numbers."""

    def __init__(self, classifier: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(x)
        return logits[:, self.get_buffer("order")]


def load(run: str | None, name: str, generator: Permuted) -> Source:
    """The source classifier in the directory `run` or, if that is None, the one that ships with generator `name`.

    Raises `UserError` when none ships for this generator, or the run is of other classes or images.
    """
    make = f"make one with: semisynth fit --method supervised --data generator:{name} --out DIR, and give --source DIR."
    if run is None and (name not in NAMES or Path(name).is_dir()):
        raise UserError(f"no source classifier ships for generator '{name}': {make}")
    path = SHIPPED / f"{name}-source" if run is None else Path(run)
    config, result = (read_json(path / f"{what}.json") for what in ("config", "result"))
    if result.get("task") != "classify" or result.get("classes") != generator.classes:
        told = f"a {result.get('task')} run of {result.get('classes')} classes"
        raise UserError(f"--source {path} is {told}, generator '{name}' has {generator.classes}: {make}")
    classifier = models.build(config["model"], result["shape"][0], result["classes"])
    load_into(classifier, path / "model.safetensors")
    return Source(classifier, generator.get_buffer("order"))
