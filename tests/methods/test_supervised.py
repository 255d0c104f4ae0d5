from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor

from semisynth import noise
from semisynth.method import Batch
from semisynth.methods import Supervised

LOGITS = {
    "random": zoo.normal(7, 4, 1.0, 0),
    "sure": 60 * torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 3]],
    "undecided": torch.zeros(3, 4, dtype=torch.float64),
}


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
@pytest.mark.parametrize("y", [torch.arange(7) % 4, torch.zeros(7, dtype=torch.int64)], ids=["all", "one class"])
def test_loss_is_the_mean_over_images(logits: Tensor, y: Tensor) -> None:
    y = y[: len(logits)]
    method = Supervised(zoo.Reader(4), zoo.faint, lambda x: 2 * x)
    losses = method.loss(Batch(logits[:, :, None, None], y, logits[:0], y[:0]))
    naive = sum(zoo.cross_entropy((2 * row).tolist(), label) for row, label in zip(logits, y.tolist(), strict=True))
    assert list(losses.terms) == ["supervised"]
    assert losses.terms["supervised"].item() == pytest.approx(naive / len(y), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_view_is_the_one_asked_for(view: str) -> None:
    model, data = zoo.network("cnn-group-relu"), zoo.batch()
    method = Supervised(model, zoo.WEAK, zoo.STRONG, view=view)
    with noise.seeded(0):
        found = method.loss(data).terms["supervised"]
    with noise.seeded(0):
        seen = {"weak": zoo.WEAK, "strong": zoo.STRONG}[view](data.x)
    assert found.equal(F.cross_entropy(model(seen), data.y))


def test_the_model_is_what_moves() -> None:
    method = Supervised(zoo.network("cnn-group-relu"), zoo.WEAK, zoo.STRONG)
    updates = method.updates()
    assert list(updates) == ["classifier"] and updates["classifier"].module is method.model
    assert all(g.abs().sum() > 0 for g in zoo.gradients(method, "classifier", zoo.batch()))
