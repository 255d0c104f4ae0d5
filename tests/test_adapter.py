"""Images made images of another shape: in [0, 1], as Pillow and torch do it, and differentiable twice."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from semisynth.adapter import Adapter
from semisynth.errors import UserError


@pytest.mark.parametrize("before, after", [((16, 16), (28, 28)), ((28, 20), (16, 16)), ((8, 8), (8, 5))])
def test_resizing_is_the_antialiased_bilinear_one(before, after):
    x = torch.rand(3, 1, *before, dtype=torch.float64)
    expected = F.interpolate(x, after, mode="bilinear", antialias=True)
    found = Adapter((1, *before), (1, *after))(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.min() >= 0 and found.max() <= 1 + 1e-6


def test_gray_is_repeated_and_colours_are_weighted_by_their_luma():
    gray, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(Adapter((1, 4, 4), (3, 4, 4))(gray), gray.repeat(1, 3, 1, 1))
    expected = 0.299 * colour[:, :1] + 0.587 * colour[:, 1:2] + 0.114 * colour[:, 2:]
    torch.testing.assert_close(Adapter((3, 4, 4), (1, 4, 4))(colour), expected)
    white = torch.ones(1, 3, 8, 8)
    torch.testing.assert_close(Adapter((3, 8, 8), (1, 5, 5))(white), torch.ones(1, 1, 5, 5))


def test_images_of_the_right_shape_are_returned_as_they_are():
    x, adapter = torch.rand(2, 3, 4, 4), Adapter((3, 4, 4), (3, 4, 4))
    assert adapter(x) is x and adapter.told == "" and not adapter.state_dict()


def test_it_is_told_what_is_done():
    assert Adapter((1, 16, 16), (3, 28, 30)).told == "resized from 16x16 to 30x28 and repeated over 3 channels"
    assert Adapter((3, 8, 8), (1, 8, 8)).told == "made gray"


def test_other_channels_are_refused():
    with pytest.raises(UserError, match="images of 4 channels cannot be made images of 3"):
        Adapter((4, 8, 8), (3, 8, 8))


@pytest.mark.parametrize("channels", [(1, 3), (3, 1)])
def test_it_is_differentiable_twice(channels):
    adapter = Adapter((channels[0], 3, 3), (channels[1], 5, 5)).double()
    x = torch.rand(1, channels[0], 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(adapter, x)
    assert torch.autograd.gradgradcheck(lambda x: adapter(x).square(), x)
