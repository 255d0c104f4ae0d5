"""What an image processor of transformers makes of an image, by its preprocessor_config.json.

Of a resize and a crop only the size of the outcome is taken; what else it would do to pixels is refused, as features
of other images would be silently wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from semisynth.errors import UserError
from semisynth.models.backbone import Input

FILE = "preprocessor_config.json"
UNDERSTOOD = {"do_resize", "do_center_crop", "do_rescale", "do_normalize"}
OF_OTHERS = {"do_convert_rgb", "do_reduce_labels", "do_convert_annotations"}  # which change nothing in our images
LARGEST = 4096  # pixels on a side: more is a slip


def reads(told: Mapping[str, Any], channels: int, name: str) -> Input:
    """What comes of an image in [0, 1] for a network of so many channels.

    told: what is in the file; name: of the model, for errors. `UserError` for what it leaves open, what is no number of
    the kind, and what is not understood.
    """
    for key, value in told.items():
        if (key.startswith("do_") and value and key not in UNDERSTOOD | OF_OTHERS) or key == "size_divisor":
            raise UserError(
                f"model {name}: its {FILE} asks for {key}, which is not done here: give another model, or take it out "
                "if the network was trained without."
            )
    mean, std = [0.0] * channels, [1.0] * channels
    # A class that writes its mean and not that it normalises, as MobileViT's, does not.
    if told.get("do_normalize", "image_processor_type" not in told):
        mean, std = _numbers(told, "image_mean", channels, name), _numbers(told, "image_std", channels, name)
        if told.get("include_top"):  # EfficientNet's divides twice
            std = [s * s for s in std]
    scale, offset = 255.0, 0.0
    if told.get("do_rescale", True):
        scale *= _number(told.get("rescale_factor", 1 / 255), "rescale_factor", name, positive=True)
        offset = 1.0 if told.get("rescale_offset") else 0.0
    return Input(_size(told, name), tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std))


def _number(value: object, key: str, name: str, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _wrong(key, value, "a number", name)
    if positive and value <= 0:
        raise _wrong(key, value, "above 0", name)
    return float(value)


def _numbers(told: Mapping[str, Any], key: str, channels: int, name: str) -> list[float]:
    found = told.get(key)
    if isinstance(found, (int, float)):
        found = [found] * channels
    if not isinstance(found, list) or len(found) != channels:
        raise _wrong(key, found, f"{channels} numbers", name)
    return [_number(value, key, name, positive=key == "image_std") for value in found]


def _size(told: Mapping[str, Any], name: str) -> tuple[int, int] | None:
    """The size of what the processor gives: that of its crop, else that to which it resizes."""
    for key, asked in (("crop_size", told.get("do_center_crop")), ("size", told.get("do_resize", True))):
        if asked and told.get(key) is not None:
            return _sides(told[key], key, name)
    return None


def _sides(found: Any, key: str, name: str) -> tuple[int, int]:
    sides = found
    if isinstance(found, dict):
        given = {side: value for side, value in found.items() if value is not None}
        square = given.get("shortest_edge") if len(given) == 1 else None
        sides = [given["height"], given["width"]] if {*given} == {"height", "width"} else square
    if not isinstance(sides, list):
        sides = [sides, sides]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= LARGEST for side in sides):
        told = f'a number up to {LARGEST}, or {{"height": ..., "width": ...}} of such'
        raise _wrong(key, found, told, name)
    return sides[0], sides[1]


def _wrong(key: str, value: object, wanted: str, name: str) -> UserError:
    return UserError(f"model {name}: {key} in its {FILE} is {value}: it must be {wanted}.")
