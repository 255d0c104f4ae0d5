"""How much of the classes features (n, d) tell: logistic regression and nearest neighbours.

Whatever is free in either is chosen on the validation images; the test images are asked once, of what was chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

L2 = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # of equally good ones the first is chosen, so the strongest
ITERATIONS = 1000  # of L-BFGS, at most
NEIGHBOURS = (1, 5, 10, 20, 50, 100)
TEMPERATURE = 0.07  # of the votes
TOGETHER = 1000  # images whose similarities are in memory at a time

Classify = Callable[[Tensor], Tensor]  # features (n, d) -> labels (n,)


class Labeled(NamedTuple):
    """Features x (n, d) and labels y (n,) on one device."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Chosen:
    """The candidate that was best on validation, and its accuracies."""

    value: float
    validation: float
    test: float


def select(candidates: Iterable[tuple[float, Classify]], validation: Labeled, test: Labeled) -> Chosen:
    """The best on validation, of equally good ones the first; it alone is asked of the test images."""
    scored = [(_accuracy(classify, validation), value, classify) for value, classify in candidates]
    best, value, classify = max(scored, key=lambda row: row[0])
    return Chosen(value, best, _accuracy(classify, test))


def linear(train: Labeled, validation: Labeled, test: Labeled, pool: Tensor, penalties: Sequence[float] = L2) -> Chosen:
    """Logistic regression on features of mean 0 and variance 1 over `pool` (m, d), which needs no labels.

    The penalty is chosen. Statistics of a few labeled images would blow up features that hardly vary among these.
    """
    mean, scale = pool.double().mean(0), pool.double().std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1)

    def standardised(images: Labeled) -> Labeled:
        return Labeled((images.x.double() - mean) / scale, images.y)

    train = standardised(train)
    candidates = ((l2, logistic(train, l2)) for l2 in penalties)
    return select(candidates, standardised(validation), standardised(test))


def logistic(train: Labeled, l2: float) -> Classify:
    """argmax Wx + b, of the W and b that minimise the mean cross-entropy + l2 |W|^2 / 2 (of two classes, one w).

    What has not converged after ITERATIONS is a classifier as it stands.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (l2 * len(train.y)), max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train.x.numpy(), train.y.numpy())
    return lambda x: torch.from_numpy(model.predict(x.numpy()))


def neighbours(train: Labeled, validation: Labeled, test: Labeled, counts: Sequence[int] = NEIGHBOURS) -> Chosen:
    """Votes of the k most similar images; k is chosen among those that there are images for."""
    return select(((k, nearest(train, k)) for k in counts if k <= len(train.y)), validation, test)


def nearest(train: Labeled, k: int) -> Classify:
    """The class with the most votes exp(s / 0.07) of the k neighbours of largest cosine similarity s.

    Wu et al., CVPR 2018 (arXiv 1805.01978, section 3.4).
    """
    among, classes = F.normalize(train.x, dim=1), int(train.y.max()) + 1

    def classify(x: Tensor) -> Tensor:
        return torch.cat([vote(part) for part in F.normalize(x, dim=1).split(TOGETHER)])

    def vote(part: Tensor) -> Tensor:
        similarity, index = (part @ among.T).topk(k, dim=1)
        votes = similarity.new_zeros(len(part), classes, dtype=torch.float64)
        return votes.scatter_add_(1, train.y[index], (similarity.double() / TEMPERATURE).exp()).argmax(1)

    return classify


def _accuracy(classify: Classify, images: Labeled) -> float:
    return (classify(images.x) == images.y).double().mean().item()
