"""What every network has in common."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import nn

from semisynth.models.classifier import Classifier, Normalize, norm

each_network = pytest.mark.parametrize("name", zoo.NETWORKS)


def test_normalize_maps_the_unit_interval_to_minus_one_and_one() -> None:
    x = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3)
    assert Normalize()(x).flatten().tolist() == [-1.0, -0.5, 1.0]


def test_a_classifier_is_the_head_of_the_features() -> None:
    classifier = Classifier(nn.Flatten(), 4, 3)
    x = torch.rand(5, 1, 2, 2)
    assert classifier(x).equal(x.flatten(1) @ classifier.head.weight.T + classifier.head.bias)
    assert classifier(x).shape == (5, 3)


@each_network
def test_a_network_normalises_first_and_gives_features_and_logits(name: str) -> None:
    model, x = zoo.network(name), zoo.batch().x
    assert isinstance(model.features[0], Normalize)
    assert model.features(x).shape == (6, model.head.in_features) and model(x).shape == (6, zoo.CLASSES)
    assert model(x).equal(model.head(model.features(x)))


@each_network
def test_an_image_is_judged_alone_with_groupnorm_and_among_others_with_batchnorm(name: str) -> None:
    model, x = zoo.network(name), zoo.batch().x
    alone = torch.cat([model(image[None]) for image in x])
    assert torch.allclose(alone, model(x)) == ("group" in name)
    model.eval()
    torch.testing.assert_close(torch.cat([model(image[None]) for image in x]), model(x))


@each_network
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = zoo.network(name)
    loss = model(zoo.batch().x).square().sum()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, list(model.parameters())))


@each_network
def test_a_network_takes_other_sizes(name: str) -> None:
    assert zoo.network(name)(torch.rand(2, 1, 16, 12).double()).shape == (2, zoo.CLASSES)


@pytest.mark.parametrize("channels, groups", [(8, 1), (16, 2), (64, 8), (4, 1)])
def test_groups_have_at_least_eight_channels(channels: int, groups: int) -> None:
    layer = norm("group", channels)
    assert isinstance(layer, nn.GroupNorm) and (layer.num_groups, layer.num_channels) == (groups, channels)
    batch = norm("batch", channels)
    assert isinstance(batch, nn.BatchNorm2d) and batch.num_features == channels
