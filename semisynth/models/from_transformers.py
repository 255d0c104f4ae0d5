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
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisynth import optional
from semisynth.adapter import Shape
from semisynth.errors import UserError, sentence
from semisynth.models import processor
from semisynth.models.backbone import Backbone, probe
from semisynth.weights import read_json

PREFIX, HUB = "hf:", "hub:"
OF_A_VERSION = (
    "_name_or_path",
    "_commit_hash",
    "transformers_version",
    "dtype",
    "torch_dtype",
)  # and not of the network


def load(name: str, shape: Shape) -> Backbone:
    """The network called hf:FOLDER or hub:ORG/NAME with its weights, for images of this shape.

    `UserError` where there is none, where it reads no images, or where weights are missing.
    """
    library, place = optional.library("transformers", f"model {name}"), _place(name)
    try:
        with _quiet(library), torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            network, found = library.AutoModel.from_pretrained(
                place, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
            )
            file = library.utils.cached_file(place, processor.FILE, _raise_exceptions_for_missing_entries=False)
    except Exception as error:  # files and the hub fail in many ways
        raise UserError(f"model {name} {_why(error)}") from error
    _check(network, found, name)
    if file is None:
        raise UserError(
            f"model {name} has no {processor.FILE}, which tells how it reads images: save its image processor beside "
            'it, or write one, such as {"size": 224, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}.'
        )
    dropped = _without(network, {key.split(".")[0] for key in found["missing_keys"]}, name)
    reads = processor.reads(read_json(Path(file)), int(getattr(network.config, "num_channels", 3)), name)
    patch, (high, wide) = getattr(network.config, "patch_size", None), reads.size or shape[1:]
    if isinstance(patch, int) and patch > min(high, wide):
        way = f"correct its {processor.FILE}" if reads.size else "give --size"
        raise UserError(f"model {name} reads patches of {patch}x{patch}, the images are {high}x{wide}: {way}.")
    config = json.loads(network.config.to_json_string(use_diff=False))
    config = {key: value for key, value in config.items() if key not in OF_A_VERSION}
    record = {"kind": "transformers", "config": config, "without": dropped, "input": asdict(reads)}
    revision = getattr(network.config, "_commit_hash", None)
    return _backbone(network, shape, record | ({"revision": revision} if revision else {}))


def again(record: Mapping[str, Any], shape: Shape) -> Backbone:
    """What `load` gave, from its record and with any weights."""
    library = optional.library("transformers", "this classifier")
    with _quiet(library):
        network = library.AutoModel.from_config(library.AutoConfig.for_model(**record["config"]))
    _without(network, set(record["without"]), "")
    return _backbone(network, shape, record)


def told(features: Backbone) -> str:
    """What its features are, in words."""
    with torch.no_grad():
        answer = features.answer(probe(features.adapter.before))
    if getattr(answer, "pooler_output", None) is not None:
        return "pooler_output"
    if answer.last_hidden_state.dim() == 4:
        return "the mean of last_hidden_state over places"
    return "its class token" if _has_token(features.network) else "the mean of last_hidden_state over tokens"


def _place(name: str) -> str:
    """Of the folder, or on the hub."""
    if name.startswith(HUB):
        place = name.removeprefix(HUB)
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", place):
            raise UserError(f"model {name}: give {HUB}ORG/NAME.")
        return place
    folder = Path(name.removeprefix(PREFIX)).expanduser()
    if not folder.is_dir():
        raise UserError(f"model {name}: there is no such folder; a network of the hub is {HUB}ORG/NAME.")
    if "model_type" not in (read_json(folder / "config.json") if (folder / "config.json").exists() else {}):
        raise UserError(f"model {name}: the folder has no config.json of transformers: give one of save_pretrained.")
    if (folder / "adapter_config.json").exists():
        raise _adapted(name)
    return str(folder)


def _adapted(name: str) -> UserError:
    told = "join them to its weights with merge_and_unload() of peft, and give what save_pretrained then writes"
    return UserError(f"model {name} has adapters beside it: {told}.")


def _why(error: Exception) -> str:
    """What an error that the library raised while it read means for the user."""
    if "trust_remote_code" in str(error):
        return "needs code of its own, which is not run: give a network that is in transformers."
    if "weights_only" in str(error):
        return (
            "has its weights in a pickle of Python objects, which could run any code: not read. Save it again, "
            "by save_pretrained where it was made, as safetensors."
        )
    return f"cannot be read: {sentence(error)} Give a whole folder that save_pretrained wrote, or {HUB}ORG/NAME."


def _check(network: Any, found: Mapping[str, Any], name: str) -> None:
    """`UserError` for a network that is not of images, and for weights of another one."""
    if getattr(network, "_hf_peft_config_loaded", False):
        raise _adapted(name)
    if network.main_input_name != "pixel_values":
        raise UserError(
            f"model {name} reads {network.main_input_name}, not images: give an image model; of one of both "
            "the half, such as what CLIPVisionModel.from_pretrained(FOLDER).save_pretrained(OTHER) writes."
        )
    for key, there, wanted in found.get("mismatched_keys", ()):
        raise UserError(
            f"model {name}: the weights '{key}' are {tuple(there)}, and by its config.json {tuple(wanted)}: restore it."
        )


def _without(network: nn.Module, parts: set[str], name: str) -> list[str]:
    """Take out a pooler that has no weights; `UserError` for any other part."""
    if others := sorted(parts - {"pooler"}):
        raise UserError(f"model {name} lacks the weights of {', '.join(others)}: save all of it.")
    if parts:
        network.register_module("pooler", None)
    return sorted(parts)


def _backbone(network: nn.Module, shape: Shape, record: Mapping[str, Any]) -> Backbone:
    return Backbone(network, shape, record, partial(_pooled, token=_has_token(network)))


def _has_token(network: nn.Module) -> bool:
    return any(key.split(".")[-1] == "cls_token" for key, _ in network.named_parameters())


def _pooled(answer: Any, token: bool) -> Tensor:
    """Features (n, width) of what the network answers; token: whether its first token stands for the image."""
    pooled: Tensor | None = getattr(answer, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    last: Tensor = answer.last_hidden_state
    if last.dim() == 4:
        return last.mean((2, 3))
    return last[:, 0] if token else last.mean(1)


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
