"""The U-ViT: shapes, what its output depends on, its long skips, and sizes that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semisynth.errors import UserError
from semisynth.models.uvit import SIZES, Block, UViT, waves


def inputs(shape: tuple[int, int, int] = (2, 8, 12)) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.randn(3, *shape, generator=source), torch.tensor([-1.5, 0.0, 1.0]), torch.eye(4)[:3]


@pytest.mark.parametrize("patch", [2, 4])
def test_an_image_goes_in_and_one_of_its_shape_comes_out(patch: int) -> None:
    network = UViT((2, 8, 12), 4, patch=patch)
    assert network(*inputs()).shape == (3, 2, 8, 12)
    assert network.position.shape == (1, 2 + 96 // patch**2, SIZES["tiny"].width)


def test_each_row_depends_on_its_own_image_level_and_class() -> None:
    torch.manual_seed(0)
    network = UViT((2, 8, 12), 4).eval()
    x, level, y = inputs()
    before = network(x, level, y)
    for changed in (
        (x.index_add(0, torch.tensor([1]), torch.ones(1, 2, 8, 12)), level, y),
        (x, level + level.sign(), y),
    ):
        after = network(*changed)
        moved = (after - before).flatten(1).abs().max(1).values
        assert moved[1 if changed[0] is not x else 2] > 1e-3
        torch.testing.assert_close(after[0 if changed[0] is not x else 1], before[0 if changed[0] is not x else 1])
    assert (network(x, level, y.roll(1, 0)) - before).abs().amax((1, 2, 3)).min() > 1e-4


def test_every_parameter_gets_a_gradient() -> None:
    network = UViT((2, 8, 12), 4)
    network(*inputs()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_long_skips_join_the_first_block_and_the_last() -> None:
    network = UViT((2, 8, 12), 4)
    seen: dict[str, Tensor] = {}
    network.down[0].register_forward_hook(lambda m, i, out: seen.update(first=out))
    network.down[1].register_forward_hook(lambda m, i, out: seen.update(second=out))
    network.skips[0].register_forward_hook(lambda m, i, out: seen.update(joined_second=i[0]))
    network.skips[1].register_forward_hook(lambda m, i, out: seen.update(joined_first=i[0]))
    network(*inputs())
    assert seen["joined_second"][..., 64:].equal(seen["second"])
    assert seen["joined_first"][..., 64:].equal(seen["first"])


def test_a_block_is_attention_and_a_perceptron() -> None:
    torch.manual_seed(0)
    block, h = Block(8, 2).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    normed = block.before_attention(h)
    q, k, v = block.mix(normed).chunk(3, -1)
    heads = []
    for part in range(2):
        at = slice(4 * part, 4 * part + 4)
        weights = (q[..., at] @ k[..., at].transpose(1, 2) / 2).softmax(-1)
        heads.append(weights @ v[..., at])
    expected = h + block.out(torch.cat(heads, -1))
    expected = expected + block.perceptron(block.before_perceptron(expected))
    torch.testing.assert_close(block(h), expected)


def test_waves_tell_levels_apart_and_lie_on_circles() -> None:
    found = waves(torch.linspace(-1.6, 1.1, 50, dtype=torch.float64), 64)
    assert found.shape == (50, 64)
    torch.testing.assert_close(found[:, :32].square() + found[:, 32:].square(), torch.ones(50, 32, dtype=torch.float64))
    assert torch.pdist(found).min() > 0.1


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match="patches of 4 do not divide images of 8x6"):
        UViT((1, 8, 6), 3, patch=4)
    with pytest.raises(UserError, match=r"size of the network.*'tiny'|did you mean 'tiny'"):
        UViT((1, 8, 8), 3, size="tinny")
