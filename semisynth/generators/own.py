"""A user's own network with a small descriptor beside it, `generator.json`.

    {"module": "file.py:factory", "arguments": {"width": 64}, "weights": "weights.safetensors",
     "latent": [128], "classes": 10, "condition": "vectors", "range": [-1, 1]}

`module` is a factory in a Python file of the same folder, as file.py:factory or package.file:factory, and is run when
the generator is loaded; in its place "program": "generator.pt2" is a program of torch.export. `classes` is a number, or
a list of names; `condition` says what the network is called with after z (n, *latent): "vectors" (n, classes),
"labels" (n,), or "none". What it returns is (n, c, h, w) with values in `range`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semisynth import imports
from semisynth.errors import UserError, check_all, line
from semisynth.generators.identity import identify
from semisynth.generators.networks import Program, imported, program
from semisynth.generators.options import Options
from semisynth.generators.protocol import Generator, require_asked, require_known, unmixed, vectors
from semisynth.method import External
from semisynth.weights import fill, read_foreign, read_json

DESCRIPTOR = "generator.json"
Condition = Literal["vectors", "labels", "none"]
FIELDS: dict[str, Any] = {
    "module": str,
    "arguments": dict,
    "weights": str,
    "program": str,
    "latent": list,
    "classes": int | list,
    "condition": Condition,
    "range": list,
}
LARGEST = 1e30  # of a range: sums and differences stay finite
TRIED = 2  # images of the trial
OUTSIDE = 0.25  # share of a trial's values outside the range that cannot be meant


@dataclass(frozen=True)
class Descriptor:
    """How a network is called and what it returns; names: of its classes."""

    latent: tuple[int, ...]
    names: tuple[str, ...]
    condition: Condition
    low: float
    high: float


class Own(Generator):
    """A `Generator` of a network; where it takes labels, a class vector becomes its likeliest class."""

    def __init__(self, network: nn.Module, told: Descriptor) -> None:
        super().__init__()
        self.network, self.told = network, told
        self.latent_shape, self.classes = told.latent, len(told.names)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (n, *latent), y labels (n,) or class vectors (n, classes), or None without classes -> images in [0, 1]."""
        require_asked(y, self.classes)
        if not len(z):  # which not every network, and no program, takes
            one = None if y is None else y.new_zeros(1, *y.shape[1:])
            return self(z.new_zeros(1, *z.shape[1:]), one)[:0]  # type: ignore[no-any-return]
        low, high = self.told.low, self.told.high
        with unmixed(z):
            images: Tensor = (self.raw(z, y) - low) / (high - low)
        return images.clamp(0, 1).to(z.dtype)

    def raw(self, z: Tensor, y: Tensor | None) -> Any:
        """What the network returns, called in the dtype of its own weights."""
        weights = (*self.network.parameters(), *self.network.buffers())
        dtype = next((tensor.dtype for tensor in weights if tensor.is_floating_point()), z.dtype)
        if self.told.condition == "none":
            return self.network(z.to(dtype))
        assert y is not None, "it has classes"
        if self.told.condition == "vectors":
            return self.network(z.to(dtype), vectors(y, self.classes, z).to(dtype))
        require_known(y, self.classes)
        return self.network(z.to(dtype), y if y.ndim == 1 else y.argmax(1))


def holds(path: Path) -> bool:
    """Whether a path is a descriptor, or a folder with one."""
    return (path.suffix == ".json" and path.is_file()) or (path / DESCRIPTOR).is_file()


def reads(path: Path) -> tuple[str, ...]:
    """No option."""
    return ()


def load(path: Path, options: Options) -> Generator:
    """The generator that a descriptor describes, tried with two latents; constant and in eval mode.

    `UserError` for fields, files and weights that do not fit, and for a network whose trial fails.
    """
    path, config = _read(path)
    told = _descriptor(path, config)
    network, code = _network(path, config)
    generator = Own(network.eval().requires_grad_(False), told)
    asked = {name: config.get(name) for name in ("module", "program", "arguments")}
    identify(generator, {**asdict(told), "names": None, "classes": len(told.names), **asked, "code": code})
    with torch.random.fork_rng(devices=[]):
        generator.differentiable = _tried(generator, path)
    return generator.eval()


def class_names(path: Path, options: Options) -> tuple[str, ...]:
    """The names of the classes, or numbers."""
    return _descriptor(*_read(path)).names


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """The descriptor's path and its fields, each of the type that it must be."""
    path = path / DESCRIPTOR if path.is_dir() else path
    config = read_json(path)
    check_all(config, FIELDS, str(path))
    for name in ("latent", "range"):
        if name not in config:
            raise UserError(f"{path} has no '{name}': say it, as in {{'latent': [128], 'range': [-1, 1]}}.")
    return path, config


def _descriptor(path: Path, config: dict[str, Any]) -> Descriptor:
    latent, values, classes = config["latent"], config["range"], config.get("classes", 0)
    if not latent or not all(type(size) is int and size > 0 for size in latent):
        raise UserError(f"'latent' in {path} is {latent}: give the sizes of one latent, such as [128].")
    ends = [float(end) for end in values if type(end) in (int, float) and abs(end) < LARGEST]
    if len(values) != 2 or len(ends) != 2 or not ends[0] < ends[1]:
        raise UserError(f"'range' in {path} is {values}: give the least and the greatest value, such as [-1, 1].")
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    if classes != 0 and not (names and len({*names}) == len(names) and all(isinstance(name, str) for name in names)):
        raise UserError(f"'classes' in {path} is {classes}: give how many, or a list of names, each once.")
    condition = config.get("condition", "vectors" if names else "none")
    if (condition == "none") != (not names):
        raise UserError(f"'condition' in {path} is {condition}, with {len(names)} classes: correct one of both.")
    return Descriptor(tuple(latent), names, condition, *ends)


def _network(path: Path, config: dict[str, Any]) -> tuple[nn.Module, dict[str, str]]:
    """The network, and a hash of each file that says what it computes."""
    if ("module" in config) == ("program" in config):
        raise UserError(f"{path} must have either 'module' or 'program': leave one out.")
    if "program" in config:
        for name in ("arguments", "weights"):
            if name in config:
                raise UserError(f"{path}: 'program' has its weights in it and is not called to be made: no '{name}'.")
        file = path.parent / config["program"]
        return program(file), {file.name: imports.hashed(file)}
    network, code = imported(path.parent, config["module"], config.get("arguments", {}), str(path))
    if "weights" in config:
        weights = path.parent / config["weights"]
        fill(network, read_foreign(weights), weights)
    return network, code


@torch.enable_grad()
def _tried(generator: Own, path: Path) -> str:
    """Why the generator is not differentiable, if it is not; `UserError` for images that it cannot have meant."""
    z, y = _latents(generator)
    inputs = [z] if y is None or generator.told.condition == "labels" else [z, y]
    told = f"{path}: called with z {tuple(z.shape)}" + ("" if y is None else f" and y {tuple(y.shape)}, its network")
    before = External(generator).fingerprint()
    try:
        images, again = generator.raw(z, y), generator.raw(z, y)
        alone = generator.raw(z[:1], None if y is None else y[:1])
    except ImportError as error:
        told += f" imports when it is called ({line(error)[:300]})"
        raise UserError(f"{told}: import at the top of the file, as its folder is there for that alone.") from error
    except Exception as error:
        told += f" fails ({type(error).__name__}: {line(error)[:300]})"
        raise UserError(f"{told}: mend it; 'latent', 'classes' and 'condition' say what it is called with.") from error
    low, high = generator.told.low, generator.told.high
    if not isinstance(images, Tensor) or images.ndim != 4 or (len(images), images.shape[1] in (1, 3)) != (TRIED, True):
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"{told} gives {given}: it must give images (n, c, h, w) of 1 or 3 channels.")
    if not images.isfinite().all():
        raise UserError(f"{told} gives numbers that are not finite: are these its weights?")
    outside = ((images < low) | (images > high)).float().mean().item()
    if outside > OUTSIDE:
        raise UserError(f"{told} gives values of which {outside:.0%} are outside {[low, high]}: correct 'range'.")
    if not torch.allclose(images, again, atol=1e-4 * (high - low)):
        raise UserError(f"{told} gives other images each time: they must follow from z and y, so fix its noise.")
    if not torch.allclose(images[:1], alone, atol=1e-4 * (high - low)):
        raise UserError(f"{told} gives another image alone than beside others: each must follow from its own row.")
    if External(generator).fingerprint() != before:
        raise UserError(f"{told} changes its parameters or buffers: it must be constant, so leave it in eval mode.")
    return _missing(generator, images, inputs)


def _latents(generator: Own) -> tuple[Tensor, Tensor | None]:
    """Inputs of the trial, the same each time, that require a gradient where they can."""
    source, told = torch.Generator().manual_seed(0), generator.told
    z = torch.randn(TRIED, *told.latent, generator=source).requires_grad_()
    if told.condition == "none":
        return z, None
    if told.condition == "labels":
        return z, torch.arange(TRIED) % generator.classes
    return z, torch.rand(TRIED, generator.classes, generator=source).softmax(1).requires_grad_()


def _missing(generator: Own, images: Tensor, inputs: list[Tensor]) -> str:
    """What images have no gradient in, and why."""
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).to(images.dtype)
    found: list[Tensor | None] = [None] * len(inputs)
    if images.requires_grad:
        found = list(torch.autograd.grad((images * weights).sum(), inputs, allow_unused=True))
    lacking = [name for name, gradient in zip("zy", found, strict=False) if gradient is None or not gradient.any()]
    reasons = []
    if lacking:
        what = "exported program" if isinstance(generator.network, Program) else "network"
        reasons.append(f"its {what} gives no gradient in {' or '.join(lacking)} (is it made under torch.no_grad?)")
    if generator.told.condition == "labels":
        reasons.append("its condition is labels, in which there is no gradient in y (vectors have one)")
    return "; ".join(reasons)
