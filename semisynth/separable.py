"""Whether images of two kinds are told apart by how their pixels are spread, without looking at what they show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semisynth.errors import UserError, between

BINS = 32  # of the pixel values
FOLDS = 5
FLOOR = 1e-6  # of a mean power before its logarithm: a constant image has none
Floats = npt.NDArray[np.float64]


def auroc(real: Tensor, synthetic: Tensor, folds: int = FOLDS, seed: int = 0) -> float:
    """How well a logistic regression on `features` ranks synthetic images above real ones that it was not fitted to.

    real, synthetic: (n, c, h, w), (m, c, h, w), uint8 or floats in [0, 1]. The mean over the folds of a stratified
    cross-validation: 0.5 where nothing is told apart, 1 where all is. `UserError` where there are fewer
    images of a kind than folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    between(2, 100, folds=folds)
    if min(len(real), len(synthetic)) < folds:
        raise UserError(
            f"{len(real)} real and {len(synthetic)} synthetic images are too few for {folds} folds: give more."
        )
    x = np.concatenate([features(real), features(synthetic)])
    flags = np.repeat([0, 1], [len(real), len(synthetic)])
    found = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, flags):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x[train], flags[train])
        found.append(rank_auroc(model.decision_function(x[test]), flags[test]))
    return float(np.mean(found))


def rank_auroc(scores: npt.ArrayLike, flags: npt.ArrayLike) -> float:
    """The share of pairs, one image flagged and one not, in which the flagged one has the higher score.

    scores, flags: (n,), the flags bool or 0 and 1; ties are halves. `UserError` where all flags are alike.
    """
    from scipy.stats import rankdata

    found = np.asarray(flags).astype(bool)
    yes, no = int(found.sum()), int((~found).sum())
    if not yes or not no:
        raise UserError(f"{yes} images are flagged and {no} are not: a ranking needs some of both.")
    ranks: Floats = rankdata(np.asarray(scores))
    return float((ranks[found].sum() - yes * (yes + 1) / 2) / (yes * no))


def features(images: Tensor) -> Floats:
    """Of each image the histogram of its values and its spectrum: (n, BINS + radii)."""
    x = images.double() / 255 if images.dtype == torch.uint8 else images.double()
    return np.concatenate([_histogram(x), _spectrum(x)], 1)


def _histogram(x: Tensor) -> Floats:
    """The share of values in each of `BINS` equal parts of [0, 1]: (n, BINS)."""
    part = (x.flatten(1) * BINS).long().clamp(0, BINS - 1)
    counts = torch.zeros(len(x), BINS, dtype=torch.float64).scatter_add_(1, part, torch.ones_like(part).double())
    found: Floats = (counts / part.shape[1]).numpy()
    return found


def _spectrum(x: Tensor) -> Floats:
    """The logarithm of the power, averaged over channels and over frequencies of the same rounded length: (n, radii).

    A frequency's length is in cycles per image, up to half of the longer side.
    """
    h, w = x.shape[2:]
    power = (torch.fft.fft2(x, norm="ortho").abs() ** 2).mean(1).flatten(1)
    down, across = torch.fft.fftfreq(h, 1 / h), torch.fft.fftfreq(w, 1 / w)
    radius = torch.hypot(down[:, None], across).round().long().flatten()
    radii = max(h, w) // 2 + 1
    ring = torch.nn.functional.one_hot(radius, int(radius.max()) + 1).double()[:, :radii]
    found: Floats = (power @ (ring / ring.sum(0)) + FLOOR).log().numpy()
    return found
