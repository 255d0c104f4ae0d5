"""BigGAN-deep from a folder in the layout of pytorch-pretrained-biggan: `config.json` and the weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semisynth.errors import UserError, check
from semisynth.generators.identity import identify
from semisynth.generators.options import Options
from semisynth.generators.protocol import Generator, require_asked, unmixed, vectors
from semisynth.models.biggan import BigGAN, Layout, folded
from semisynth.weights import fill, read_foreign, read_json, read_names

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TENSORFLOW = ("*.ckpt*", "*.index", "*.h5", "saved_model.pb", "tfhub_module.pb")
NAMES = "classes.json"
CUT = 2.0  # standard deviations at which the paper's latents are cut off
FIELDS: dict[str, Any] = {
    "channel_width": int,
    "layers": list,
    "attention_layer_position": int,
    "z_dim": int,
    "num_classes": int,
    "n_stats": int,
    "eps": float,
}


class Truncated(Generator):
    """A `Generator`: z is a standard normal and becomes a truncated one before the network reads it (see `truncated`).

    network: for this truncation, which also chose its statistics. Its images in [-1, 1] are moved to [0, 1].
    """

    def __init__(self, network: BigGAN, layout: Layout, truncation: float) -> None:
        super().__init__()
        self.network, self.truncation = network, truncation
        self.latent_shape, self.classes = (layout.z_dim,), layout.num_classes

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (n, z_dim), y labels (n,) or class vectors (n, classes) -> images (n, 3, h, w)."""
        require_asked(y, self.classes)
        assert y is not None, "it has classes"
        dtype = self.network.embeddings.weight.dtype
        with unmixed(z):
            latent = truncated(z.to(torch.promote_types(z.dtype, torch.float32)), self.truncation)
            images: Tensor = self.network(latent.to(dtype), vectors(y, self.classes, z).to(dtype))
        return ((images + 1) / 2).to(z.dtype)


def truncated(z: Tensor, truncation: float) -> Tensor:
    """A standard normal z made truncation times a normal that is cut off at two deviations, value by value.

    Phi is the normal distribution function: Phi^-1(Phi(-2) + (Phi(2) - Phi(-2)) Phi(z)) has the cut-off normal's
    distribution function at each value, so that independent normals become what the network was trained on; it rises
    with z and is smooth.
    """
    low = torch.special.ndtr(z.new_tensor(-CUT))
    cut: Tensor = torch.special.ndtri(low + (1 - 2 * low) * torch.special.ndtr(z))
    return truncation * cut


def holds(path: Path) -> bool:
    """Whether a folder is meant to be a BigGAN, one of TensorFlow included."""
    config = path / "config.json"
    if not config.exists():
        return path.is_dir() and _of_tensorflow(path)
    return {"channel_width", "layers"} <= read_json(config).keys()


def reads(path: Path) -> tuple[str, ...]:
    """The options that it knows."""
    return ("truncation", "precision")


def load(path: Path, options: Options) -> Generator:
    """The generator of a folder, by `options.truncation` and `options.precision`; constant and in eval mode.

    `UserError` for a configuration or weights that do not fit, TensorFlow's checkpoints, and unsafe pickles.
    """
    if not 0 < options.truncation <= 1:
        raise UserError(f"truncation is {options.truncation}: give a number above 0, up to 1.")
    weights = _weights(path)
    layout = _layout(path / "config.json")
    class_names(path, options)  # a list that does not fit is told now
    with torch.device("meta"):  # sizes are compared before memory is taken for them
        network = BigGAN(layout)
    tensors = read_foreign(weights)
    try:
        tensors = folded(tensors, layout, options.truncation)
    except UserError as error:
        raise UserError(f"{weights}: {error}") from error
    fill(network, tensors, weights, assign=True)
    generator = Truncated(network.to(options.dtype), layout, options.truncation)
    identify(generator, {"layout": asdict(layout), "truncation": options.truncation})
    return generator.eval().requires_grad_(False)


def class_names(path: Path, options: Options) -> tuple[str, ...]:
    """The names in the folder's `classes.json`, or numbers."""
    classes = _layout(path / "config.json").num_classes
    if not (path / NAMES).exists():
        return tuple(map(str, range(classes)))
    names = read_names(path / NAMES)
    if len(names) != classes:
        raise UserError(f"{path / NAMES} has {len(names)} names, num_classes in config.json is {classes}: correct one.")
    return names


def _layout(path: Path) -> Layout:
    """The sizes in a configuration; class_embed_dim and output_dim are not read, as z_dim and the layers say them."""
    config = read_json(path)
    for name, hint in FIELDS.items():
        if name not in config:
            raise UserError(f"{path} has no '{name}': restore it as it was published.")
        check(config[name], hint, f"'{name}' in {path}")
    for i, layer in enumerate(config["layers"]):
        if not isinstance(layer, list) or [type(part) for part in layer] != [bool, int, int]:
            raise UserError(f"layers[{i}] in {path} is {layer!r}: it must be [doubles, before, after].")
    try:
        return Layout(**{name: config[name] for name in FIELDS})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _weights(path: Path) -> Path:
    for name in WEIGHTS:
        if (path / name).exists():
            return path / name
    if _of_tensorflow(path):
        raise UserError(
            f"{path} holds a checkpoint of TensorFlow, which is not read: make pytorch_model.bin and config.json of it "
            "with pytorch_pretrained_biggan/convert_tf_to_pytorch.py."
        )
    raise UserError(f"{path} holds no weights: put {' or '.join(WEIGHTS)} beside config.json.")


def _of_tensorflow(path: Path) -> bool:
    return any(next(path.glob(pattern), None) for pattern in TENSORFLOW)
