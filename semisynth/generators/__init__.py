"""Generators: what a method may be given instead of unlabeled images."""

from __future__ import annotations

from pathlib import Path

from semisynth.errors import UserError, choose
from semisynth.generators.adapted import Adapted as Adapted
from semisynth.generators.adapted import Adapter as Adapter
from semisynth.generators.gan import ConditionalGenerator
from semisynth.generators.protocol import Generator as Generator
from semisynth.generators.protocol import Permuted as Permuted
from semisynth.generators.protocol import sample as sample
from semisynth.generators.protocol import shape as shape
from semisynth.weights import SHIPPED, load_into, read_json

NAMES = ("glyphs", "letters")
SAMPLES = "generator:"  # what stands before a generator's name where its labeled samples are the data set


def load(name: str) -> Generator:
    """A shipped generator by name, or one from the run directory of `fit --method gan`; the name wins over a directory.

    Raises `UserError` for an unknown name, a directory of another method, and damaged files.
    """
    path = Path(name)
    if name in NAMES or not path.is_dir():
        path = SHIPPED / f"{choose(name, NAMES, 'generator (or run directory)')}-generator"
    config = read_json(path / "config.json")
    if config.get("method", {}).get("name") != "gan":
        raise UserError(f"{path} is not a run of --method gan: --generator needs {', '.join(NAMES)} or such a run.")
    try:
        result, options = read_json(path / "result.json"), config["method"]
        generator = ConditionalGenerator(tuple(result["shape"]), result["classes"], options["latent"], options["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: config.json or result.json is not as fit wrote it ({error!r}): restore it."
        ) from error
    load_into(generator, path / "model.safetensors")
    return generator.eval().requires_grad_(False)
