"""What a processor's file says, by the steps of a processor; and what is not understood is refused."""

from __future__ import annotations

from typing import Any

import backbones
import pytest
import torch

from semisynth.errors import UserError
from semisynth.models import processor
from semisynth.models.backbone import Input

SIZES: dict[str, tuple[dict[str, Any], tuple[int, int] | None]] = {
    "a number": ({"size": 24}, (24, 24)),
    "both sides": ({"size": {"height": 24, "width": 16}}, (24, 16)),
    "the shorter side": ({"size": {"shortest_edge": 24}}, (24, 24)),
    "its crop": (
        {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 16, "width": 24}},
        (16, 24),
    ),
    "no crop": ({"size": 24, "do_center_crop": False, "crop_size": 16}, (24, 24)),
    "not resized": ({"size": 24, "do_resize": False}, None),
    "not told": ({}, None),
}


@pytest.mark.parametrize("told, expected", SIZES.values(), ids=SIZES)
def test_the_size_is_that_of_what_the_processor_gives(told: dict[str, Any], expected: tuple[int, int] | None) -> None:
    assert processor._size(told, "it") == expected


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"do_rescale": False},
        {"rescale_factor": 2 / 255},
        {"rescale_factor": 2 / 255, "rescale_offset": True},
        {"do_normalize": False},
        {"image_mean": 0.3, "image_std": 0.7},
    ],
)
def test_the_normalisation_is_that_of_whole_pixel_values(told: dict[str, Any]) -> None:
    """By the steps of a processor: rescale what is in 0 to 255, shift it, subtract the mean and divide."""
    found = processor.reads({**backbones.NORMAL, **told}, 3, "hf:a")
    x = torch.rand(3, 4, 4)
    pixels = 255 * x
    if told.get("do_rescale", True):
        pixels = pixels * told.get("rescale_factor", 1 / 255) - (1 if told.get("rescale_offset") else 0)
    if told.get("do_normalize", True):
        mean, std = (
            torch.tensor(told.get(key, backbones.NORMAL[key])).view(-1, 1, 1) for key in ("image_mean", "image_std")
        )
        pixels = (pixels - mean) / std
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (found.mean, found.std))
    torch.testing.assert_close((x - mean) / std, pixels)


def test_efficientnet_divides_twice() -> None:
    told = {**backbones.NORMAL, "include_top": True}
    x, found = torch.rand(3, 4, 4), processor.reads(told, 3, "it")
    mean, std = (torch.tensor(backbones.NORMAL[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    expected = (x - mean) / std / std
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (found.mean, found.std))
    torch.testing.assert_close((x - mean) / std, expected)


def test_a_class_that_does_not_write_that_it_normalises_does_not() -> None:
    told = {"image_processor_type": "MobileViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert processor.reads(told, 3, "it") == Input(None, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    "told, message",
    [
        ({"do_flip_channel_order": True}, "asks for do_flip_channel_order, which is not done here"),
        ({"do_pad": True}, "asks for do_pad"),
        ({"size_divisor": 32}, "asks for size_divisor"),
        (
            {"size": {"longest_edge": 24}},
            "size in its preprocessor_config.json is {'longest_edge': 24}: it must be a number",
        ),
        ({"size": {"shortest_edge": 24, "longest_edge": 48}}, "size in its .* must be a number"),
        ({"size": {"max_height": 24, "max_width": 24}}, "size in its .* must be a number"),
        (
            {"do_center_crop": True, "crop_size": {"shortest_edge": 24, "longest_edge": 30}},
            "crop_size in its .* must be",
        ),
        ({"size": {"height": "big", "width": 3}}, "size in its .* must be"),
        ({"size": [1, 2, 3]}, "size in its .* must be"),
        ({"size": {"height": [1], "width": 3}}, "size in its .* must be"),
        ({"size": -5}, "size in its preprocessor_config.json is -5"),
        ({"size": 0}, "size in its preprocessor_config.json is 0"),
        ({"size": True}, "size in its .* must be"),
        ({"image_std": ["a", 1, 1]}, "image_std in its preprocessor_config.json is a: it must be a number"),
        ({"image_std": [0, 1, 1]}, "image_std in its preprocessor_config.json is 0: it must be above 0"),
        ({"image_mean": [float("nan"), 1, 1]}, "image_mean in its preprocessor_config.json is nan"),
        ({"rescale_factor": "x"}, "rescale_factor in its preprocessor_config.json is x: it must be a number"),
        ({"rescale_factor": 0}, "rescale_factor in its preprocessor_config.json is 0: it must be above 0"),
        ({"rescale_factor": None}, "rescale_factor in its preprocessor_config.json is None"),
    ],
)
def test_what_is_wrong_or_not_understood_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        processor.reads({**backbones.NORMAL, **told}, 3, "hf:a")


def test_what_changes_nothing_in_our_images_is_passed_over() -> None:
    others = {"do_convert_rgb": True, "do_reduce_labels": True, "do_pad": False, "resample": 3, "crop_pct": 0.9}
    plain = processor.reads(backbones.PREPROCESSOR, 3, "it")
    assert processor.reads({**backbones.PREPROCESSOR, **others}, 3, "it") == plain
