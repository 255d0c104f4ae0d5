"""One image from its bytes: the documented conversions, and one error for all that is wrong with a file.

The EXIF rotation is applied; a palette and CMYK become RGB; alpha is composited on white; 16 bits are scaled to 8; of
an animation the first frame is taken.
"""

from __future__ import annotations

import io
import threading
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from semisynth.errors import UserError, line

MOST = 64_000_000  # pixels of an image; more is taken for a decompression bomb
LARGEST = 4096  # pixels of a side of what images are made to be
Fit = Literal["crop", "pad", "stretch"]
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
ROTATION = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where an orientation may be written
TURNED = "turned as EXIF says"
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Preparation:
    """What an image is made to be: (h, w), 1 or 3 channels, and how it is fitted where its proportions differ.

    `UserError` for what no image can be.
    """

    size: tuple[int, int]
    channels: int
    fit: Fit

    def __post_init__(self) -> None:
        known = self.channels in (1, 3) and self.fit in get_args(Fit)
        if not known or not 0 < min(self.size) <= max(self.size) <= LARGEST:
            raise UserError(f"no image can be made {self.size} with {self.channels} channels by '{self.fit}'.")


class Quiet:
    """Within it Pillow warns of nothing: what it warns of is converted here, or an error.

    Threads may be in it together, for which `catch_warnings` alone is not made: the last one gives the filters back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._caught = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


quiet = Quiet()


def open_image(content: bytes | npt.NDArray[Any], name: str) -> Image.Image:
    """The image in mode L or RGB; `UserError` names it when it is truncated, empty, no image, or enormous."""
    return converted(content, name)[0]


def converted(content: bytes | npt.NDArray[Any], name: str) -> tuple[Image.Image, list[str]]:
    """The image in mode L or RGB, and what was done to it."""
    with quiet:
        try:
            raw = _opened(content, name)
            turned = raw.format == "TIFF" and _is_turned(raw)  # Pillow turns these as it loads them
            raw.load()
            image, done = _plain(raw, name)
            return image, [TURNED, *done] if turned else done
        except UserError:
            raise
        except Exception as error:  # damaged files raise nearly anything in Pillow
            raise UserError(f"{name} cannot be decoded ({_told(error)})") from error


def header(content: bytes | npt.NDArray[Any], name: str) -> tuple[int, int, int]:
    """Height, width and channels without decoding the pixels; errors as in `open_image`."""
    with quiet:
        image = _opened(content, name)
        gray = image.mode in ("1", "L", "LA", "La", "I", *SIXTEEN)
        return image.height, image.width, 1 if gray else 3


def _opened(content: bytes | npt.NDArray[Any], name: str) -> Image.Image:
    if len(content) == 0:
        raise UserError(f"{name} is empty")
    try:
        image = _of_array(content) if isinstance(content, np.ndarray) else Image.open(io.BytesIO(content), "r", FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has more than {MOST:,} pixels") from error
    except Exception as error:
        raise UserError(f"{name} is no image that can be read ({_told(error)})") from error
    if image.width * image.height > MOST:
        raise UserError(f"{name} has {image.width}x{image.height} pixels, more than {MOST:,}")
    return image


def _told(error: Exception) -> str:
    # The text of UnidentifiedImageError holds an address in memory.
    return "unknown format" if isinstance(error, UnidentifiedImageError) else line(error)


def _of_array(pixels: npt.NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8:
        pixels = np.rint(255 * pixels).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _plain(image: Image.Image, name: str) -> tuple[Image.Image, list[str]]:
    """Mode L or RGB, upright."""
    done = ["of an animation the first frame is taken"] if getattr(image, "n_frames", 1) > 1 else []
    if not ROTATION.isdisjoint(image.info) and _is_turned(image):
        image = ImageOps.exif_transpose(image)
        done.append(TURNED)
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image, done
    if image.mode in SIXTEEN or (image.mode == "I" and image.format in ("PNG", "PPM", None)):
        return _eight_bits(image), [*done, "scaled from 16 bits to 8"]
    if image.mode in ("I", "F"):
        raise UserError(f"{name} has pixels of 32 bits; only 8 and 16 can be read")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_white(image), [*done, "composited on white where transparent"]
    told = {"P": "palette made RGB", "CMYK": "CMYK made RGB", "1": "bilevel made gray"}
    return image.convert("L" if image.mode == "1" else "RGB"), [*done, told.get(image.mode, f"{image.mode} made RGB")]


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(0x0112) in range(2, 9)


def _eight_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.rint(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    gray = image.mode in ("1", "L", "LA", "La")
    colours = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, colours).convert("L" if gray else "RGB")


def prepare(image: Image.Image, preparation: Preparation) -> npt.NDArray[np.uint8]:
    """The pixels of an image in mode L or RGB: (c, h, w), resized by antialiased bilinear interpolation.

    crop: the largest centred part of the right proportions; pad: all of it, on black; stretch: all of it, distorted.
    """
    mode = "L" if preparation.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    h, w = preparation.size
    if image.size != (w, h):
        image = _fitted(image, (w, h), preparation.fit)
    pixels = np.asarray(image)
    return pixels[None] if preparation.channels == 1 else pixels.transpose(2, 0, 1)


def _fitted(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    (w, h), (width, height) = size, image.size
    if fit == "pad":
        scale = min(w / width, h / height)
        inner = max(1, round(scale * width)), max(1, round(scale * height))
        page = Image.new(image.mode, size)
        page.paste(image.resize(inner, Image.Resampling.BILINEAR), ((w - inner[0]) // 2, (h - inner[1]) // 2))
        return page
    box = None
    if fit == "crop" and width * h != height * w:
        across, down = (height * w / h, float(height)) if width * h > height * w else (float(width), width * h / w)
        left, top = (width - across) / 2, (height - down) / 2
        box = (left, top, left + across, top + down)
    return image.resize(size, Image.Resampling.BILINEAR, box)
