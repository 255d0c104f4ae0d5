"""MP-SSL: Yamaguchi, "Generative semi-supervised learning with meta-optimized synthetic samples", ACML 2023,
arXiv 2309.16143.

The paper's are the two alternating optimisations, the cosine consistency on the feature extractor, and the two terms of
the outer problem. The names, the order of a step and the one-step look-ahead are recalled from it; the form of the gap,
the stop-gradient at the target's weights, and the outer batch (always the drawn labels, under another view) are our
reconstruction. The look-ahead reads labeled and synthetic images in separate passes, as its mixed derivative
needs; with BatchNorm its batch statistics differ from those of the classifier's step, which reads them in one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from semisynth import distributed, insight, noise
from semisynth.augment.policies import Strong, Weak
from semisynth.errors import UserError, between
from semisynth.functional import Function, class_means, frozen, global_norm, hypergradient
from semisynth.generators.protocol import Generator, sample
from semisynth.method import Batch, External, Losses, Method, Ready, Update
from semisynth.methods.scr import Inner
from semisynth.methods.supervised import View, labeled_view
from semisynth.models.classifier import Classifier
from semisynth.models.mapper import Mapper
from semisynth.twice import twice

MEASURED = 10  # mapper updates from one measurement of the gradients' norms to the next


def gap_loss(real: Tensor, y_real: Tensor, synthetic: Tensor, y_synthetic: Tensor, classes: int) -> Tensor:
    """L_gap: the squared distance per dimension between the mean features of real and synthetic samples, averaged over
    the classes that both have; features (n, d) and (m, d), labels (n,) and (m,). Means are over the global batch."""
    centre_real, in_real = class_means(real, y_real, classes)
    centre_synthetic, in_synthetic = class_means(synthetic, y_synthetic, classes)
    both = (in_real & in_synthetic).to(real.dtype)
    return ((centre_real - centre_synthetic).square().mean(1) * both).sum() / both.sum().clamp_min(1)


@dataclass(frozen=True)
class Latents:
    """Synthetic images G(M(z, y)) of target classes: z normal, y uniform; `synthetic` of them in a step."""

    generator: External[Generator]
    mapper: Mapper
    classes: int
    synthetic: int

    def __call__(self, batch: Batch, n: int | None = None) -> tuple[Tensor, Tensor]:
        """Images s (n, c, h, w) and the target classes y (n,) asked for, at this point of the training."""
        y = noise.integers(self.classes, n or self.synthetic, like=batch.x)
        return self.of(y, batch.x, batch.progress), y

    def of(self, y: Tensor, like: Tensor, progress: float = 1.0) -> Tensor:
        """An image for each target class y (n,)."""
        z = noise.normal(len(y), *self.mapper.latent_shape, like=like)
        return twice(self.generator)(*self.mapper(z, y, progress))

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images as the generator gives them, and n that the mapper asks for, target classes in turn."""
        y = torch.arange(n, device=like.device) % self.classes
        return {"uniform": sample(self.generator.module, n, like), "mapped": self.of(y, like)}


@dataclass(frozen=True)
class Outer:
    """The outer problem: L_val(theta*) + gap * L_gap, with theta* one step of inner_lr down the inner problem.

    gap 0 or look_ahead false leaves a term out; shared: whether the inner gradient is handed on to the classifier;
    meta: this rank's samples in a mapper update, if they are fewer than in the classifier's.
    """

    problem: Inner
    latents: Latents
    gap: float
    look_ahead: bool
    inner_lr: float
    every: int
    shared: bool
    meta: int | None = None

    def __post_init__(self) -> None:
        between(0, math.inf, gap=self.gap, inner_lr=self.inner_lr)
        if not self.gap and not self.look_ahead:
            raise UserError(
                "gap is 0 and look_ahead false: nothing is left to train the mapper by; method scr has none."
            )
        if self.shared and not self.look_ahead:
            raise UserError("shared is true and look_ahead false: there is no gradient to share; leave shared out.")
        if self.shared and self.meta is not None:
            raise UserError("shared is true and meta given: the classifier's samples are the mapper's; leave one out.")
        if self.shared and any(isinstance(module, _BatchNorm) for module in self.problem.model.modules()):
            raise UserError(
                "shared is true and the model has BatchNorm, whose statistics only the classifier's own passes may "
                "write: leave shared out, or choose a model with GroupNorm."
            )

    def update(self, mapper_lr: float) -> Update:
        """The mapper's update."""
        adam = partial(torch.optim.Adam, lr=mapper_lr)
        mapper = self.latents.mapper
        return Update(mapper, self.losses, optimizer=adam, every=self.every, second_order=self.look_ahead)

    def losses(self, batch: Batch) -> Losses:
        """The mapper's loss: validation one classifier step ahead, and the gap under the current features."""
        s, y = self.latents(batch, self.meta)
        features = self.problem.model.features
        # Frozen weights and not a detached output: the target depends on the mapper too, through s.
        target = twice(frozen(features))(self.problem.weak(s))
        with torch.no_grad():
            real = features(self.problem.weak(batch.x))
        gap = gap_loss(real, batch.y, target, y, self.latents.classes)
        terms, ready = {}, {}
        if self.gap:
            terms["gap"] = self.gap * gap
        if self.look_ahead:
            terms["validation"], ready["classifier"] = self._look_ahead(batch, s, y, target)
        metrics = {"distance": gap.detach(), **self._norms(batch, s, terms)}
        return Losses(terms, metrics, ready=ready if self.shared else {})

    def _look_ahead(self, batch: Batch, s: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Ready]:
        problem = self.problem

        def cross_entropy(model: Function) -> Tensor:
            return F.cross_entropy(model(problem.view(batch.x)), batch.y)

        terms = problem.synthetic(twice(problem.model.features, attention=True)(problem.strong(s)), target, y)
        supervised, varying = cross_entropy(problem.model), torch.stack(list(terms.values())).sum()
        value, inner = hypergradient(problem.model, supervised, varying, cross_entropy, self.inner_lr)
        found = {name: term.detach() for name, term in {"supervised": supervised, **terms}.items()}
        return value, Ready(Losses(found), inner)

    def _norms(self, batch: Batch, s: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The norms of both terms' gradients at the images, now and then: they take another backward pass each."""
        if batch.step % (MEASURED * self.every):
            return {}
        return {
            f"{name}_gradient": global_norm(torch.autograd.grad(term, s, retain_graph=True)[0])
            for name, term in terms.items()
        }

    def study(self, batch: Batch) -> dict[str, Tensor]:
        """What the mapper learned, and what its images do, target classes in turn."""
        latents, problem, generator = self.latents, self.problem, self.latents.generator.module
        y = torch.arange(insight.SAMPLES, device=batch.x.device) % latents.classes
        with torch.no_grad():
            s = latents.of(y, batch.x)
        step = insight.Step(problem.model, problem.view, lambda x, rows: problem.each(x, y[rows]), self.inner_lr)
        mapped = insight.mapping(latents.mapper, generator, latents.classes, batch.x)
        return {"asked": y, **mapped, **insight.study(step, generator, s, batch)}


class MPSSL(Method):
    """min_theta CE + weight L_SCR(s), s = G(M(z, y)), alternating with min_mapper L_val(theta*) + gap L_gap.

    Args:
        weight: lambda, of L_SCR
        gap: lambda_gap, of L_gap; 0 leaves the term out
        look_ahead: whether the outer problem has L_val(theta*); false leaves the gap alone
        inner_lr: eta, of the one gradient step that stands for theta*
        mapper_lr: of the mapper's Adam
        every: steps between mapper updates
        shared: whether a step with a mapper update moves the classifier by the look-ahead's own gradient, of samples
            made before the mapper moved: cheaper
        meta: samples in a mapper update, if fewer than in the classifier's are to do; 0 for as many
        temperature: of the Gumbel-softmax over foundation classes, at the start
        cooling: the temperature at the end over that at the start
        hard: whether that choice is one-hot, with the soft choice's gradient
        view: of the labeled images
    """

    reads_u = False
    through = True
    model: Classifier
    ranges = {
        "weight": (0.3, 30.0),
        "gap": (0.03, 10.0),
        "inner_lr": (0.03, 1.0),
        "mapper_lr": (3e-4, 1e-2),
        "temperature": [0.3, 0.5, 1.0],
    }

    def __init__(
        self,
        model: Classifier,
        generator: Generator,
        weak: Weak,
        strong: Strong,
        classes: int,
        synthetic: int,
        *,
        weight: float = 1.0,
        gap: float = 1.0,
        look_ahead: bool = True,
        inner_lr: float = 0.1,
        mapper_lr: float = 1e-3,
        every: int = 1,
        shared: bool = False,
        meta: int = 0,
        temperature: float = 0.5,
        cooling: float = 1.0,
        hard: bool = False,
        view: View = "strong",
    ) -> None:
        super().__init__()
        between(0, math.inf, weight=weight, meta=meta)
        self.model, self.generator = model, External(generator)
        self.mapper = Mapper(
            generator.latent_shape, classes, generator.classes, temperature=temperature, cooling=cooling, hard=hard
        )
        self.problem = Inner(model, weak, strong, labeled_view(view, weak, strong), weight)
        self.latents = Latents(self.generator, self.mapper, classes, synthetic)
        few = distributed.share(meta, "meta") if meta else None
        if few is not None and few > synthetic:
            raise UserError(f"meta is {meta}, more than the classifier's own samples: give fewer, or leave it out.")
        self.outer = Outer(self.problem, self.latents, gap, look_ahead, inner_lr, every, shared, few)
        self.mapper_lr = mapper_lr

    def updates(self) -> dict[str, Update]:
        return {"mapper": self.outer.update(self.mapper_lr), "classifier": Update(self.model, self.inner)}

    def inner(self, batch: Batch) -> Losses:
        """The classifier's loss, on samples of the mapper as it now is."""
        with torch.no_grad():
            s, _ = self.latents(batch)
        return self.problem.losses(batch, s)

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images as the generator gives them, and n that the mapper asks for, target classes in turn."""
        return self.latents.samples(n, like)

    def study(self, batch: Batch) -> dict[str, Tensor]:
        """What the mapper learned, and what its images do."""
        return self.outer.study(batch)
