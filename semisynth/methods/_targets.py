"""What methods that learn from their own predictions share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def finite(logits: Tensor) -> Tensor:
    """Logits in float32 or wider, whatever autocast left them in, with infinite ones at a large number of their sign.

    What is computed from these is its limit: two infinite logits share all probability, one takes it. A logit that is
    no number stays so, and ends the training with a message.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    most = torch.finfo(wide.dtype).max / 4  # so that the difference of two is finite too
    return wide.clamp(-most, most)


def consistency(strong: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The mean over all rows, whatever they weigh, of weight (m,) times cross-entropy of logits (m, c) to the target.

    target: classes (m,) or probabilities (m, c).
    """
    return (F.cross_entropy(strong, target, reduction="none") * weight).mean()


def aligned(p: Tensor, expected: Tensor) -> Tensor:
    """Distribution alignment to the uniform distribution: Normalize(p / expected), rows p (m, c), expected (c,).

    After ReMixMatch (Berthelot et al. 2020, arXiv 1911.09785). `expected` may have any sum. A class that is never
    predicted stays at zero.
    """
    ratio = p / expected.clamp_min(torch.finfo(p.dtype).tiny)
    return ratio / ratio.sum(-1, keepdim=True)


def moved(before: Tensor, now: Tensor, decay: float) -> Tensor:
    """One step of an exponential moving average."""
    return decay * before + (1 - decay) * now
