"""The way of the digits: what has gone it stays, and nothing that goes it keeps another trace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from semisynth.data import datasets
from semisynth.data.through import Through
from semisynth.errors import UserError


def test_the_digits_have_gone_this_way() -> None:
    x = datasets.load("digits").pool.x
    assert Through.parse("8x8:17")(x.float() / 255).equal(x)


@pytest.mark.parametrize("text, shape", [("8x8:17", (1, 16, 16)), ("5x4:3", (3, 9, 12)), ("6x6:256", (1, 6, 6))])
def test_an_image_becomes_the_enlargement_of_few_levels(text: str, shape: tuple[int, int, int]) -> None:
    through = Through.parse(text)
    x = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0))
    once = through(x)
    assert once.shape == x.shape and once.dtype == torch.uint8 and through(once.float() / 255).equal(once)
    # Its small image is found by trying: no other level of any pixel comes nearer.
    h, w = through.size
    up = torch.stack([F.interpolate(e.view(1, 1, h, w), shape[1:], mode="bilinear") for e in torch.eye(h * w)])
    small = torch.linalg.lstsq(up.view(h * w, -1).T.double(), (once[0, 0].double() / 255).view(-1, 1)).solution
    levels = small * (through.levels - 1)
    assert (levels - levels.round()).abs().max() < 0.02 * through.levels


def test_the_small_image_is_the_nearest() -> None:
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.2 + 0.4
    found = Through((8, 8), 256)(x)[0, 0].double() / 255
    up = torch.stack([F.interpolate(e.view(1, 1, 8, 8), (16, 16), mode="bilinear") for e in torch.eye(64)])
    matrix = up.view(64, -1).T.double()
    best = matrix @ torch.linalg.lstsq(matrix, x.view(-1, 1)).solution
    assert (found.view(-1, 1) - best).abs().max() < 1 / 255


def test_what_overshoots_is_cut_off() -> None:
    x = (torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    through = Through((8, 8), 17)
    once = through(x)
    assert through(once.float() / 255).equal(once) and (once.float() / 255 - x).abs().mean() < 0.41


@pytest.mark.parametrize("text", ["8x8", "8:17", "0x8:17", "8x8:1", "8x8:257", "axb:17", "8x8:17 "])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--through is '{text}': give WIDTHxHEIGHT:LEVELS"):
        Through.parse(text)


def test_smaller_images_are_refused() -> None:
    with pytest.raises(UserError, match="asks for 8x20 pixels, and the images have 16x16"):
        Through.parse("8x20:17")(torch.zeros(1, 1, 16, 16))
