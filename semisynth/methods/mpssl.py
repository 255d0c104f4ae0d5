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
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import noise
from semisynth.augment.policies import Strong, Weak
from semisynth.errors import UserError, between
from semisynth.functional import Function, cosine, frozen, global_norm, hypergradient, mean
from semisynth.generators.protocol import Generator, sample
from semisynth.method import Batch, External, Losses, Method, Update
from semisynth.methods.supervised import View, labeled_view
from semisynth.models.classifier import Classifier
from semisynth.models.mapper import Mapper


def consistency(strong: Tensor, weak: Tensor) -> Tensor:
    """L_SCR = E[1 - cos(features(A(s)), features(a(s)))], from the features (n, d) of both views."""
    return (1 - cosine(strong, weak)).mean()


def gap_loss(real: Tensor, y_real: Tensor, synthetic: Tensor, y_synthetic: Tensor, classes: int) -> Tensor:
    """L_gap: the squared distance per dimension between the mean features of real and synthetic samples, averaged over
    the classes that both have; features (n, d) and (m, d), labels (n,) and (m,). Means are over the global batch."""

    def class_means(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        member = F.one_hot(y, classes).to(features.dtype)
        share = mean(member)
        sums = mean(member[:, :, None] * features[:, None])
        return sums / share.clamp_min(1e-12)[:, None], share > 0

    (centre_real, in_real), (centre_synthetic, in_synthetic) = (
        class_means(real, y_real),
        class_means(synthetic, y_synthetic),
    )
    both = (in_real & in_synthetic).to(real.dtype)
    return ((centre_real - centre_synthetic).square().mean(1) * both).sum() / both.sum().clamp_min(1)


def through(images: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """The same value and gradient as `loss`, cut at `images`; and the norm of its gradient there.

    Valid where the optimised parameters act on the loss through these images alone.
    """
    gradient = torch.autograd.grad(loss, images, retain_graph=True)[0].detach()
    product = (images * gradient).sum()
    return loss.detach() + (product - product.detach()), global_norm(gradient)


@dataclass(frozen=True)
class Inner:
    """The inner problem: CE(labeled) + weight * L_SCR(theta)."""

    model: Classifier
    weak: Weak
    strong: Strong
    view: Weak | Strong
    weight: float

    def losses(self, batch: Batch, s: Tensor) -> Losses:
        """Both terms, with synthetic images s (m, c, h, w) that are constant."""
        with torch.no_grad():
            target = self.model.features(self.weak(s))
        both = torch.cat([self.view(batch.x), self.strong(s)])
        labeled, strong = self.model.features(both).split([len(batch.x), len(s)])
        supervised = F.cross_entropy(self.model.head(labeled), batch.y)
        return Losses({"supervised": supervised, "consistency": self.weight * consistency(strong, target)})


class SCR(Method):
    """Synthetic consistency regularisation on `u` as it comes: MP-SSL without its mapper (the paper's uniform row).

    Args:
        weight: lambda, of L_SCR
        view: of the labeled images
    """

    ranges = {"weight": (0.3, 30.0)}

    def __init__(
        self, model: Classifier, weak: Weak, strong: Strong, *, weight: float = 1.0, view: View = "strong"
    ) -> None:
        super().__init__()
        between(0, math.inf, weight=weight)
        self.model = model
        self.problem = Inner(model, weak, strong, labeled_view(view, weak, strong), weight)

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """CE(labeled) + weight * L_SCR(u)."""
        return self.problem.losses(batch, batch.u)


class MPSSL(Method):
    """min_theta CE + weight L_SCR(s), s = G(M(z, y)), alternating with min_mapper L_val(theta*) + gap L_gap.

    Args:
        weight: lambda, of L_SCR
        gap: lambda_gap, of L_gap; 0 leaves the term out
        look_ahead: whether the outer problem has L_val(theta*); false leaves the gap alone
        inner_lr: eta, of the one gradient step that stands for theta*
        mapper_lr: of the mapper's Adam
        every: steps between mapper updates
        temperature: of the Gumbel-softmax over foundation classes
        hard: whether that choice is one-hot, with the soft choice's gradient
        view: of the labeled images
    """

    reads_u = False
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
        temperature: float = 0.5,
        hard: bool = False,
        view: View = "strong",
    ) -> None:
        super().__init__()
        between(0, math.inf, weight=weight, gap=gap, inner_lr=inner_lr)
        between(1e-3, math.inf, temperature=temperature)
        if not gap and not look_ahead:
            raise UserError(
                "gap is 0 and look_ahead false: nothing is left to train the mapper by; method scr has none."
            )
        self.problem = Inner(model, weak, strong, labeled_view(view, weak, strong), weight)
        self.model, self.generator = model, External(generator)
        self.mapper = Mapper(generator.latent_shape, classes, generator.classes, temperature=temperature, hard=hard)
        self.classes, self.synthetic = classes, synthetic
        self.gap, self.look_ahead, self.inner_lr = gap, look_ahead, inner_lr
        self.mapper_lr, self.every = mapper_lr, every

    def updates(self) -> dict[str, Update]:
        adam = partial(torch.optim.Adam, lr=self.mapper_lr)
        return {
            "mapper": Update(self.mapper, self.outer, optimizer=adam, every=self.every),
            "classifier": Update(self.model, self.inner),
        }

    def synthesize(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Synthetic images s = G(M(z, y)) and the target classes y asked for; z normal, y uniform."""
        y = noise.integers(self.classes, self.synthetic, like=like)
        return self.mapped(y, like), y

    def mapped(self, y: Tensor, like: Tensor) -> Tensor:
        """An image for each target class y (n,)."""
        z = noise.normal(len(y), *self.mapper.latent_shape, like=like)
        images: Tensor = self.generator(*self.mapper(z, y))
        return images

    def inner(self, batch: Batch) -> Losses:
        """The classifier's loss, on samples of the mapper as it now is."""
        with torch.no_grad():
            s, _ = self.synthesize(batch.x)
        return self.problem.losses(batch, s)

    def outer(self, batch: Batch) -> Losses:
        """The mapper's loss: validation one classifier step ahead, and the gap under the current features."""
        s, y = self.synthesize(batch.x)
        features = self.model.features
        # Frozen weights and not a detached output: the target depends on the mapper too, through s.
        target = frozen(features)(self.problem.weak(s))
        with torch.no_grad():
            real = features(self.problem.weak(batch.x))
        gap = gap_loss(real, batch.y, target, y, self.classes)
        terms, metrics = {}, {}
        if self.gap:
            terms["gap"], metrics["gap_gradient"] = through(s, self.gap * gap)
        if self.look_ahead:
            value = self._look_ahead(batch, s, target)
            terms["validation"], metrics["validation_gradient"] = through(s, value)
        return Losses(terms, {**metrics, "distance": gap.detach()})

    def _look_ahead(self, batch: Batch, s: Tensor, target: Tensor) -> Tensor:
        def cross_entropy(model: Function) -> Tensor:
            return F.cross_entropy(model(self.problem.view(batch.x)), batch.y)

        unsupervised = self.problem.weight * consistency(self.model.features(self.problem.strong(s)), target)
        return hypergradient(self.model, cross_entropy(self.model), unsupervised, cross_entropy, self.inner_lr)

    def samples(self, n: int, like: Tensor) -> dict[str, Tensor]:
        """n images as the generator gives them, and n that the mapper asks for, target classes in turn."""
        y = torch.arange(n, device=like.device) % self.classes
        return {"uniform": sample(self.generator.module, n, like), "mapped": self.mapped(y, like)}
