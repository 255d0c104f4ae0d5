"""Networks of the library timm by name; features are what they give without their classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from semisynth import optional
from semisynth.errors import UserError, line
from semisynth.generators.adapted import Shape
from semisynth.models.backbone import Backbone, Input
from semisynth.weights import fill, read_tensors

PREFIX = "timm:"


def load(name: str, shape: Shape, init: str) -> Backbone:
    """The network called timm:NAME for images of this shape, with size and normalisation of its data configuration.

    init: "none" for random weights, "pretrained" for timm's own, which it fetches, or a file of weights. `UserError`
    for an unknown name.
    """
    library, own = optional.library("timm", f"model {name}"), name.removeprefix(PREFIX)
    if not library.is_model(own):
        near = library.list_models(f"*{own[:8]}*")[:5]
        raise UserError(f"model {name} is unknown to timm{': there are ' + ', '.join(near) if near else ''}.")
    try:
        network = library.create_model(own, pretrained=init == "pretrained", num_classes=0)
    except Exception as error:  # the hub fails in many ways
        raise UserError(
            f"model {name} cannot be had: {line(error)[:300]} Give its weights by --init FILE.safetensors."
        ) from error
    told = library.data.resolve_data_config({}, model=network)
    if init not in ("none", "pretrained"):
        heads = network.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        fill(network, {k: v for k, v in read_tensors(Path(init)).items() if not k.startswith(heads)}, init)
    _, high, wide = told["input_size"]
    reads = Input((int(high), int(wide)), tuple(map(float, told["mean"])), tuple(map(float, told["std"])))
    return Backbone(network, shape, reads, torch.nn.Identity(), {"kind": "timm", "name": own})


def again(record: Mapping[str, Any], shape: Shape) -> Backbone:
    """What `load` gave, from its record and with random weights."""
    library = optional.library("timm", "this classifier")
    network = library.create_model(record["name"], pretrained=False, num_classes=0)
    return Backbone(network, shape, Input.of(record["input"]), torch.nn.Identity(), record)
