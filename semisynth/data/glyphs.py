"""Characters in the fonts that matplotlib ships, under random affine maps, stroke weights and blur: white on black.

They play the large, diverse set that a foundation generator was trained on. The rendering was chosen for variety and
legibility alone, before any target data set was looked at.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import noise

if TYPE_CHECKING:
    from PIL import ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
# Named one by one: the other files of matplotlib lack plain characters or draw symbols in their places.
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
SIZE = 16
CANVAS = 4 * SIZE  # templates are drawn four times as large
CAP_HEIGHT, MAX_WIDTH = 48, 48
ROTATION, SHEAR, SHIFT = (-0.25, 0.25), (-0.25, 0.25), (-0.08, 0.08)  # radians, slope, half frames
SCALE = (0.85, 1.1)  # of width and of height, each by itself
BLUR = (0.3, 1.0)  # standard deviation in pixels of an image of 32x32, before the last halving
CONTRAST = (0.8, 1.0)


def render(per_class: int, seed: int = 0, chunk: int = 2048) -> tuple[Tensor, Tensor]:
    """Draw `per_class` images of each character; classes alternate: 0, 1, ..., z, 0, ...

    Returns x (n, 1, 16, 16) uint8 and y (n,) int64, an index into `CHARACTERS`. The random choices are the same on
    every machine; pixels may differ by a rounding between versions of FreeType or of torch.
    """
    n = per_class * len(CHARACTERS)
    source = np.random.RandomState(noise.derive("glyphs", seed) % 2**32)
    y = torch.arange(n) % len(CHARACTERS)
    font = torch.from_numpy(source.randint(len(FONTS), size=n, dtype=np.int64))
    choices = torch.from_numpy(source.uniform(size=(n, 9))).float()
    bank = _weights(_templates().view(-1, 1, CANVAS, CANVAS))
    parts = zip(torch.split(font * len(CHARACTERS) + y, chunk), torch.split(choices, chunk), strict=True)
    return torch.cat([_deform(bank, template, u) for template, u in parts]), y


def _templates() -> Tensor:
    """Every character in every font, centred: (fonts, characters, 64, 64) in [0, 1]."""
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return torch.stack([_alphabet(ImageFont.truetype(str(folder / f"{name}.ttf"), 2 * CANVAS)) for name in FONTS])


def _alphabet(font: ImageFont.FreeTypeFont) -> Tensor:
    """The characters of one font (characters, 64, 64), each with its ink box centred on its canvas.

    A height is the geometric mean of the character's own and the capitals', so that c stays smaller than C and yet
    fills the frame; what is too wide is condensed.
    """
    inks = [_ink(font, character) for character in CHARACTERS]
    capital = len(inks[CHARACTERS.index("H")])
    return torch.stack([_centred(ink, CAP_HEIGHT / (capital * len(ink)) ** 0.5) for ink in inks])


def _ink(font: ImageFont.FreeTypeFont, character: str) -> Tensor:
    """The character's coverage in [0, 1], cropped to its ink (h, w)."""
    from PIL import Image, ImageDraw

    page = Image.new("L", (6 * CANVAS, 6 * CANVAS))
    ImageDraw.Draw(page).text((3 * CANVAS, 4 * CANVAS), character, fill=255, font=font, anchor="ms")
    return torch.from_numpy(np.array(page.crop(page.getbbox()), dtype=np.float32)) / 255


def _centred(ink: Tensor, scale: float) -> Tensor:
    """Resize by `scale`, no wider than `MAX_WIDTH`, and pad to (64, 64)."""
    height, width = round(scale * ink.shape[0]), min(round(scale * ink.shape[1]), MAX_WIDTH)
    fitted = F.interpolate(ink[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
    return F.pad(fitted, (left, CANVAS - width - left, top, CANVAS - height - top))


def _weights(x: Tensor) -> Tensor:
    """Strokes of x (n, 1, h, w) thinner by a pixel on each side, as is, bolder by one and by two: (n, 4, h, w)."""
    eroded = -_dilate(-x)
    # The white top-hat: strokes that erosion would erase are kept.
    thinner = torch.maximum(eroded, x - _dilate(eroded))
    return torch.cat([thinner, x, _dilate(x), _dilate(_dilate(x))], 1)


def _dilate(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def _deform(bank: Tensor, template: Tensor, u: Tensor) -> Tensor:
    """Final images (n, 1, 16, 16) uint8 of the templates (n,) of `bank` by the uniform choices u (n, 9)."""
    level = 3 * u[:, 0]
    lower = level.long().clamp(max=2)
    x = torch.lerp(bank[template, lower], bank[template, lower + 1], (level - lower)[:, None, None])[:, None]
    grid = F.affine_grid(_affine(u[:, 1:7]), [len(x), 1, 2 * SIZE, 2 * SIZE], align_corners=False)
    x = _blur(F.grid_sample(x, grid, align_corners=False), _between(u[:, 7], BLUR))
    x = F.avg_pool2d(x, 2)
    x = x / x.amax((1, 2, 3), keepdim=True) * _between(u[:, 8], CONTRAST)[:, None, None, None]
    return (255 * x).round().to(torch.uint8)


def _between(u: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * u


def _affine(u: Tensor) -> Tensor:
    """Maps (n, 2, 3) from image to template: rotation, shear, scale by axis, then translation, from u (n, 6)."""
    angle, shear = _between(u[:, 0], ROTATION), _between(u[:, 1], SHEAR)
    across, down = _between(u[:, 2], SCALE), _between(u[:, 3], SCALE)
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([cos + shear * sin, shear * cos - sin, sin, cos], 1).view(-1, 2, 2)
    linear = rows / torch.stack([across, down], 1)[:, :, None]
    return torch.cat([linear, _between(u[:, 4:6, None], SHIFT)], 2)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of x (n, 1, h, w), each image by its own sigma (n,) in pixels."""
    kernel = torch.softmax(-(torch.arange(-3, 4) ** 2) / (2 * sigma[:, None] ** 2), 1)
    n = len(x)
    x = F.conv2d(x.transpose(0, 1), kernel.view(n, 1, 7, 1), padding=(3, 0), groups=n)
    return F.conv2d(x, kernel.view(n, 1, 1, 7), padding=(0, 3), groups=n).transpose(0, 1)
