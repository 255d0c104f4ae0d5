"""What a network makes of images, block by block: the output of each stage, averaged over its positions."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from semisynth.data.datasets import Images
from semisynth.data.stream import to_float
from semisynth.errors import UserError
from semisynth.evaluate import PIXELS, evaluating
from semisynth.models.wrn import Block

POOLING = "global average"
TOGETHER = 500  # images at a time, fewer where they are large


def stages(features: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are the blocks, by name in their order; the last is the whole of `features`.

    A convolution with its norm and activation where these stand in a row (small-cnn), a group of residual blocks (wrn,
    whose last group ends with the network's last norm and activation), else the parts of the network that have weights.
    """
    layers = list(features.children())
    groups = {_width(layer): layer for layer in layers if isinstance(layer, Block)}  # of each width the last one
    convolutions = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    if groups or (isinstance(features, nn.Sequential) and convolutions):
        kind, ends = ("group", [*groups.values()]) if groups else ("block", [layers[i + 2] for i in convolutions])
        return {f"{kind}-{i}": end for i, end in enumerate([*ends[:-1], features], 1)}
    return {**_parts(features), "features": features}


def _width(block: Block) -> int:
    last = block.body[-1]
    assert isinstance(last, nn.Conv2d)
    return last.out_channels


def _parts(module: nn.Module) -> dict[str, nn.Module]:
    """The children with weights; of a wrapper around a single one, that one's."""
    found = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    return _parts(next(iter(found.values()))) or found if len(found) == 1 else found


def pooled(answer: object) -> Tensor | None:
    """Maps (n, d, h, w) or tokens (n, t, d) averaged over positions, features (n, d) as they are; None for others."""
    if not isinstance(answer, Tensor) or answer.dim() not in (2, 3, 4):
        return None
    return answer.mean((2, 3)) if answer.dim() == 4 else answer.mean(1) if answer.dim() == 3 else answer


def extract(features: nn.Module, images: Images, device: torch.device) -> dict[str, Tensor]:
    """The blocks of all images, float32 (n, d) on the CPU by the names of `stages`, in eval mode.

    A stage that answers anything but maps, tokens or features is no block. `UserError` for values that are not finite.
    """
    size = max(1, min(TOGETHER, PIXELS // math.prod(images.x.shape[2:])))
    parts: dict[str, list[Tensor]] = {}
    last: dict[str, Tensor] = {}  # answers to the current batch: of a stage that is called twice the second

    def keep(name: str, _: nn.Module, __: object, answer: object) -> None:
        found = pooled(answer)
        if found is not None:
            last[name] = found

    with ExitStack() as hooks, torch.no_grad(), evaluating(features):
        for name, stage in stages(features).items():
            hooks.callback(stage.register_forward_hook(partial(keep, name)).remove)
        for x in images.batches(size):
            features(to_float(x.to(device)))
            for name, found in last.items():
                parts.setdefault(name, []).append(found.float().cpu())
    blocks = {name: torch.cat(found) for name, found in parts.items()}
    for name, found in blocks.items():
        if not found.isfinite().all():
            raise UserError(f"{name} of the network is not finite for some images: repeat its run at a lower --lr.")
    return blocks
