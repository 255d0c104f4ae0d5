"""How hard an image of a class is, by the doubt of a classifier.

What we know of "difficulty-controlled synthesis" (arXiv 2411.18109) is second-hand: this is our reconstruction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from semisynth.method import External


class Judge(nn.Module):
    """judge(x, y) -> s = 1 - p(y | x), (n,) in [0, 1], of images (n, c, h, w) and labels (n,); without gradient.

    classifier: a trained one, which stays as it is; columns (classes,): which of its classes each label is.
    """

    def __init__(self, classifier: nn.Module, columns: Tensor) -> None:
        super().__init__()
        self.classifier = External(classifier)
        self.register_buffer("columns", columns, persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The difficulty of each image."""
        probability: Tensor = self.classifier(x).softmax(1)[:, self.get_buffer("columns")]
        return 1 - probability.gather(1, y[:, None])[:, 0]
