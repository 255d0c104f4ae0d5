"""GDA, generative data augmentation: samples of the target classes with their labels, a baseline of the MGR paper
(Yamaguchi et al., NeurIPS 2023, arXiv 2307.13899).

The paper's generator was trained on the target classes. One of other classes is asked here for the single foundation
class that a source classifier reads most in the labeled images of a target class: our adaptation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth import noise
from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.generators.protocol import Generator, sample
from semisynth.generators.source import Reader
from semisynth.method import Batch, External, Losses, Method, Update
from semisynth.methods.supervised import View, labeled_view
from semisynth.models.classifier import Classifier


class GDA(Method):
    """L = CE(labeled) + weight * CE(G(z, y), y), eq. of section 2, with the class y uniform.

    Args:
        weight: lambda, of the synthetic term
        view: of the labeled and the synthetic images
    """

    reads_u = False
    model: Classifier
    ranges = {"view": ["weak", "strong"], "weight": (0.03, 3.0)}

    def __init__(
        self,
        model: Classifier,
        generator: Generator,
        source: nn.Module,
        weak: Weak,
        strong: Strong,
        classes: int,
        synthetic: int,
        *,
        weight: float = 1.0,
        view: View = "strong",
    ) -> None:
        super().__init__()
        between(0, math.inf, weight=weight)
        self.model, self.generator, self.reader = model, External(generator), Reader(source, classes, generator.classes)
        self.weak, self.view = weak, labeled_view(view, weak, strong)
        self.classes, self.synthetic, self.weight = classes, synthetic, weight

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """Both cross-entropies."""
        read = self.reader(self.weak(batch.x), batch.y)
        y = noise.integers(self.classes, self.synthetic, like=batch.x)
        with torch.no_grad():
            s = self.synthesize(y, read["transport"], batch.x)
        both = self.model(torch.cat([self.view(batch.x), self.view(s)]))
        labeled, synthetic = both.split([len(batch.x), len(s)])
        terms = {
            "supervised": F.cross_entropy(labeled, batch.y),
            "synthetic": self.weight * F.cross_entropy(synthetic, y),
        }
        return Losses(terms, memory={f"reader.{name}": value for name, value in read.items()})

    def synthesize(self, y: Tensor, transport: Tensor, like: Tensor) -> Tensor:
        """An image for each target class y (n,)."""
        z = noise.normal(len(y), *self.generator.module.latent_shape, like=like)
        images: Tensor = self.generator(z, transport.argmax(1)[y])
        return images

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images as the generator gives them, and n for the target classes in turn."""
        y = torch.arange(n, device=like.device) % self.classes
        mapped = self.synthesize(y, self.reader.get_buffer("transport"), like)
        return {"uniform": sample(self.generator.module, n, like), "mapped": mapped}
