"""How quick a training is, and how much of its device it makes use of."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from semisynth.method import Batch, Method, Update

ACCURACY = "validation/accuracy"  # of a line of the log: only one of an evaluation has it
SIDES, CALLS, REPEATS = (512, 1024, 2048, 4096, 8192), 10, 5  # of the matrix products
LONG = 2e-3  # seconds of a product after which no larger one is timed


def rate(log: Sequence[Mapping[str, Any]]) -> float:
    """Steps a second: the median over blocks that begin with a line, but none of an evaluation (and checkpoint)."""
    return median(
        (after["step"] - before["step"]) / max(after["seconds"] - before["seconds"], 1e-3)
        for before, after in pairwise(log)
        if ACCURACY not in before
    )


def flop(method: Method, shape: Sequence[int], batch: int, unlabeled_batch: int) -> int:
    """Of one step's losses and gradients, counted on tensors without values."""
    method = copy.deepcopy(method).to("meta")
    x, u = (torch.empty(n, *shape, device="meta") for n in (batch, unlabeled_batch))
    y, index = (torch.empty(n, dtype=torch.int64, device="meta") for n in (batch, unlabeled_batch))
    with FlopCounterMode(display=False) as counter:
        for update in method.updates().values():
            if isinstance(update, Update):
                update.combine(update.loss(Batch(x, y, u, index)), list(update.module.parameters()))
    return counter.get_total_flops()


def peak(device: torch.device) -> float:
    """FLOP a second of the quickest of square bf16 matrix products, the larger ones only while they are quick."""
    best = 0.0
    for side in SIDES:
        a = torch.randn(side, side, device=device).bfloat16()
        a @ a  # the first one chooses how
        seconds = min(timed(a) for _ in range(REPEATS))
        best = max(best, 2 * side**3 / seconds)
        if seconds > LONG:
            break
    return best


def timed(a: torch.Tensor) -> float:
    """Seconds of one product."""
    wait(a.device)
    began = time.perf_counter()
    for _ in range(CALLS):
        a @ a
    wait(a.device)
    return (time.perf_counter() - began) / CALLS


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
