"""P-SSL: Yamaguchi, Kanai, Kumagai, Chijiwa and Kashima, "Transfer learning with pre-trained conditional generative
models", 2022, arXiv 2204.12833: a baseline of MP-SSL's paper.

A source classifier reads each labeled image as the generator's own classes; what it reads conditions the generator, and
the samples are unlabeled images. That the mechanism; soft readings, of weak views, are our choice.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from semisynth import noise
from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.functional import gather
from semisynth.generators.protocol import Generator, sample
from semisynth.method import Batch, External, Losses, Method, Update
from semisynth.methods.entropy import Entropy
from semisynth.methods.fixmatch import FixMatch
from semisynth.methods.scr import SCR
from semisynth.methods.supervised import View
from semisynth.methods.uda import UDA
from semisynth.models.classifier import Classifier

LEARNERS = {"scr": SCR, "fixmatch": FixMatch, "uda": UDA, "entropy": Entropy}


class PSSL(Method):
    """Semi-supervised learning on s = G(z, p(y_F | x)), where the source classifier reads a random labeled image x.

    Args:
        loss: what the samples are used by: scr, fixmatch, uda or entropy, with that method's other defaults
        weight: lambda, of the unsupervised term
        view: of the labeled images
    """

    reads_u = False
    model: Classifier
    ranges = {"weight": (0.3, 30.0)}

    def __init__(
        self,
        model: Classifier,
        generator: Generator,
        source: nn.Module,
        weak: Weak,
        strong: Strong,
        synthetic: int,
        *,
        loss: Literal["scr", "fixmatch", "uda", "entropy"] = "scr",
        weight: float = 1.0,
        view: View = "strong",
    ) -> None:
        super().__init__()
        between(0, math.inf, weight=weight)
        self.model, self.generator, self.source = model, External(generator), External(source)
        self.weak, self.synthetic = weak, synthetic
        self.learn = LEARNERS[loss](model, weak, strong, weight=weight, view=view).loss

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    @torch.no_grad()
    def synthesize(self, x: Tensor) -> Tensor:
        """Samples conditioned on what the source classifier reads in labeled images x (n, c, h, w) of all ranks."""
        read = gather(self.source(self.weak(x)).softmax(1))
        y = read[noise.integers(len(read), self.synthetic, like=x)]
        z = noise.normal(self.synthetic, *self.generator.module.latent_shape, like=x)
        images: Tensor = self.generator(z, y)
        return images

    def loss(self, batch: Batch) -> Losses:
        """The loss of `loss`, with the samples in place of unlabeled images."""
        s = self.synthesize(batch.x)
        losses: Losses = self.learn(replace(batch, u=s, index=torch.full((len(s),), -1, device=s.device)))
        return losses

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images as the generator gives them; the conditioned ones need labeled images."""
        return {"uniform": sample(self.generator.module, n, like)}
