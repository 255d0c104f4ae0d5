"""Image models of the library transformers, from a folder that it saved or from its hub.

Features are the `pooler_output`, flattened. Without one, or where the weights of the pooler are not there (as in what
was saved of a classifier), they are `last_hidden_state`: its class token if the network has a `cls_token`, else the
mean over tokens or places. Size and normalisation are those of `preprocessor_config.json`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisynth import optional
from semisynth.errors import UserError, line
from semisynth.generators.adapted import Shape
from semisynth.models.backbone import Backbone, Input
from semisynth.weights import read_json

PREFIX = "hf:"
PREPROCESSOR = "preprocessor_config.json"


def load(name: str, shape: Shape) -> Backbone:
    """The network called hf:FOLDER or hf:ORG/NAME with its weights, for images of this shape.

    `UserError` where there is none, where it reads no images, or where weights are missing.
    """
    library = optional.library("transformers", f"model {name}")
    place = _place(name)
    try:
        with _quiet(library), torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            network, found = library.AutoModel.from_pretrained(place, output_loading_info=True)
            file = library.utils.cached_file(place, PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
    except Exception as error:  # files and the hub fail in many ways
        raise UserError(
            f"model {name} cannot be read: {line(error)[:300]} Give a whole folder that save_pretrained wrote, or "
            "ORG/NAME of the hub."
        ) from error
    if network.main_input_name != "pixel_values":
        raise UserError(f"model {name} reads {network.main_input_name}, not images: give an image model.")
    if file is None:
        raise UserError(
            f"model {name} has no {PREPROCESSOR}, which tells how it reads images: save its image processor beside it, "
            'or write one, such as {"size": 224, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}.'
        )
    dropped = _without(network.float(), {key.split(".")[0] for key in found["missing_keys"]}, name)
    reads = _reads(read_json(Path(file)), network.config, name, shape)
    config = json.loads(network.config.to_json_string(use_diff=False))
    return _backbone(network, shape, reads, {"kind": "transformers", "config": config, "without": dropped})


def again(record: Mapping[str, Any], shape: Shape) -> Backbone:
    """What `load` gave, from its record and with any weights."""
    library = optional.library("transformers", "this classifier")
    with _quiet(library):
        network = library.AutoModel.from_config(library.AutoConfig.for_model(**record["config"]))
    _without(network, set(record["without"]), "")
    return _backbone(network, shape, Input.of(record["input"]), record)


def _place(name: str) -> str:
    place = name.removeprefix(PREFIX)
    if Path(place).is_dir():
        if "model_type" not in (read_json(Path(place, "config.json")) if Path(place, "config.json").exists() else {}):
            raise UserError(
                f"model {name}: the folder has no config.json of transformers: give one of save_pretrained."
            )
        return str(Path(place))
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", place):
        raise UserError(f"model {name}: there is no such folder; a network of the hub is {PREFIX}ORG/NAME.")
    return place


def _without(network: nn.Module, parts: set[str], name: str) -> list[str]:
    """Take out a pooler that has no weights; `UserError` for any other part."""
    if others := sorted(parts - {"pooler"}):
        raise UserError(f"model {name} lacks the weights of {', '.join(others)}: save all of it.")
    if parts:
        network.register_module("pooler", None)
    return sorted(parts)


def _backbone(network: nn.Module, shape: Shape, reads: Input, record: Mapping[str, Any]) -> Backbone:
    token = any(key.split(".")[-1] == "cls_token" for key, _ in network.named_parameters())
    return Backbone(network, shape, reads, partial(_pooled, token=token), record)


def _pooled(answer: Any, token: bool) -> Tensor:
    """Features (n, width) of what the network answers; token: whether its first token stands for the image."""
    pooled: Tensor | None = getattr(answer, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    last: Tensor = answer.last_hidden_state
    if last.dim() == 4:
        return last.mean((2, 3))
    return last[:, 0] if token else last.mean(1)


def _reads(told: Mapping[str, Any], config: Any, name: str, shape: Shape) -> Input:
    """What the processor makes of an image in [0, 1]; `UserError` where it leaves that open."""
    channels, size = int(getattr(config, "num_channels", 3)), _size(told)
    mean, std = [0.0] * channels, [1.0] * channels
    if told.get("do_normalize", True):
        mean, std = _numbers(told, "image_mean", channels, name), _numbers(told, "image_std", channels, name)
    scale = 255 * float(told.get("rescale_factor") or 1 / 255) if told.get("do_rescale", True) else 255.0
    offset = 1.0 if told.get("rescale_offset") else 0.0
    patch = getattr(config, "patch_size", None)
    high, wide = size or shape[1:]
    if isinstance(patch, int) and patch > min(high, wide):
        raise UserError(f"model {name} reads patches of {patch}x{patch}, the images are {high}x{wide}: give --size.")
    return Input(size, tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std))


def _numbers(told: Mapping[str, Any], key: str, channels: int, name: str) -> list[float]:
    found = told.get(key)
    if isinstance(found, (int, float)):
        found = [found] * channels
    if not isinstance(found, list) or len(found) != channels:
        raise UserError(f"model {name}: {key} in its {PREPROCESSOR} is {found}: it must be {channels} numbers.")
    return list(map(float, found))


def _size(told: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size of what the processor gives: that of its crop, else that to which it resizes."""
    found = told.get("crop_size") if told.get("do_center_crop") else None
    if found is None and told.get("do_resize", True):
        found = told.get("size")
    if isinstance(found, dict):
        side = found.get("shortest_edge")
        found = (found.get("height", side), found.get("width", side))
    high, wide = found if isinstance(found, (tuple, list)) else (found, found)
    return (int(high), int(wide)) if high and wide else None


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without its bars and reports: what matters is told as an error."""
    log = library.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    show: Callable[[], None] = log.enable_progress_bar if bars else log.disable_progress_bar
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        show()
