"""Index splits that are the same bytes on every machine: drawn by RandomState, whose streams numpy has frozen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from semisynth import noise
from semisynth.errors import UserError


def stratified(y: Tensor, sizes: Sequence[int], seed: int, weights: Tensor | None = None) -> list[Tensor]:
    """Disjoint sorted index tensors of the given sizes that keep the class proportions; the last holds the rest.

    weights: how much of a size each takes, 1 if left out; a part is then as near below its size as fits.
    """
    weight = np.ones(len(y), np.int64) if weights is None else weights.numpy(force=True)
    if min(sizes, default=0) < 0 or sum(sizes) > weight.sum():
        raise UserError(
            f"cannot split {weight.sum()} images into sizes {list(sizes)}: "
            "give sizes of at least 0 that sum to no more than the images."
        )
    members = _shuffled_classes(y, "stratified", seed)
    parts = []
    for size in sizes:
        room = _apportion(size, [int(weight[m].sum()) for m in members])
        taken = [_fitting(weight[m], most) for m, most in zip(members, room, strict=True)]
        parts.append(_merge([m[take] for m, take in zip(members, taken, strict=True)]))
        members = [m[~take] for m, take in zip(members, taken, strict=True)]
    return [*parts, _merge(members)]


def draw_labels(y: Tensor, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """`per_class` labeled indices of every class and the remaining indices, both sorted.

    Raises `UserError` if `per_class` is below 1 or above the size of the smallest class.
    """
    if per_class < 1:
        raise UserError(f"labels_per_class is {per_class}: give at least 1, or 0 for all.")
    members = _shuffled_classes(y, "labels", seed)
    smallest = min(range(len(members)), key=lambda c: len(members[c]))
    if per_class > len(members[smallest]):
        raise UserError(
            f"labels_per_class is {per_class}, but class {smallest} has only {len(members[smallest])} "
            f"images: give at most {len(members[smallest])}."
        )
    return _merge([m[:per_class] for m in members]), _merge([m[per_class:] for m in members])


def _shuffled_classes(y: Tensor, purpose: str, seed: int) -> list[np.ndarray]:
    source = np.random.RandomState(noise.derive(purpose, seed) % 2**32)
    labels = y.numpy(force=True)
    return [source.permutation(np.flatnonzero(labels == c)) for c in range(labels.max(initial=-1) + 1)]


def _apportion(size: int, counts: list[int]) -> list[int]:
    """Split `size` in proportion to `counts` by largest remainders, in exact integers: within one of the quota."""
    total = max(sum(counts), 1)
    share = [size * n // total for n in counts]
    by_remainder = sorted(range(len(counts)), key=lambda c: -(size * counts[c] % total))
    for c in by_remainder[: size - sum(share)]:
        share[c] += 1
    return share


def _fitting(weight: np.ndarray, room: int) -> np.ndarray:
    """Which are taken, one after the other, while there is room for them."""
    taken = np.zeros(len(weight), bool)
    for i, w in enumerate(weight.tolist()):
        if w <= room:
            taken[i], room = True, room - w
    return taken


def _merge(members: list[np.ndarray]) -> Tensor:
    merged = np.concatenate([np.empty(0, np.int64), *members])
    return torch.from_numpy(np.sort(merged).astype(np.int64))
