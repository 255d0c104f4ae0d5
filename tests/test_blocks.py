"""The blocks of a network against its layers called by hand, whatever the batch, and that it is left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from semisynth import blocks
from semisynth.data.datasets import Images
from semisynth.errors import UserError
from semisynth.models import build

CPU = torch.device("cpu")


def images(n: int = 9, channels: int = 1) -> Images:
    return Images(torch.randint(256, (n, channels, 8, 8), dtype=torch.uint8), torch.arange(n) % 3)


def trained(name: str, channels: int = 1) -> nn.Sequential:
    """Features whose BatchNorm has seen something, in the mode in which they are trained."""
    features = build(name, channels, 3).features
    assert isinstance(features, nn.Sequential)
    with torch.no_grad():
        features(torch.rand(20, channels, 8, 8) ** 2)
    return features


ENDS = {  # how many of the first layers make each block but the last
    "small-cnn": ("block", [4, 7]),
    "small-cnn-bn": ("block", [4, 7]),
    "wrn-16-2-bn": ("group", [4, 6]),
    "wrn-10-1": ("group", [3, 4]),
}


@pytest.mark.parametrize("name", ENDS)
def test_blocks_are_the_averaged_outputs_of_the_stages(name: str) -> None:
    features, data, (kind, ends) = trained(name, 3), images(9, 3), ENDS[name]
    found = blocks.extract(features, data, CPU)
    assert list(found) == [f"{kind}-{i}" for i in (1, 2, 3)]
    x = data.x[:].float() / 255  # type: ignore[index]
    with torch.no_grad():
        features.eval()
        expected = [features[:end](x).mean(3).mean(2) for end in ends] + [features(x)]
    for block, values in zip(found.values(), expected, strict=True):
        assert block.shape == values.shape and block.dtype == torch.float32
        torch.testing.assert_close(block, values)


def test_the_batch_does_not_matter_and_the_network_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    features, data = trained("small-cnn-bn"), images(23)
    before = {name: value.clone() for name, value in features.state_dict().items()}
    whole = blocks.extract(features, data, CPU)
    monkeypatch.setattr(blocks, "TOGETHER", 5)
    parts = blocks.extract(features, data, CPU)
    for name, block in whole.items():
        torch.testing.assert_close(parts[name], block)
    assert features.training and all(value.equal(before[name]) for name, value in features.state_dict().items())
    assert not any(module._forward_hooks for module in features.modules())


class Tokens(nn.Module):
    """(n, 1, 8, 8) -> (n, 8, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x[:, 0])
        return out


class Told(nn.Module):
    """Tokens in a dictionary, as some libraries answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.layer(x)}


class Foreign(nn.Module):
    """A network that is no row of layers; its last part is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.act, self.told, self.twice = Tokens(), nn.Tanh(), Told(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.twice(self.twice(self.told(self.act(self.tokens(x)))["tokens"].mean(1)))
        return out


class Wrapper(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.pool, self.network = nn.Identity(), network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.pool(self.network(x))] * 2, 1)


@pytest.mark.parametrize("wrapped", [lambda network: network, Wrapper])
def test_other_networks_have_the_parts_with_weights_for_blocks(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    network, data = Foreign(), images()
    found = blocks.extract(wrapped(network), data, CPU)
    assert list(found) == ["tokens", "twice", "features"]
    x = data.x[:].float() / 255  # type: ignore[index]
    with torch.no_grad():
        torch.testing.assert_close(found["tokens"], network.tokens(x).mean(1))
        torch.testing.assert_close(found["twice"], network(x))
        torch.testing.assert_close(found["features"], wrapped(network)(x))


def test_what_is_not_finite_is_told() -> None:
    features = trained("small-cnn")
    nn.init.constant_(features[4].weight, torch.inf)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="block-2 of the network is not finite"):
        blocks.extract(features, images(), CPU)
