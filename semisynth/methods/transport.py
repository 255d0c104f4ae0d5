"""Label transport: MP-SSL whose mapper starts from what the labels tell, and whose samples bear labels. Ours.

MP-SSL (`mpssl`) asks the generator for samples of each target class and then forgets the class: its consistency reads
none. Here the samples are used with it. A source classifier reads the labeled images as the generator's classes, and
its mean posterior over a target class is the mixture of foundation classes that stands for this class: the mapper's
prior. The meta-gradient refines it. Each sample is also an example of its class, as far as the classifier agrees.
Nothing of this is in a paper; the reading is P-SSL's (arXiv 2204.12833), the rest of the machinery MP-SSL's. A reading
counts from the step after it: the first step's samples are of uniformly drawn foundation classes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from semisynth.augment.policies import Strong, Weak
from semisynth.errors import UserError, between
from semisynth.generators.protocol import Generator
from semisynth.generators.source import Reader
from semisynth.method import Batch, External, Losses, Method, Update
from semisynth.methods.mpssl import Latents, Outer
from semisynth.methods.scr import Inner
from semisynth.methods.supervised import View, labeled_view
from semisynth.models.classifier import Classifier
from semisynth.models.mapper import Mapper

FLOOR = 1e-4  # of a reading, so that its logarithm is finite and the mapper can leave it


class Transport(Method):
    """MP-SSL with label transport: a prior for the mapper, and confidence * CE(A(s), y) beside L_SCR.

    Args:
        weight: lambda, of L_SCR
        supervise: of the samples' cross-entropy to the classes that they were asked for
        refine: whether the mapper moves from its prior, by the outer problem's gradient
        gap: lambda_gap, of L_gap; 0 leaves the term out
        inner_lr: eta, of the one gradient step that stands for theta*
        mapper_lr: of the mapper's Adam
        every: steps between mapper updates
        shared: whether a step with a mapper update moves the classifier by the look-ahead's own gradient
        temperature: of the Gumbel-softmax over foundation classes
        hard: whether that choice is one-hot, with the soft choice's gradient
        view: of the labeled images
    """

    reads_u = False
    through = True
    model: Classifier
    ranges = {
        "weight": (0.1, 10.0),
        "supervise": (0.1, 3.0),
        "gap": (0.03, 10.0),
        "mapper_lr": (3e-4, 1e-2),
        "hard": [True, False],
    }

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
        supervise: float = 0.5,
        refine: bool = True,
        gap: float = 1.0,
        inner_lr: float = 0.1,
        mapper_lr: float = 1e-3,
        every: int = 4,
        shared: bool = False,
        temperature: float = 0.3,
        hard: bool = True,
        view: View = "strong",
    ) -> None:
        super().__init__()
        between(0, math.inf, weight=weight, supervise=supervise)
        self.model, self.generator, self.reader = model, External(generator), Reader(source, classes, generator.classes)
        self.mapper = Mapper(generator.latent_shape, classes, generator.classes, temperature=temperature, hard=hard)
        self.problem = Inner(model, weak, strong, labeled_view(view, weak, strong), weight, supervise)
        self.latents = Latents(self.generator, self.mapper, classes, synthetic)
        self.outer = Outer(self.problem, self.latents, gap, True, inner_lr, every, shared)
        if shared and not refine:
            raise UserError("shared is true and refine false: there is no gradient to share; leave shared out.")
        self.refine, self.mapper_lr = refine, mapper_lr

    def updates(self) -> dict[str, Update]:
        mapper = {"mapper": replace(self.outer.update(self.mapper_lr), loss=self.refined)} if self.refine else {}
        return {**mapper, "classifier": Update(self.model, self.inner)}

    def read(self, batch: Batch) -> dict[str, Tensor]:
        """What a reading of this batch makes of the buffers: the reader's, and the mapper's prior."""
        read = self.reader(self.problem.weak(batch.x), batch.y)
        prior = read["transport"].clamp_min(FLOOR).log()
        return {**{f"reader.{name}": value for name, value in read.items()}, "mapper.prior": prior}

    def refined(self, batch: Batch) -> Losses:
        """The mapper's loss, MP-SSL's, and a reading."""
        return self.outer.losses(batch)._replace(memory=self.read(batch))

    def inner(self, batch: Batch) -> Losses:
        """The classifier's loss; and a reading, if the mapper's update made none."""
        with torch.no_grad():
            s, y = self.latents(batch)
        return self.problem.losses(batch, s, y)._replace(memory={} if self.refine else self.read(batch))

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images as the generator gives them, and n that the mapper asks for, target classes in turn."""
        return self.latents.samples(n, like)

    def study(self, batch: Batch) -> dict[str, Tensor]:
        """What the mapper learned, and what its images do."""
        return self.outer.study(batch)
