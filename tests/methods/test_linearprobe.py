"""Linear probes: the loss on frozen features, and that nothing but the head moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import zoo

from semisynth import models, noise, weights
from semisynth.methods import LinearProbe
from semisynth.models import Classifier
from semisynth.recipes import restore, single


@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("name", ["cnn-group-relu", "cnn-batch-relu"])
def test_the_loss_is_the_mean_over_images(name: str, view: str) -> None:
    model, data = zoo.network(name), zoo.batch()
    method = LinearProbe(model, zoo.WEAK, zoo.STRONG, view=view)
    with noise.seeded(0):
        found = method.train().loss(data).terms["supervised"].item()
    with noise.seeded(0):
        seen = {"weak": zoo.WEAK, "strong": zoo.STRONG}[view](data.x)
    model.eval()
    naive = [zoo.cross_entropy(model(x[None])[0].tolist(), y) for x, y in zip(seen, data.y.tolist(), strict=True)]
    assert found == pytest.approx(sum(naive) / len(naive), rel=1e-10)


def test_the_head_alone_has_a_gradient() -> None:
    method = LinearProbe(zoo.network("cnn-group-relu"), zoo.WEAK, zoo.STRONG)
    (update,) = method.updates().values()
    assert update.module is method.model.head
    update.loss(zoo.batch()).terms["supervised"].backward()
    assert all(p.grad is None for p in method.model.features.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.model.head.parameters())


def test_features_and_their_statistics_stay_as_they_were(tmp_path: Path) -> None:
    first = tmp_path / "first"
    single.fit(tiny.config("supervised", model="small-cnn-bn", steps=3), first, show=False)
    config = tiny.config("linear-probe", model="small-cnn-bn", init=str(first), steps=5, ema=0.0)
    assert config.method == "linearprobe"
    single.fit(config, tmp_path / "probe", show=False)
    _, model, _, _ = restore.classifier(tmp_path / "probe", torch.device("cpu"))
    assert isinstance(model, Classifier)
    _, before, _, _ = restore.classifier(first, torch.device("cpu"))
    assert isinstance(before, Classifier)
    assert tiny.same(dict(model.features.state_dict()), dict(before.features.state_dict()))
    assert not model.head.weight.equal(before.head.weight)


def test_foundation_features_are_worth_more_than_random_ones() -> None:
    """From the shipped features two labels a class are read far above chance."""
    method = single.Materials(tiny.config("linear-probe", init="foundation", steps=60, lr=0.3))
    fresh = models.build("small-cnn", 1, 10)
    weights.load_into(fresh.features, models.foundation("foundation", "small-cnn"), "features.")
    model = method.config.engine.fit(method.method, method.stream, 60)
    test = method.data.test
    accuracy = (model(test.x[:].float() / 255).argmax(1) == test.y).double().mean().item()
    assert isinstance(model, Classifier) and accuracy > 0.6
    assert tiny.same(dict(model.features.state_dict()), dict(fresh.features.state_dict()))
