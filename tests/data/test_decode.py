"""Every documented conversion, and every way in which a file may be no image."""

from __future__ import annotations

import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pictures
import pytest
from PIL import Image

from semisynth.data.decode import Preparation, converted, header, open_image, prepare, quiet
from semisynth.errors import UserError

GRAY = np.array([[0, 85], [170, 255]], np.uint8)


def pixels(content, name="a.png"):
    return np.asarray(open_image(content, name))


def png(image: Image.Image, **options) -> bytes:
    return pictures.encoded(image, "PNG", **options)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_gray_and_colour_stay_as_they_are(mode, kind):
    image = pictures.image(mode=mode)
    found, done = converted(pictures.encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})), "a")
    assert done == [] and np.array_equal(np.asarray(found.convert(mode)), np.asarray(image))


def test_a_photograph_is_turned_as_exif_says():
    image, exif = pictures.image(size=(4, 3)), Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "TIFF"):
        found, done = converted(pictures.encoded(image, kind, exif=exif), "a")
        assert done == ["turned as EXIF says"]
        assert np.array_equal(np.asarray(found), np.rot90(np.asarray(image), -1))
    exif[0x0112] = 1
    assert converted(png(image, exif=exif), "a")[1] == []


def test_a_palette_and_cmyk_become_rgb():
    image = pictures.image()
    palette = image.quantize(8)
    found, done = converted(png(palette), "a")
    assert done == ["palette made RGB"] and np.array_equal(np.asarray(found), np.asarray(palette.convert("RGB")))
    found, done = converted(pictures.encoded(image.convert("CMYK"), "TIFF"), "a")
    assert done == ["CMYK made RGB"] and np.array_equal(np.asarray(found), np.asarray(image))


def test_what_is_transparent_is_composited_on_white():
    colours = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], np.uint8)
    found, done = converted(png(Image.fromarray(colours)), "a")
    assert done == ["composited on white where transparent"]
    assert np.asarray(found).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]]
    gray = Image.fromarray(np.array([[[40, 255], [40, 0]]], np.uint8))
    found, _ = converted(png(gray), "a")
    assert found.mode == "L" and np.asarray(found).tolist() == [[40, 255]]
    assert pixels(png(Image.fromarray(GRAY), transparency=85)).tolist() == [[0, 255], [170, 255]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 7, 7, 7])
    assert pixels(png(palette, transparency=1)).tolist() == [[[9, 9, 9], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    deep = Image.fromarray(np.array([[0, 128, 129], [257, 65406, 65535]], np.uint16))
    found, done = converted(pictures.encoded(deep, kind), "a")
    assert done == ["scaled from 16 bits to 8"] and np.asarray(found).tolist() == [[0, 0, 1], [1, 254, 255]]


def test_bilevel_becomes_gray():
    found, done = converted(png(Image.fromarray(GRAY).convert("1", dither=Image.Dither.NONE)), "a")
    assert done == ["bilevel made gray"] and found.mode == "L" and set(np.asarray(found).flatten()) == {0, 255}


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    first, second = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    found, done = converted(pictures.encoded(first, kind, save_all=True, append_images=[second], **options), "a")
    assert "of an animation the first frame is taken" in done and (np.asarray(found) == [255, 0, 0]).all()


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 3), (2, 3, 4)])
def test_arrays_are_images(shape):
    array = np.random.RandomState(0).randint(256, size=shape).astype(np.uint8)
    if shape[2:] == (4,):
        array[..., 3] = 255
    expected = array[..., 0] if shape[2:] == (1,) else array[..., :3] if len(shape) == 3 else array
    assert np.array_equal(pixels(array), expected)
    assert np.array_equal(pixels(array / 255), expected)


def bomb(side: int) -> bytes:
    """A PNG whose header claims so many pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


GOOD = png(pictures.image(size=(30, 30)))
JPEG = pictures.encoded(pictures.image(size=(30, 30)), "JPEG")
BAD = {
    "empty": (b"", "bad is empty"),
    "text": (b"dear reader", r"bad is no image that can be read \(unknown format\)"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "bad is no image that can be read"),
    "truncated PNG": (GOOD[: len(GOOD) // 2], "bad cannot be decoded"),
    "truncated JPEG": (JPEG[: 4 * len(JPEG) // 5], "bad cannot be decoded"),
    "head only": (GOOD[:20], "bad is no image that can be read"),
    "damaged": (GOOD[:60] + bytes(60) + GOOD[120:], "bad cannot be decoded"),
    "bomb": (bomb(10_000), "bad has 10000x10000 pixels, more than 64,000,000"),
    "larger bomb": (bomb(100_000), "bad has more than 64,000,000 pixels"),
    "float": (pictures.encoded(Image.new("F", (2, 2)), "TIFF"), "bad has pixels of 32 bits"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_image_is_told_by_its_name(case):
    content, message = BAD[case]
    with pytest.raises(UserError, match=f"^{message}"):
        open_image(content, "bad")


def test_damaged_bytes_are_never_a_traceback():
    source = np.random.RandomState(0)
    kinds = [pictures.encoded(pictures.image(), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    for _ in range(300):
        content = bytearray(kinds[source.randint(len(kinds))])
        for place in source.randint(len(content), size=3):
            content[place] = source.randint(256)
        try:
            found = open_image(bytes(content), "bad")
        except UserError as error:
            assert str(error).startswith("bad ")
        else:
            assert found.mode in ("L", "RGB")


def test_what_pillow_warns_of_is_not_shown_and_all_else_is_afterwards():
    before = list(warnings.filters)
    with quiet, quiet:  # as of two threads
        warnings.warn("not shown", stacklevel=1)
    assert warnings.filters == before
    quiet.__enter__()
    with quiet:
        quiet.__exit__()
        warnings.warn("not shown", stacklevel=1)
    assert warnings.filters == before
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: open_image(GOOD, str(i)), range(200)))
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="shown"):
        warnings.warn("shown", stacklevel=1)


@pytest.mark.parametrize("mode, channels", [("L", 1), ("LA", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_a_header_tells_size_and_channels(mode, channels):
    assert header(png(pictures.image(size=(5, 4)).convert(mode)), "a") == (4, 5, channels)
    with pytest.raises(UserError, match="a is no image"):
        header(b"no", "a")


# ---- what an image is made to be ------------------------------------------------------------------------------------


def test_an_image_of_the_right_size_is_kept():
    image = pictures.image(size=(6, 5))
    found = prepare(image, Preparation((5, 6), 3, "crop"))
    assert found.dtype == np.uint8 and np.array_equal(found, np.asarray(image).transpose(2, 0, 1))
    assert np.array_equal(prepare(image, Preparation((5, 6), 1, "pad"))[0], np.asarray(image.convert("L")))
    assert np.array_equal(prepare(image.convert("L"), Preparation((5, 6), 3, "pad"))[2], np.asarray(image.convert("L")))


@pytest.mark.parametrize("size", [(40, 16), (16, 40)])
def test_the_centre_is_cropped(size):
    image = Image.new("L", size, 50)
    image.paste(200, (size[0] // 2 - 8, size[1] // 2 - 8, size[0] // 2 + 8, size[1] // 2 + 8))
    assert (prepare(image, Preparation((16, 16), 1, "crop")) == 200).all()
    assert (prepare(image, Preparation((8, 8), 1, "crop"))[0, 1:-1, 1:-1] == 200).all()


def test_the_whole_is_padded_with_black():
    found = prepare(Image.new("L", (40, 20), 200), Preparation((20, 20), 1, "pad"))[0]
    assert (found[5:15] == 200).all() and not found[:5].any() and not found[15:].any()
    found = prepare(Image.new("L", (20, 40), 200), Preparation((20, 20), 1, "pad"))[0]
    assert (found[:, 5:15] == 200).all() and not found[:, :5].any() and not found[:, 15:].any()


def test_the_whole_is_stretched():
    image = Image.fromarray(np.repeat([[0, 255]], 4, 0).astype(np.uint8))
    found = prepare(image, Preparation((4, 8), 1, "stretch"))[0].astype(int)
    assert (found[:, 0] == 0).all() and (found[:, -1] == 255).all() and (np.diff(found) >= 0).all()


def test_resizing_is_antialiased():
    stripes = Image.fromarray(np.tile([0, 255], (32, 16)).astype(np.uint8))
    found = prepare(stripes, Preparation((8, 8), 1, "stretch"))[0, :, 1:-1].astype(int)
    assert abs(found - 127).max() < 20


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_extreme_proportions_are_no_trouble(fit, size):
    assert prepare(Image.new("RGB", size, "red"), Preparation((8, 6), 3, fit)).shape == (3, 8, 6)


def test_torch_is_not_needed():
    code = "import sys, semisynth.data.chunks; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
