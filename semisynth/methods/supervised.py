"""Labels only: cross-entropy on views of the labeled images. What every other method must beat, tuned as they are."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import nn

from semisynth.augment.policies import Strong, Weak
from semisynth.method import Batch, Losses, Method, Update

View = Literal["weak", "strong"]


def labeled_view(view: View, weak: Weak, strong: Strong) -> Weak | Strong:
    """What is applied to the labeled images."""
    return strong if view == "strong" else weak


class Supervised(Method):
    """Cross-entropy on weak or strong views; with few labels strong ones are by far the better baseline.

    Args:
        view: of the labeled images
    """

    reads_u = False
    ranges = {"view": ["weak", "strong"]}

    def __init__(self, model: nn.Module, weak: Weak, strong: Strong, *, view: View = "strong") -> None:
        super().__init__()
        self.model = model
        self.view = labeled_view(view, weak, strong)

    def updates(self) -> dict[str, Update]:
        return {"classifier": Update(self.model, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """CE(labeled)."""
        return Losses({"supervised": F.cross_entropy(self.model(self.view(batch.x)), batch.y)})
