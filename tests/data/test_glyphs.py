from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from scipy.ndimage import gaussian_filter
from torch import Tensor

from semisynth.data import glyphs
from semisynth.data.glyphs import CHARACTERS, FONTS, render

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NEUTRAL = torch.tensor([[1 / 3, 0.5, 0.5, 0.6, 0.6, 0.5, 0.5, 0.0, 1.0]])  # plain weight, unit scale, no turn, sharp


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    return render(60)


@pytest.fixture(scope="module")
def templates() -> Tensor:
    return glyphs._templates()


def deform(square: Tensor, **choices: float) -> Tensor:
    """One template (64, 64) under the neutral choices, but for those given by their place in u."""
    u = NEUTRAL.clone()
    for place, value in choices.items():
        u[0, int(place[1:])] = value
    bank = glyphs._weights(square[None, None])
    return glyphs._deform(bank, torch.tensor([0]), u)[0, 0].float()


def moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of mass and covariance, in pixels, ordered (x, y)."""
    at = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="xy"), -1).view(-1, 2)
    mass = image.flatten() / image.sum()
    centre = mass @ at
    return centre, (mass[:, None] * (at - centre)).T @ (at - centre)


@pytest.mark.parametrize("name", FONTS)
def test_font_really_has_the_characters(name):
    font = FT2Font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")))
    found = [font.get_glyph_name(font.get_char_index(ord(c))).removesuffix("oldstyle") for c in CHARACTERS]
    assert found == [*DIGIT_NAMES, *CHARACTERS[10:]]


def test_shapes_range_and_classes(drawn):
    x, y = drawn
    assert x.shape == (60 * 62, 1, 16, 16)
    assert x.dtype == torch.uint8
    assert y[:63].tolist() == [*range(62), 0]
    assert y.bincount().tolist() == [60] * 62
    brightest = x.amax((1, 2, 3))
    assert brightest.min() == 204  # contrast 0.8 ... 1
    assert brightest.max() == 255
    corners = x[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]].float()
    assert corners.mean() < 6  # white on black


def test_rendering_is_deterministic_and_drawn_by_the_seed(drawn):
    assert torch.equal(render(3)[0], render(3, chunk=50)[0])
    assert not torch.equal(render(3)[0], render(3, seed=1)[0])
    assert len(drawn[0].flatten(1).unique(dim=0)) == len(drawn[0])


def test_rendering_is_frozen():
    # Brightness and its first moment for 0 ... 9: a generator was trained on exactly this rendering.
    x = render(1)[0][:10].flatten(1).float()
    ramp = torch.linspace(-1, 1, 256)
    brightness = [47.85, 27.69, 36.14, 53.03, 73.79, 40.81, 60.61, 21.94, 40.23, 58.37]
    moment = [-4.33, -0.23, -0.89, 2.27, 3.96, 0.56, -2.61, -3.75, 3.74, -4.31]
    assert x.mean(1).tolist() == pytest.approx(brightness, abs=0.3)
    assert (x * ramp).mean(1).tolist() == pytest.approx(moment, abs=0.15)


def test_glyphs_fill_the_frame_and_stay_inside(drawn):
    ink = drawn[0][:, 0] > 76
    assert 0.7 < ink.any(2).float().mean() < 0.85  # height
    assert 0.5 < ink.any(1).float().mean() < 0.75  # width
    ring = torch.cat([drawn[0][:, 0, [0, -1]].flatten(1), drawn[0][:, 0, :, [0, -1]].flatten(1)], 1)
    assert (ring > 128).any(1).float().mean() < 0.1


def test_glyphs_are_legible(drawn):
    """Nearest class mean of other images; chance is 1.6 %, and O, o, 0 or I, l can hardly be told apart."""
    x, y = drawn[0].flatten(1).float(), drawn[1]
    train, test = torch.arange(len(x)) % 124 < 62, torch.arange(len(x)) % 124 >= 62
    means = torch.stack([x[train & (y == c)].mean(0) for c in range(62)])
    assert (torch.cdist(x[test], means).argmin(1) == y[test]).float().mean() > 0.55


def test_templates_are_centred_and_distinct(templates):
    assert templates.shape == (len(FONTS), 62, 64, 64)
    ink = templates > 0.02
    for axis in (2, 3):
        line = ink.any(5 - axis).long()
        first, last = line.argmax(2), 63 - line.flip(2).argmax(2)
        assert (first + last - 63).abs().max() <= 2
        assert (last - first).max() < 58
    apart = torch.cdist(templates.flatten(2), templates.flatten(2)) + 99 * torch.eye(62)
    assert apart.min() > 1  # no stand-in for missing characters
    height = dict(zip(CHARACTERS, ink[0].any(2).sum(1).tolist(), strict=True))
    assert height["c"] < 0.92 * height["C"]
    assert height["H"] == pytest.approx(48, abs=1)


def test_weights_thin_and_thicken_by_pixels():
    bar, hairline = torch.zeros(2, 1, 1, 16, 16)
    bar[..., 5:10] = 1
    hairline[..., 8] = 1
    assert [int(w[8].sum()) for w in glyphs._weights(bar)[0]] == [3, 5, 7, 9]
    assert [int(w[8].sum()) for w in glyphs._weights(hairline)[0]] == [1, 1, 3, 5]  # never erased


def test_weight_choice_grows_the_strokes():
    square = torch.zeros(64, 64)
    square[24:40, 24:40] = 1
    mass = [float(deform(square, u0=w).sum()) for w in (0.0, 1 / 3, 0.5, 2 / 3, 1.0)]
    expected = [14**2, 16**2, (16**2 + 18**2) / 2, 18**2, 20**2]
    assert mass == pytest.approx([255 * side / 16 for side in expected], rel=0.02)


def test_blur_is_the_gaussian_of_each_image():
    x = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    sigma = [0.3, 0.7, 1.0]
    for image, s, got in zip(x[:, 0], sigma, glyphs._blur(x, torch.tensor(sigma))[:, 0], strict=True):
        np.testing.assert_allclose(got, gaussian_filter(image.numpy(), s, radius=3, mode="constant"), atol=1e-6)


def test_affine_is_scale_after_shear_after_rotation():
    u = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    for row, got in zip(u.tolist(), glyphs._affine(u), strict=True):
        angle, shear = 0.5 * row[0] - 0.25, 0.5 * row[1] - 0.25
        scale = np.diag([1 / (0.85 + 0.25 * row[2]), 1 / (0.85 + 0.25 * row[3])])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        np.testing.assert_allclose(got[:, :2], scale @ [[1, shear], [0, 1]] @ turn, atol=1e-6)
        np.testing.assert_allclose(got[:, 2], [0.16 * row[4] - 0.08, 0.16 * row[5] - 0.08], atol=1e-6)


def test_each_choice_moves_the_image_as_it_says():
    bar = np.zeros((64, 64), np.float32)
    bar[16:48, 24:40] = 1
    square = torch.from_numpy(gaussian_filter(bar, 1.5))  # soft, so that its moments survive the sampling
    centre, spread = moments(deform(square))
    assert centre.tolist() == pytest.approx([7.5, 7.5], abs=0.02)
    moved, _ = moments(deform(square, u5=1.0, u6=0.0))
    assert (moved - centre).tolist() == pytest.approx([-0.64, 0.64], abs=0.02)  # 0.08 half frames of 8 pixels
    _, scaled = moments(deform(square, u3=1.0, u4=0.0))
    assert (scaled.diagonal() / spread.diagonal()).tolist() == pytest.approx([1.1**2, 0.85**2], rel=0.03)
    _, turned = moments(deform(square, u1=1.0))
    angle = 0.5 * torch.atan2(2 * turned[0, 1], turned[1, 1] - turned[0, 0])
    assert abs(float(angle)) == pytest.approx(0.25, abs=0.01)
    _, sheared = moments(deform(square, u2=1.0))
    assert abs(float(sheared[0, 1] / sheared[1, 1])) == pytest.approx(0.25, abs=0.01)
    soft = deform(square, u7=1.0)
    assert (soft > 5).sum() > (deform(square) > 5).sum()
    assert deform(square, u8=0.0).max() == 204
