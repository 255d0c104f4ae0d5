"""What a bilevel method learned, for the report: where its mapper leads, and what its synthetic images do.

It is computed once, when a run ends, for the averaged classifier in eval mode and the mapper as it then is. Nothing
here is collective over ranks, as the first one works alone. All of it is ours; no paper reports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import noise
from semisynth.generators.protocol import Generator, sample
from semisynth.method import Batch
from semisynth.models.classifier import Classifier
from semisynth.models.mapper import Mapper

SAMPLES = 100  # synthetic images that are studied
LABELED = 200  # labeled images that they are compared with, at most
DRAWS = 200  # latents of each target class
TOP = 5  # foundation classes that are shown for each target class
VIEWS = 12  # of each synthetic image, over which its influence is a mean
LABELED_VIEWS = 1000  # of labeled images in all, over which the gradient of the validation loss is a mean
CHUNK = 50  # images differentiated twice at a time, as that takes memory
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Step:
    """The classifier's step down CE + mean_i l_i at rate lr, where CE is that of views of the labeled images.

    each: (synthetic images (m, c, h, w), their rows (m,) among those that are studied) -> l_i (m,).
    """

    model: Classifier
    view: Callable[[Tensor], Tensor]
    each: Callable[[Tensor, Tensor], Tensor]
    lr: float

    def labeled(self, batch: Batch) -> Tensor:
        """CE of new views of the labeled images, which is the validation loss too."""
        return F.cross_entropy(self.model(self.view(batch.x)), batch.y)


def study(step: Step, generator: Generator, s: Tensor, batch: Batch) -> dict[str, Tensor]:
    """What the synthetic images s (n, c, h, w) do to the classifier, and how near they come to the labeled images.

    "images" (n, c, h, w) and the labeled image nearest to each by its features, "neighbours" (n, c, h, w) and their
    labels "neighbour_classes" (n,); and what `influence` and `closeness` find.
    """
    sets = {"labeled": batch.x, "mapped": s, "uniform": sample(generator, len(s), batch.x)}
    with torch.no_grad():
        features = {name: step.model.features(x) for name, x in sets.items()}
        index = distances(features["mapped"], features["labeled"]).argmin(1)
    near = {"pixels": closeness(sets), "features": closeness(features)}
    return {
        "images": pixels(s),
        "neighbours": pixels(batch.x[index]),
        "neighbour_classes": batch.y[index],
        **{f"{space}/{name}": value for space, found in near.items() for name, value in found.items()},
        **influence(step, s, batch),
    }


@torch.no_grad()
def mapping(mapper: Mapper, generator: Generator, classes: int, like: Tensor) -> dict[str, Tensor]:
    """Where the mapper leads each target class, over `DRAWS` latents.

    "angle" (classes, 5): `turns`; with a conditional generator also "mixture" (classes, foundation), the mean class
    vector; "top" (classes, TOP), its largest entries; and an image of each class in these: "foundation" (f,) and
    "portraits" (f, c, h, w), all of one latent.
    """
    y = torch.arange(classes, device=like.device).repeat_interleave(DRAWS)
    z = noise.normal(len(y), *mapper.latent_shape, like=like)
    moved, vectors = mapper(z, y)
    found = {"angle": turns(z, moved, classes)}
    if vectors is None:
        return found
    mixture = vectors.view(classes, DRAWS, -1).mean(1)
    top = mixture.topk(min(TOP, mixture.shape[1])).indices
    shown = top.unique()
    z = noise.normal(1, *generator.latent_shape, like=like).expand(len(shown), *generator.latent_shape)
    return {**found, "mixture": mixture, "top": top, "foundation": shown, "portraits": pixels(generator(z, shown))}


def turns(z: Tensor, moved: Tensor, groups: int = 1) -> Tensor:
    """Quantiles (groups, 5) of the angle between rows of z and moved (groups * n, *latent_shape), in degrees."""
    one, other = (F.normalize(x.flatten(1).double()) for x in (z, moved))
    # Unlike the arc cosine, exact where the angle is small.
    angle = 2 * torch.atan2((one - other).norm(dim=1), (one + other).norm(dim=1))
    return angle.rad2deg().view(groups, -1).quantile(angle.new_tensor(QUANTILES), dim=1).T.to(z.dtype)


def influence(step: Step, s: Tensor, batch: Batch) -> dict[str, Tensor]:
    """How each synthetic image acts on the validation loss through one inner step.

    "effect" (n,) is -lr <grad l_i, v> with v the gradient of the validation loss, both at the model's own weights: the
    first-order change of that loss for each unit of weight which l_i is given in the step, below zero where the image
    helps (TracIn: Pruthi et al. 2020, arXiv 2002.08484). The look-ahead's has v one step ahead. It is a mean over
    `VIEWS` views of s, and "error" (n,) its standard error; single views of an image hardly agree. v is over
    `LABELED_VIEWS` views in all.
    """
    parameters = [p for p in step.model.parameters() if p.requires_grad]
    passes = -(-LABELED_VIEWS // len(batch.x))
    v = [torch.zeros_like(p) for p in parameters]
    for _ in range(passes):
        slope = torch.autograd.grad(step.labeled(batch), parameters, allow_unused=True, materialize_grads=True)
        torch._foreach_add_(v, slope, alpha=1 / passes)
    rows = torch.arange(len(s), device=s.device).split(CHUNK)
    views = [torch.cat([_along(step.each(s[part], part), parameters, v) for part in rows]) for _ in range(VIEWS)]
    error, effect = torch.std_mean(-step.lr * torch.stack(views), 0)
    return {"effect": effect, "error": error / math.sqrt(VIEWS)}


def _along(losses: Tensor, parameters: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    """<grad l_i, v> of each of the losses (m,): by the derivative of their weighted gradient by the weights."""
    if not losses.requires_grad:  # all that they depend on is frozen
        return torch.zeros_like(losses)
    weights = torch.ones_like(losses).requires_grad_()
    gradient = torch.autograd.grad(
        (weights * losses).sum(), parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    product = torch.stack([(g * w).sum() for g, w in zip(gradient, v, strict=True)]).sum()
    return torch.autograd.grad(product, weights)[0]


def closeness(sets: dict[str, Tensor]) -> dict[str, Tensor]:
    """The distance of each row of each set to the nearest row of sets["labeled"], itself excepted."""
    labeled = sets["labeled"]
    among = distances(labeled, labeled).fill_diagonal_(math.inf).amin(1)
    others = {name: distances(x, labeled).amin(1) for name, x in sets.items() if name != "labeled"}
    return {"labeled": among, **others}


def distances(one: Tensor, other: Tensor) -> Tensor:
    """The root mean square difference of each row of one (n, ...) to each of other (m, ...): (n, m)."""
    exact = "donot_use_mm_for_euclid_dist"  # the other way loses the small distances
    one, other = one.flatten(1), other.flatten(1)
    return torch.cdist(one, other, compute_mode=exact) / math.sqrt(one.shape[1])


def pixels(x: Tensor) -> Tensor:
    """Images in [0, 1] to uint8."""
    return (255 * x.detach().clamp(0, 1)).round().to(torch.uint8)
