"""Wide residual networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from semisynth.models import wrn
from semisynth.models.wrn import Block, leaky


@pytest.mark.parametrize("depth, factor, millions", [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (16, 8, 11.0)])
def test_sizes_are_those_of_the_paper(depth: int, factor: int, millions: float) -> None:
    with torch.device("meta"):
        model = wrn(depth, factor, 3, 10, norm_kind="batch")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == depth - 3  # and three 1x1 shortcuts and a head, which the paper counts


def test_groups_halve_the_image_and_widen() -> None:
    model, sizes = wrn(16, 2, 3, 10), []
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.rand(1, 3, 32, 32))
    assert sizes == [(32, 32, 32)] * 2 + [(64, 16, 16)] * 2 + [(128, 8, 8)] * 2


def test_a_block_adds_its_body_to_its_input() -> None:
    x = torch.randn(2, 8, 6, 6)
    same, down = (Block(8, after, stride, "group", nn.SiLU) for after, stride in ((8, 1), (16, 2)))
    assert same.shortcut is None and torch.allclose(same(x) - x, same.body(same.first(x)), atol=1e-6)
    a = down.first(x)
    assert down(x).shape == (2, 16, 3, 3) and down(x).equal(down.body(a) + down.shortcut(a))
    for after, stride in ((16, 1), (8, 2)):
        assert Block(8, after, stride, "group", nn.SiLU).shortcut is not None
    for block in (same, down):
        nn.init.zeros_(block.body[-1].weight)
    assert same(x).equal(x)


def test_convolutions_start_by_he_s_rule_for_fan_out() -> None:
    for module in wrn(10, 4, 3, 10).modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_norm_and_activation_are_those_asked_for() -> None:
    def kinds(model: nn.Module) -> set[type[nn.Module]]:
        return {type(m) for m in model.modules()} & {nn.GroupNorm, nn.BatchNorm2d, nn.LeakyReLU, nn.SiLU}

    assert kinds(wrn(10, 1, 1, 2)) == {nn.GroupNorm, nn.LeakyReLU}
    assert kinds(wrn(10, 1, 1, 2, norm_kind="batch", activation=nn.SiLU)) == {nn.BatchNorm2d, nn.SiLU}
    assert leaky()(torch.tensor([-1.0, 2.0])).tolist() == pytest.approx([-0.1, 2.0])
