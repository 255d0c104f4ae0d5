"""Generators: what a method may be given instead of unlabeled images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from semisynth.adapter import Adapter as Adapter
from semisynth.errors import UserError, choose
from semisynth.generators import biggan, names, own, pipelines
from semisynth.generators.adapted import Adapted as Adapted
from semisynth.generators.diffusion import MEDIUM, Diffusion, denoiser_of
from semisynth.generators.gan import ConditionalGenerator
from semisynth.generators.options import Options as Options
from semisynth.generators.protocol import Generator as Generator
from semisynth.generators.protocol import Permuted as Permuted
from semisynth.generators.protocol import draw as draw
from semisynth.generators.protocol import sample as sample
from semisynth.generators.protocol import shape as shape
from semisynth.generators.trial import finite as finite
from semisynth.generators.trial import tried as tried
from semisynth.method import External
from semisynth.models import autoencoder
from semisynth.weights import SHIPPED, load_into, read_json

NAMES = ("glyphs", "letters")
OF_DIGITS = ("digits-gan", "digits-vae")  # trained on digits-others, to be mixed into digits-pool
METHODS = ("gan", "vae", "edm")  # whose runs are generators
KINDS = (  # from elsewhere, in words
    f"the run directory of a {', '.join(METHODS[:-1])} or {METHODS[-1]}, a folder of diffusers "
    f"({autoencoder.HUB}OWNER/NAME to fetch it) or of a BigGAN, or one with {own.DESCRIPTOR}"
)
DEFAULT = Options()
SAMPLES = "generator:"  # what stands before a generator's name where its labeled samples are the data set


def load(name: str | Path, options: Options = DEFAULT) -> Generator:
    """A shipped generator by name, one from the run directory of its fit, or one from elsewhere.

    That is a folder that diffusers saved, hub:OWNER/NAME, which is fetched, a BigGAN's folder, or a network of one's
    own. The name wins over a directory. options: for one from elsewhere. Raises `UserError` for an unknown name, a
    directory of another method, damaged files, and options that the generator does not know.
    """
    path, kind = _found(str(name))
    dealt([str(name)], options)
    return kind.load(path, options) if kind else _of_run(path)


def dealt(several: Sequence[str], options: Options) -> list[Options]:
    """Of several generators, to each those of the options that it knows; `UserError` for one that none of them does."""
    asked = {f.name: value for f in fields(Options) if (value := getattr(options, f.name)) != f.default}
    known = [_read_by(name) if asked else () for name in several]
    for option in asked:
        if not any(option in reads for reads in known):
            raise UserError(f"generator {', '.join(several)} does not know --generator-options.{option}: leave it out.")
    return [Options(**{option: value for option, value in asked.items() if option in reads}) for reads in known]


def _read_by(name: str) -> tuple[str, ...]:
    path, kind = _found(name)
    return kind.reads(path) if kind else ()


class _Kind(Protocol):
    """A module that loads generators which were not made here, by the options that it says it reads."""

    def holds(self, path: Path, /) -> bool: ...
    def reads(self, path: Path, /) -> tuple[str, ...]: ...
    def load(self, path: Path, options: Options, /) -> Generator: ...
    def class_names(self, path: Path, options: Options, /) -> tuple[str, ...]: ...


FOREIGN: tuple[_Kind, ...] = (own, pipelines, biggan)  # the first that holds is taken


def _found(name: str) -> tuple[Path, _Kind | None]:
    """Where it lies, and what reads it; nothing where it was made here."""
    if name.startswith(autoencoder.HUB):
        return pipelines.fetched(name), pipelines  # whatever lies beside: no code that was fetched is run
    path = _place(name)
    return path, _kind(path)


def _kind(path: Path) -> _Kind | None:
    return next((kind for kind in FOREIGN if kind.holds(path)), None)


def is_foreign(name: str) -> bool:
    """Whether it was not made here, and so may be large and have options."""
    return name not in (*NAMES, *OF_DIGITS) and (name.startswith(autoencoder.HUB) or _kind(Path(name)) is not None)


def _of_run(path: Path) -> Generator:
    config = read_json(path / "config.json")
    if config.get("method", {}).get("name") not in METHODS:
        told = f"{path} is not a run of --method {', '.join(METHODS[:-1])} or {METHODS[-1]}"
        raise UserError(f"{told}: a generator is one of {', '.join(NAMES)}, {KINDS}.")
    try:
        result, options = read_json(path / "result.json"), config["method"]
        generator, trained = _built(tuple(result["shape"]), result["classes"], options, config.get("judge"))
        vae = result.get("externals", {}).get("vae")
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: config.json or result.json is not as fit wrote it ({error!r}): restore it."
        ) from error
    if isinstance(generator, Diffusion) and generator.vae and External(generator.vae).fingerprint() != vae:
        raise UserError(
            f"{path} was trained with another autoencoder than lies at {options['latent']} now: restore it."
        )
    load_into(trained, path / "model.safetensors")
    return generator.eval().requires_grad_(False)


def _built(
    shape: tuple[int, int, int], classes: int, options: Mapping[str, Any], judge: str | None
) -> tuple[Generator, nn.Module]:
    """The generator that a run's options describe, and the part of it that the run trained."""
    if options["name"] == "edm":
        # An earlier version wrote none of these.
        sampler, latent, hard = options.get("sampler", "heun"), options.get("latent"), options.get("hard", MEDIUM)
        vae = autoencoder.load(latent, shape) if latent else None
        parts = options["network"], options["patch"], options["deviation"], bool(judge)
        denoiser = denoiser_of(vae.latent_shape if vae else shape, classes, *parts)
        steps, guidance = options["sampler_steps"], options["guidance"]
        return Diffusion(denoiser, steps, guidance, hard=hard, sampler=sampler, vae=vae), denoiser
    generator = ConditionalGenerator(shape, classes, options["latent"], options["width"])
    return generator, generator


def class_names(name: str | Path, options: Options = DEFAULT) -> tuple[str, ...]:
    """The names of a generator's classes, in order, each once; numbers, where an earlier version wrote no names."""
    path, kind = _found(str(name))
    if kind:
        return names.unique(kind.class_names(path, options))
    result = read_json(path / "result.json")
    return names.unique(map(str, result.get("class_names", range(result.get("classes", 0)))))


def _place(name: str) -> Path:
    path, shipped = Path(name), (*NAMES, *OF_DIGITS)
    if name not in shipped and (path.is_dir() or own.holds(path)):
        return path
    if name not in shipped and (
        path.is_file() or os.sep in name or path.suffix
    ):  # a path, and no name that is misspelt
        there = "a file is no generator" if path.is_file() else "there is no such path"
        raise UserError(f"generator {name}: {there}. A generator is one of {', '.join(NAMES)}, {KINDS}.")
    return SHIPPED / f"{choose(name, shipped, 'generator (or run directory)')}-generator"
