"""Tiny networks that transformers saved, with random weights; and one's own, as Python files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SIZE = 16
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
NORMAL = {"image_mean": MEAN, "image_std": STD, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255}
PREPROCESSOR = {"size": {"height": SIZE, "width": SIZE}, **NORMAL}
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {**SMALL, "image_size": SIZE, "patch_size": 8},
    "dinov2": {**SMALL, "image_size": SIZE, "patch_size": 8, "mlp_ratio": 2},
    "convnext": {
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "num_stages": 2,
        "patch_size": 2,
        "layer_scale_init_value": 1.0,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}
KINDS = tuple(CONFIGS)

OWN = """
from torch import nn


class Net(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.GELU(), nn.AdaptiveAvgPool2d(2))
        self.middle, self.last = nn.Linear(32, 12), nn.Linear(12, 1000)

    def forward(self, x):
        return self.last(self.middle(self.body(x).flatten(1)).relu())


def features():
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def colours():
    return Net(3)


def probabilities():
    return nn.Sequential(Net(), nn.Softmax(1))


def logarithms():
    return nn.Sequential(Net(), nn.LogSoftmax(1))


def tokens():
    return nn.Sequential(nn.Flatten(2), nn.Linear(256, 5))


def twice():
    layer = nn.Linear(256, 256)
    return nn.Sequential(nn.Flatten(), layer, layer)


def draws():
    class Noisy(nn.Module):
        def forward(self, x):
            return (x + x.new_empty(x.shape).normal_()).flatten(1)

    return Noisy()


def number():
    return 3


def broken():
    raise RuntimeError("no such thing")
"""


def saved(folder: Path, kind: str, classifier: bool = False, preprocessor: Any = PREPROCESSOR, **options: Any) -> str:
    """--model for a network of this kind in `folder`; classifier: whether a head was saved with it, and no pooler."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    config = AutoConfig.for_model(kind, **{**CONFIGS[kind], **options})
    with torch.random.fork_rng():
        torch.manual_seed(len(kind))
        network = (AutoModelForImageClassification if classifier else AutoModel).from_config(config)
    for buffer in network.buffers():  # statistics other than at the start, by which no rectifier is zero everywhere
        if buffer.is_floating_point():
            buffer.sub_(0.3)
    network.save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return f"hf:{folder}"


def own(folder: Path, factory: str = "Net") -> str:
    """--model for a network of one's own."""
    file = folder / "own.py"
    file.write_text(OWN)
    return f"{file}:{factory}"
