"""How many images of a pool are synthetic, and which: from real images alone, without any example of a synthetic one.

Two features f of real images have a density p, those of synthetic ones q = p exp(a + b'f), and those of the pool
(1 - s) p + s q. The share s, the tilt b and an unrestricted p are fitted by empirical likelihood: Qin 1999 (Annals of
Statistics 27), Zou, Fine and Yandell 2002 (Biometrika 89); for presence only, Ward et al. 2009 (Biometrics 65).

Classes need not be as frequent in the pool as among the labeled images: features are standardised within the images
whose nearest labeled one is of a class. But for that they are computed without regard to which images are the real
ones. So, where the pool is all real, any choice of as many images of a class might have been them, and "both are alike"
is tested by permutation within classes. The tilt is not identified there, and badly where the share is small: the
interval of s is therefore the projection of the joint one of s and b (Dufour 1997, Econometrica 65). No data bound from
above the share of images that are like real ones (Blanchard, Lee and Scott 2010, JMLR 11): that takes the assumptions
that `detectable` names and that one tilt is enough. Two kinds of synthetic images with opposite ones break the upper
end, and a likelihood with quadratic terms does not show it: with a hundred labeled images it allows any share up to 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import tilt
from semisynth.errors import UserError, between
from semisynth.tilt import LEVEL, SHARES, WIDEST

LEAST = (20, 50)  # real images, and images of the pool
MOST = 20_000  # of either that the fit looks at; all of the pool are ranked
SIDE = 8  # of the small copy in which images are compared
NEAREST = 2
SHRINK = 0.03  # of the mean variance, added to the variance in every direction
FINE = 3 / 16  # cycles per pixel from which a frequency is a high one
ALIKE = 10  # images of all classes that count beside those of one class where its features are standardised
FAR = 4.0  # standard deviations at which a feature is cut off
TILTS, SHUFFLES = 400, 999  # of the test by permutation
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What an audit found.

    share, interval: of synthetic images in the pool; the share is 0 unless p, of the test that there are none, is at
    most 0.025, one of the two tails; suspicion (m,): of each image of the pool the probability that it is synthetic;
    evidence (m,): the logarithm of q / p, which ranks images also where the share is 0.
    """

    share: float
    interval: tuple[float, float]
    p: float
    suspicion: Floats
    evidence: Floats


def measure(batches: Iterable[Tensor]) -> npt.NDArray[np.float32]:
    """Of images (n, c, h, w) uint8 in batches a small copy each and, last, the log share of high frequencies."""
    found = []
    for batch in batches:
        x = batch.float() / 255
        small = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        found.append(torch.cat([small.flatten(1), _sharpness(x)[:, None]], 1).numpy())
    return np.concatenate(found)


def _sharpness(x: Tensor) -> Tensor:
    power = torch.fft.fft2(x - x.mean((2, 3), keepdim=True), norm="ortho").abs().square().mean(1)
    frequency = torch.hypot(torch.fft.fftfreq(x.shape[2])[:, None], torch.fft.fftfreq(x.shape[3]))
    high = (power * (frequency > FINE)).sum((1, 2))
    found: Tensor = ((high + 1e-6) / (power.sum((1, 2)) + 1e-6)).log()
    return found


def audit(
    real: npt.NDArray[np.float32],
    pool: npt.NDArray[np.float32],
    detectable: float = 0.7,
    seed: int = 0,
    classes: npt.NDArray[np.int64] | None = None,
) -> Found:
    """Estimate the share and rank the pool, by the measures (n, d) of real images and (m, d) of the pool's.

    classes (n,): of the real images; left out, they are one.
    detectable: the area under the curve, at least, to which the two features can tell synthetic images from real ones.
    No image should be in either twice. `UserError` for too few.
    """
    between(0.55, 0.95, detectable=detectable)
    for what, images, least in zip(("real labeled", "pool's"), (real, pool), LEAST, strict=True):
        if len(images) < least:
            raise UserError(
                f"there are {len(images)} of the {what} images to compare, copies left out: an audit needs {least} at "
                "least."
            )
    random = np.random.RandomState(seed)
    chosen = random.permutation(len(real))[:MOST]
    real, classes = real[chosen], np.zeros(len(chosen), np.int64) if classes is None else classes[chosen]
    order = random.permutation(len(pool))
    seen = np.concatenate([real, pool[order[:MOST]]])
    features = _Features(seen, classes)
    f = features(seen, inside=True)
    p = _test(f, features.kinds(seen, inside=True), len(real), detectable, random)
    likelihood, theta = tilt.profile(f, len(real), detectable)
    best = int(likelihood[1:].argmax()) + 1
    alike = p > (1 - LEVEL) / 2
    share = 0.0 if alike else float(SHARES[best])
    evidence = np.empty(len(pool))
    evidence[order[:MOST]] = theta[best, 0] + f[len(real) :] @ theta[best, 1:]
    if len(pool) > MOST:
        evidence[order[MOST:]] = theta[best, 0] + features(pool[order[MOST:]], inside=False) @ theta[best, 1:]
    odds = share * np.exp(evidence.clip(-30, 30))
    return Found(share, tilt.interval(likelihood, alike, f.shape[1]), p, odds / (1 - share + odds), evidence)


# ---- features --------------------------------------------------------------------------------------------------------


class _Features:
    """How near the nearest images are, in whitened small copies, and how sharp an image is; standardised by kind.

    seen: of which the first ones are labeled, with these classes.
    """

    def __init__(self, seen: npt.NDArray[np.float32], classes: npt.NDArray[np.int64]) -> None:
        from sklearn.neighbors import NearestNeighbors

        small = seen[:, :-1].astype(np.float64)
        self.mean = small.mean(0)
        variance, axes = np.linalg.eigh(np.cov(small.T))
        self.white = axes / np.sqrt(variance.clip(0) + SHRINK * variance.mean() + 1e-9)
        self.neighbours = NearestNeighbors(algorithm="brute").fit(self._point(seen))
        self.classes = np.unique(classes, return_inverse=True)[1]
        self.labeled = NearestNeighbors(algorithm="brute").fit(_shapes(seen[: len(classes)]))
        raw, kinds = self._raw(seen, inside=True), self.kinds(seen, inside=True)
        mean, variance = raw.mean(0), raw.var(0)
        parts = [raw[kinds == kind] for kind in range(self.classes.max() + 1)]
        self.centre = np.array([(part.sum(0) + ALIKE * mean) / (len(part) + ALIKE) for part in parts])
        spread = [((part - (part.mean(0) if len(part) else mean)) ** 2).sum(0) for part in parts]
        sizes = np.array([len(part) for part in parts])[:, None]
        self.scale = np.sqrt((np.array(spread) + ALIKE * variance) / (sizes + ALIKE)) + 1e-9

    def __call__(self, measures: npt.NDArray[np.float32], inside: bool) -> Floats:
        """(n, 2). inside: whether these are the images it was made of, so that each is its own nearest neighbour."""
        kinds = self.kinds(measures, inside)
        found: Floats = ((self._raw(measures, inside) - self.centre[kinds]) / self.scale[kinds]).clip(-FAR, FAR)
        return found

    def kinds(self, measures: npt.NDArray[np.float32], inside: bool) -> npt.NDArray[np.int64]:
        """(n,): of each image the class, by its number, of the labeled one that is nearest and not itself."""
        if not self.classes.any():
            return np.zeros(len(measures), np.int64)
        nearest = self.labeled.kneighbors(_shapes(measures), 2, return_distance=False)
        own = (nearest[:, 0] == np.arange(len(nearest))) & inside
        found: npt.NDArray[np.int64] = self.classes[np.where(own, nearest[:, 1], nearest[:, 0])]
        return found

    def _raw(self, measures: npt.NDArray[np.float32], inside: bool) -> Floats:
        distances, _ = self.neighbours.kneighbors(self._point(measures), NEAREST + inside)
        near = np.log(distances[:, int(inside) :].mean(1) + 1e-3)
        return np.stack([near, measures[:, -1]], 1)

    def _point(self, measures: npt.NDArray[np.float32]) -> Floats:
        found: Floats = (measures[:, :-1] - self.mean) @ self.white
        return found


def _shapes(measures: npt.NDArray[np.float32]) -> Floats:
    """The small copies without their brightness and contrast, which a generator may well get wrong."""
    small = measures[:, :-1].astype(np.float64)
    small -= small.mean(1, keepdims=True)
    found: Floats = small / (np.linalg.norm(small, axis=1, keepdims=True) + 1e-9)
    return found


# ---- are both alike? -------------------------------------------------------------------------------------------------


def _test(
    f: Floats, kinds: npt.NDArray[np.int64], real: int, detectable: float, random: np.random.RandomState
) -> float:
    """p of the hypothesis that the first images `real` are drawn as others of their kind are, by permutation.

    The statistic is the score of a small share, the largest over tilts of any direction.
    """
    from scipy.special import ndtri

    directions = random.randn(TILTS, f.shape[1])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = random.uniform(np.sqrt(2) * ndtri(detectable), WIDEST, (TILTS, 1))
    root = np.linalg.cholesky(np.linalg.inv(np.cov(f.T) + 1e-6 * np.eye(f.shape[1])))
    tilts = np.exp(f @ (lengths * directions @ root.T).T)
    for kind in np.unique(kinds):
        tilts[kinds == kind] -= tilts[kinds == kind].mean(0)
    tilts /= tilts.std(0) + 1e-12
    own = -tilts[:real].sum(0).min()
    ordered = np.sort(kinds)
    place = np.arange(len(f)) - np.searchsorted(ordered, ordered)  # among those of its kind
    drawn = place < np.bincount(kinds[:real], minlength=ordered[-1] + 1)[ordered]
    others = [-tilts[np.lexsort((random.rand(len(f)), kinds))[drawn]].sum(0).min() for _ in range(SHUFFLES)]
    return float((1 + (np.array(others) >= own).sum()) / (1 + SHUFFLES))
