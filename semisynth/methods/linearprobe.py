"""Logistic regression on frozen features: what a pretrained encoder knows already, read from a few labels.

DPT's first classifier on ImageNet (You et al. 2023, arXiv 2302.10586, section 4.1) is of this kind.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from semisynth.augment.policies import Strong, Weak
from semisynth.functional import evaluating
from semisynth.method import Batch, Losses, Method, Update
from semisynth.methods.supervised import View, labeled_view
from semisynth.models import Classifier


class LinearProbe(Method):
    """Cross-entropy of the head on features of --init, which stay as they are, BatchNorm's statistics too.

    DPT solves the regression exactly, on features of the images themselves that are centred and of unit length; here
    the head takes the engine's steps, with its weight decay, on features of views as they come.

    Args:
        view: of the labeled images
    """

    reads_u = False
    ranges = {"view": ["weak", "strong"]}
    model: Classifier

    def __init__(self, model: Classifier, weak: Weak, strong: Strong, *, view: View = "strong") -> None:
        super().__init__()
        self.model = model
        self.view = labeled_view(view, weak, strong)

    def updates(self) -> dict[str, Update]:
        return {"head": Update(self.model.head, self.loss)}

    def loss(self, batch: Batch) -> Losses:
        """CE(head(features(labeled)))."""
        with torch.no_grad(), evaluating(self.model.features):
            features = self.model.features(self.view(batch.x))
        return Losses({"supervised": F.cross_entropy(self.model.head(features), batch.y)})
