"""MGR: Yamaguchi, Chijiwa, Kanai, Kumagai and Kashima, "Regularizing neural networks with meta-learning generative
models", NeurIPS 2023, arXiv 2307.13899. MP-SSL's sibling: no gap, no classes to map.

The paper's are the two ideas: pseudo consistency regularisation (PCR) of the feature extractor by synthetic images, and
meta pseudo sampling (MPS) of these by a finder on z that lowers the validation loss. Their forms are recalled from it.
That both branches of PCR have a gradient, that its s is the image itself and not a view, and the outer batch (always
the drawn labels, under another view) are our reconstruction. The paper's generator was trained on the target set and
asked for target classes; one of foundation classes is asked here for uniform ones, and for none if it has none: our
adaptation, which PCR allows, as it reads no label.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import insight
from semisynth.augment.policies import Strong, Weak
from semisynth.errors import between
from semisynth.functional import Function, hypergradient
from semisynth.generators.protocol import Generator, draw
from semisynth.method import Batch, External, Losses, Method, Update
from semisynth.methods.supervised import View, labeled_view
from semisynth.models.classifier import Classifier
from semisynth.models.mapper import Finder
from semisynth.twice import twice


def consistency(plain: Tensor, strong: Tensor) -> Tensor:
    """L_PCR = E ||features(s) - features(A(s))||^2, from the features (n, d) of both."""
    return (plain - strong).square().sum(1).mean()


class MGR(Method):
    """min_theta CE + weight L_PCR(s), s = G(F(z), y), alternating with min_mapper L_val(theta*), where F is the mapper.

    Args:
        weight: lambda, of L_PCR; too large a one makes the features constant, where L_PCR is 0
        inner_lr: eta, of the one gradient step that stands for theta*
        mapper_lr: of the mapper's Adam
        every: steps between mapper updates
        view: of the labeled images
    """

    reads_u = False
    through = True
    model: Classifier
    ranges = {"weight": (0.001, 0.3), "inner_lr": (0.03, 1.0), "mapper_lr": (3e-4, 1e-2)}

    def __init__(
        self,
        model: Classifier,
        generator: Generator,
        weak: Weak,
        strong: Strong,
        synthetic: int,
        *,
        weight: float = 0.01,
        inner_lr: float = 0.1,
        mapper_lr: float = 1e-3,
        every: int = 1,
        view: View = "strong",
    ) -> None:
        super().__init__()
        between(0, math.inf, weight=weight, inner_lr=inner_lr)
        self.model, self.generator, self.mapper = model, External(generator), Finder(generator.latent_shape)
        self.strong, self.view = strong, labeled_view(view, weak, strong)
        self.synthetic, self.weight, self.inner_lr = synthetic, weight, inner_lr
        self.mapper_lr, self.every = mapper_lr, every

    def updates(self) -> dict[str, Update]:
        adam = partial(torch.optim.Adam, lr=self.mapper_lr)
        return {
            "mapper": Update(self.mapper, self.outer, optimizer=adam, every=self.every, second_order=True),
            "classifier": Update(self.model, self.inner),
        }

    def synthesize(self, like: Tensor) -> Tensor:
        """Synthetic images s = G(F(z), y); z normal, y uniform over the generator's classes."""
        z, y = draw(self.generator.module, self.synthetic, like)
        return twice(self.generator)(self.mapper(z), y)

    def inner(self, batch: Batch) -> Losses:
        """The classifier's loss, on samples of the mapper as it now is."""
        with torch.no_grad():
            s = self.synthesize(batch.x)
        images = torch.cat([self.view(batch.x), s, self.strong(s)])
        labeled, plain, strong = self.model.features(images).split([len(batch.x), len(s), len(s)])
        supervised = F.cross_entropy(self.model.head(labeled), batch.y)
        return Losses({"supervised": supervised, "consistency": self.weight * consistency(plain, strong)})

    def outer(self, batch: Batch) -> Losses:
        """The mapper's loss: validation one classifier step ahead."""

        def cross_entropy(model: Function) -> Tensor:
            return F.cross_entropy(model(self.view(batch.x)), batch.y)

        s = self.synthesize(batch.x)
        unsupervised = self.weight * consistency(
            *twice(self.model.features, attention=True)(torch.cat([s, self.strong(s)])).chunk(2)
        )
        value, _ = hypergradient(self.model, cross_entropy(self.model), unsupervised, cross_entropy, self.inner_lr)
        return Losses({"validation": value})

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images as the generator gives them, and what becomes of them when the mapper moves their latents."""
        z, y = draw(self.generator.module, n, like)
        return {"uniform": self.generator(z, y), "mapped": self.generator(self.mapper(z), y)}

    def study(self, batch: Batch) -> dict[str, Tensor]:
        """How far the finder turns latents, and what its images do."""

        def each(s: Tensor, rows: Tensor) -> Tensor:
            plain, strong = twice(self.model.features, attention=True)(torch.cat([s, self.strong(s)])).chunk(2)
            losses: Tensor = self.weight * (plain - strong).square().sum(1)
            return losses

        z, y = draw(self.generator.module, insight.SAMPLES, batch.x)
        with torch.no_grad():
            moved = self.mapper(z)
            s = self.generator(moved, y)
        step = insight.Step(self.model, self.view, each, self.inner_lr)
        return {"angle": insight.turns(z, moved), **insight.study(step, self.generator.module, s, batch)}
