"""Networks of the library timm by name; features are what they give without their classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from semisynth import optional
from semisynth.adapter import Shape
from semisynth.errors import UserError, sentence
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
            f"model {name} cannot be had: {sentence(error)} Give its weights by --init FILE.safetensors."
        ) from error
    told = library.data.resolve_data_config({}, model=network)
    if init not in ("none", "pretrained"):
        heads = network.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        fill(network, {k: v for k, v in read_tensors(Path(init)).items() if not k.startswith(heads)}, init)
    _, high, wide = told["input_size"]
    reads = Input((int(high), int(wide)), tuple(map(float, told["mean"])), tuple(map(float, told["std"])))
    return Backbone(network, shape, {"kind": "timm", "name": own, "input": asdict(reads)})


def again(record: Mapping[str, Any], shape: Shape) -> Backbone:
    """What `load` gave, from its record and with random weights."""
    library = optional.library("timm", "this classifier")
    return Backbone(library.create_model(record["name"], pretrained=False, num_classes=0), shape, record)
