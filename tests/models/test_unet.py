"""The U-Net: shapes, its grids, what its output depends on, and gradients in image, class and weights."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from semisynth.errors import UserError
from semisynth.models.unet import TIMES, UNet, grids
from semisynth.models.uvit import waves

SHAPE = (2, 8, 12)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.randn(3, *SHAPE, generator=source), torch.tensor([-1.5, 0.0, 1.0]), torch.eye(4)[:3]


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 8, 12), (4, 2, 2), (3, 7, 7), (1, 16, 16)])
def test_an_image_goes_in_and_one_of_its_shape_comes_out(shape: tuple[int, int, int]) -> None:
    assert UNet(shape, 4)(torch.randn(3, *shape), torch.zeros(3), torch.eye(4)[:3]).shape == (3, *shape)


def test_grids_are_halved_while_they_can_be_and_down_to_four() -> None:
    assert grids(32, 32, 4) == [32, 16, 8, 4] and grids(64, 64, 4) == [64, 32, 16, 8]
    assert grids(8, 8, 4) == [8, 4] and grids(8, 16, 4) == [16, 8] and grids(28, 28, 4) == [28, 14, 7]
    assert grids(4, 4, 2) == [4] and grids(2, 2, 2) == [2] and grids(9, 8, 2) == [9]


def test_the_larger_one_has_attention_where_it_is_affordable() -> None:
    network = UNet((3, 32, 32), 4, "unet")
    kinds = [hasattr(block, "attentions") for block in network.network.down_blocks]
    assert kinds == [False, True, True, True]
    assert [hasattr(block, "attentions") for block in network.network.up_blocks] == kinds[::-1]
    with torch.device("meta"):
        large = UNet((3, 128, 128), 4, "unet").network
    assert [hasattr(block, "attentions") for block in large.down_blocks] == [False, False, False, True]


def test_each_row_depends_on_its_own_image_level_and_class() -> None:
    network = UNet(SHAPE, 4).eval()
    x, level, y = inputs()
    before = network(x, level, y)
    changed = [(x + torch.eye(3)[1].view(3, 1, 1, 1), level, y), (x, level + torch.eye(3)[1], y)]
    changed.append((x, level, torch.eye(4)[[0, 3, 2]]))
    for arguments in changed:
        moved = (network(*arguments) - before).abs().amax((1, 2, 3))
        assert moved[1] > 1e-3 and moved[[0, 2]].max() < 1e-5


def test_the_level_reaches_it_in_waves_as_quick_as_those_of_the_u_vit() -> None:
    network, level = UNet(SHAPE, 4), torch.tensor([-1.5, 0.3])
    seen: dict[str, Tensor] = {}
    network.network.time_proj.register_forward_hook(lambda m, i, out: seen.update(waves=out))
    network(inputs()[0][:2], level, torch.eye(4)[:2])
    half = seen["waves"].shape[1] // 2
    quickest = seen["waves"][:, [0, half]]
    torch.testing.assert_close(quickest, torch.stack([(TIMES * level).cos(), (TIMES * level).sin()], 1))
    assert waves(level, 64)[:, 31].allclose((TIMES ** (31 / 32) * level).cos(), atol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    network = UNet(SHAPE, 4)
    network(*inputs()).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert idle == []


def test_it_is_differentiable_in_image_and_class() -> None:
    network = UNet(SHAPE, 4).double()
    x, level, y = (part.double() for part in inputs())
    x.requires_grad_(), y.requires_grad_()
    slopes = torch.autograd.grad(network(x, level, y).sin().sum(), (x, y))
    for value, slope, at in ((x, slopes[0], (1, 0, 2, 3)), (y, slopes[1], (2, 1))):
        ends = []
        for sign in (1, -1):
            moved = value.detach().clone()
            moved[at] += sign * 1e-6
            found = network(*((moved, level, y) if value is x else (x, level, moved)))
            ends.append(found.sin().sum().item())
        assert slope[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_without_the_library_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"network unet-tiny needs .* pip install 'semisynth\[diffusers\]'"):
        UNet(SHAPE, 4)
    with pytest.raises(UserError, match="did you mean 'unet'"):
        UNet(SHAPE, 4, "unet2")
