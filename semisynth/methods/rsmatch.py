"""RSMatch: Wang, Mao, Xiang and Yamasaki, "From obstacles to resources: semi-supervised learning faces synthetic data
contamination", arXiv 2405.16930.

Some images of the unlabeled pool are synthetic, and nobody says which. The paper's parts are a light detector of
synthetic images, a class-wise queue of reliable ones that it is trained with, and a dummy head that learns from what it
finds, so that the classifier's own head stays clean. All else is our reconstruction, and what is open an option:

- What the detector sees (`sees`). A head on the features learns a few labeled images by heart, and then takes every
  other one for synthetic. By default it sees one number instead, which leaves nothing to learn by heart: how far a
  small copy of the image lies from the mean of its class, in units of the pool's spread. Generators make typical
  images; but whether small or large numbers are suspicious is learned. Labeled and unlabeled images are seen alike.
- Whether its gradient enters the features (`shared`), where it sees these.
- How it starts (`start`). Without any synthetic label, the whole unlabeled batch stands for the queue at first: what
  differs between it and the labeled images is all that can be known. The queue then takes over.
- What its answer means. It is trained on as much of the queue as of labeled images. The `share` of the pool that is
  synthetic turns this into a probability, and is estimated by expectation maximisation (Saerens, Latinne and
  Decaestecker, Neural Computation 2002) once there is a queue. With few labels it is a poor estimate: of clean pools
  it was between 0 and a half, the more the smaller the pool. Only what is more probably synthetic than not enters the
  queue.
- Whether the dummy head learns from all unlabeled images (`both`), not from the synthetic ones alone.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth import noise
from semisynth.augment.policies import Strong, Weak
from semisynth.errors import UserError, between
from semisynth.functional import gather
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods._spread import Spread, distance
from semisynth.methods._targets import consistency, finite, moved
from semisynth.methods.supervised import View, labeled_view
from semisynth.models.classifier import Classifier

SIDE = 8  # pixels of the small copy
SCALE = 2.0  # of its distance, so that it varies by about one
SHARE_DECAY = 0.9  # of the estimate of the share
LARGEST = 2**30  # bytes of the images in the queue, which are in every checkpoint
PERIODS = 20  # parts of the training, of each of which is remembered which images entered the queue


class Detection(NamedTuple):
    """The detector's terms, metrics and memory, and of each unlabeled image whether it is taken for synthetic (m,)."""

    terms: dict[str, Tensor]
    metrics: dict[str, Tensor]
    memory: dict[str, Tensor]
    synthetic: Tensor


class RSMatch(Method):
    """L = CE(labeled) + BCE(labeled, 0) + BCE(queue, 1) + weight * (L_real + L_synthetic).

    L_real is FixMatch through the classifier's head on what is taken for real, L_synthetic the dummy head's
    cross-entropy on all unlabeled images, or with `both` off on what is taken for synthetic, with the classifier's
    prediction on the weak view as the target, whatever its confidence.
    `index` (classes, length) is the queue's images in the pool, -1 where it is empty, and `stored` these images.
    `suspicion` (pool,) is the probability of each image when last seen, -1 before that; `entered` (PERIODS, pool) the
    class as which an image last entered the queue in that part of the training, or -1. Both are for scoring alone.

    Args:
        threshold: tau, the confidence from which a prediction is a target of the classifier, or in the queue
        weight: of both unsupervised terms
        queue: whether there is a queue; the whole unlabeled batch stands for it where there is none, and the share is
            not estimated
        length: images of each class in the queue
        detector: whether real and synthetic images are told apart; else all of them teach both heads
        sees: what the detector sees, an image's distance from its class or the features of a weak view
        shared: whether the detector's gradient enters the features, if it sees these
        start: the part of training from which on the queue is filled, images are told apart and the dummy head learns
        dummy: whether there is a dummy head; synthetic images are left out where there is none
        both: whether the dummy head learns from all unlabeled images, not from the synthetic ones alone
        view: of the labeled images
    """

    model: Classifier
    ranges = {
        "view": ["weak", "strong"],
        "threshold": [0.7, 0.8, 0.9, 0.95],
        "weight": (0.1, 3.0),
        "both": [True, False],
    }

    def __init__(
        self,
        model: Classifier,
        weak: Weak,
        strong: Strong,
        classes: int,
        pool: int,
        shape: tuple[int, int, int],
        *,
        threshold: float = 0.95,
        weight: float = 1.0,
        queue: bool = True,
        length: int = 25,
        detector: bool = True,
        sees: Literal["image", "features"] = "image",
        shared: bool = False,
        start: float = 0.2,
        dummy: bool = True,
        both: bool = True,
        view: View = "weak",
    ) -> None:
        super().__init__()
        between(0, 1, threshold=threshold, start=start)
        between(0, math.inf, weight=weight)
        between(1, math.inf, length=length)
        if not pool:
            raise UserError(
                "method 'rsmatch' finds synthetic images in the unlabeled pool, and there is none: give --unlabeled "
                "pool and, if every image is labeled, a lower --labels-per-class."
            )
        if (held := classes * length * math.prod(shape)) > LARGEST:
            raise UserError(
                f"a queue of {length} images of {classes} classes takes {held / 2**30:.1f} GiB: give a lower "
                "--method.length, or smaller images with --size."
            )
        if shared and sees != "features":
            raise UserError("the detector shares features only if it sees them: give --method.sees features too.")
        self.model, self.weak, self.strong, self.view = model, weak, strong, labeled_view(view, weak, strong)
        self.threshold, self.weight, self.start, self.sees, self.shared = threshold, weight, start, sees, shared
        self.queue, self.both = queue, both
        width = model.head.in_features
        self.detector = nn.Linear(1 if sees == "image" else width, 1) if detector else None
        self.dummy = nn.Linear(width, classes) if dummy else None
        if self.detector is not None:
            nn.init.zeros_(self.detector.weight)
            nn.init.zeros_(self.detector.bias)
        self.spread = Spread(classes, shape[0] * SIDE**2)
        self.register_buffer("share", torch.tensor(0.5))
        self.register_buffer("index", torch.full((classes, length), -1))
        self.register_buffer("stored", torch.zeros(classes, length, *shape, dtype=torch.uint8))
        self.register_buffer("suspicion", torch.full((pool,), -1.0))
        self.register_buffer("entered", torch.full((PERIODS, pool), -1, dtype=torch.int16))

    def updates(self) -> dict[str, Update]:
        trained = [part for part in (self.model, self.detector, self.dummy) if part is not None]
        return {"classifier": Update(nn.ModuleList(trained), self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """All terms; what is taken for synthetic is sorted by the detector as it is before this step."""
        with torch.no_grad():
            confidence, target = finite(self.model(self.weak(batch.u))).softmax(-1).max(-1)
        found = self.detection(batch, confidence, target)
        synthetic = found.synthetic
        real = torch.ones_like(synthetic) if self.detector is None else 1 - synthetic
        features = self.model.features(torch.cat([self.view(batch.x), self.strong(batch.u)]))
        labeled, strong = finite(self.model.head(features)).split([len(batch.x), len(batch.u)])
        mask = real * (confidence >= self.threshold)
        terms = {
            "supervised": F.cross_entropy(labeled, batch.y),
            "unsupervised": self.weight * consistency(strong, target, mask),
            **found.terms,
        }
        if self.dummy is not None:
            taught = torch.full_like(synthetic, batch.progress >= self.start) if self.both else synthetic
            dummy = finite(self.dummy(features[len(batch.x) :]))
            terms["dummy"] = self.weight * consistency(dummy, target, taught)
        return Losses(terms, {"mask": mask.mean(), **found.metrics}, memory=found.memory)

    # ---- telling real from synthetic --------------------------------------------------------------------------------

    def detection(self, batch: Batch, confidence: Tensor, target: Tensor) -> Detection:
        """What the detector finds and learns; without one, all is taken for synthetic, and for real too."""
        if self.detector is None:
            return Detection({}, {}, {}, torch.full_like(confidence, batch.progress >= self.start))
        stored, classes = self.drawn(len(batch.x))
        seen, memory = self.evidence(batch, stored, torch.cat([target, batch.y, classes]))
        logits = finite(self.detector(seen))[:, 0]
        unlabeled, labeled, queued = logits.split([len(batch.u), len(batch.x), len(stored)])
        share, started = self.get_buffer("share"), batch.progress >= self.start
        full = self.get_buffer("index") >= 0
        filled = full.any()
        as_synthetic = torch.where(filled, F.softplus(-queued).mean(), F.softplus(-unlabeled).mean())
        suspicion = (unlabeled.detach() + share.logit()).sigmoid()
        ready = filled | (started and not self.queue)
        now = moved(share, gather(suspicion).mean(), SHARE_DECAY).clamp(1e-3, 1 - 1e-3)
        memory |= {"share": torch.where(filled, now, share)}
        rows = [gather(rows) for rows in (batch.index, suspicion, confidence, target, batch.u)]
        memory |= {"suspicion": self.remembered(rows[0], rows[1])}
        if started and self.queue:
            memory |= self.entering(batch.progress, *rows)
        synthetic = (ready & (suspicion >= 0.5)).to(suspicion.dtype)
        metrics = {"synthetic": synthetic.mean(), "share": memory["share"], "queue": full.to(suspicion.dtype).mean()}
        return Detection({"detector": F.softplus(labeled).mean() + as_synthetic}, metrics, memory, synthetic)

    def remembered(self, index: Tensor, suspicion: Tensor) -> Tensor:
        """The new `suspicion`; images that are known to be synthetic, of index -1, are not remembered."""
        before = self.get_buffer("suspicion")
        place = index.where(index >= 0, len(before))
        return F.pad(before, (0, 1)).scatter_reduce(0, place, suspicion, "amax", include_self=False)[:-1]

    def drawn(self, n: int) -> tuple[Tensor, Tensor]:
        """n images of the queue, by chance and perhaps twice, and their classes; of an empty queue, empty images."""
        index = self.get_buffer("index")
        empty = index.flatten() < 0
        order = empty.to(torch.int8).argsort(stable=True)  # the full places first
        place = order[noise.integers(2**31, n, like=index) % (~empty).sum().clamp_min(1)]
        images = self.get_buffer("stored").flatten(0, 1)[place].to(self.get_buffer("share").dtype) / 255
        return images, place // index.shape[1]

    def evidence(self, batch: Batch, stored: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the detector sees (n, d) of the unlabeled, the labeled and the stored images, in this order.

        y: their classes. Also the new buffers of what this is measured with.
        """
        if self.sees == "features":
            views = torch.cat([self.weak(batch.u), self.weak(batch.x), self.weak(stored)])
            with torch.set_grad_enabled(self.shared):
                return self.model.features(views), {}
        small = torch.cat([F.adaptive_avg_pool2d(x, SIDE).flatten(1) for x in (batch.u, batch.x, stored)])
        m = len(batch.u)
        spread = self.spread.after(gather(small[:m]), gather(y[:m]), batch.step)
        memory = {f"spread.{name}": value for name, value in spread.items()}
        part = torch.full_like(y, 1 / len(self.get_buffer("suspicion")), dtype=small.dtype)
        part[m : m + len(batch.x)] = 0
        return SCALE * distance(spread, small, y, part)[:, None], memory

    def entering(
        self, progress: float, index: Tensor, suspicion: Tensor, confidence: Tensor, target: Tensor, u: Tensor
    ) -> dict[str, Tensor]:
        """The queue after the most suspicious image of each class of all ranks' images (m, c, h, w).

        Only a confident one of the pool enters that is rather synthetic than not, and is not in the queue; the oldest
        leaves.
        """
        before, stored, entered = (self.get_buffer(name) for name in ("index", "stored", "entered"))
        inside = (before.flatten() == index[:, None]).any(1)
        fit = (confidence >= self.threshold) & (suspicion >= 0.5) & ~inside & (index >= 0)
        own = F.one_hot(target, len(before)).bool() & fit[:, None]
        most, row = suspicion[:, None].where(own, -1.0).max(0)
        enters = most >= 0
        pixels = (255 * u[row]).round().to(torch.uint8)
        queue = {"index": (before, index[row]), "stored": (stored, pixels)}
        memory = {
            name: torch.cat([new[:, None], old[:, :-1]], 1).where(enters.view(-1, *[1] * (old.ndim - 1)), old)
            for name, (old, new) in queue.items()
        }
        # A place more, for the classes of which none enters.
        marks = torch.full((entered.shape[1] + 1,), -1, dtype=entered.dtype, device=entered.device)
        own_class = torch.arange(len(before), dtype=entered.dtype, device=entered.device)
        marks = marks.scatter(0, index[row].where(enters, entered.shape[1]), own_class)[:-1]
        period = torch.arange(PERIODS, device=entered.device) == int(progress * PERIODS)
        return memory | {"entered": marks.where(period[:, None] & (marks >= 0), entered)}
