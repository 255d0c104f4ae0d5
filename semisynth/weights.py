"""Weights on disk: safetensors, written beside and then renamed, read with errors that name the file."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from semisynth.errors import UserError, line, sentence

SHIPPED = Path(__file__).parent / "shipped"
MUCH = 500  # characters of what does not fit


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which is renamed at the end: `path` is whole at any moment.

    Raises `UserError` if it cannot be written: a full disk, a directory that may not be written to. What an error
    leaves half written is removed; what an interruption leaves stays beside.
    """
    beside = path.with_name(path.name + ".part")
    try:
        yield beside
        os.replace(beside, path)
    except Exception as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if not isinstance(error, OSError):
            raise
        remedy = "make room or give another place, and run the same command again"
        raise UserError(f"{path} cannot be written ({error.strerror or error}): {remedy}.") from error


def write_text(path: Path, text: str) -> None:
    r"""Write a file that is whole or not there; what is no character, as of a name on disk, is written as \x..."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, once: bool = False) -> dict[str, Any]:
    """A JSON object; `UserError` names the file and the line that cannot be read.

    once: whether a name that is there twice, of which JSON takes the last, is an error too.
    """
    content = _parsed(path, _once if once else dict)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return content


def read_names(path: Path) -> tuple[str, ...]:
    """A JSON list of different texts; `UserError` as above."""
    names = _parsed(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise UserError(f"{path} must hold a JSON list of names, each once.")
    return tuple(names)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for name, _ in pairs if len(found) < len(pairs) else ():
        if sum(name == other for other, _ in pairs) > 1:
            raise ValueError(f"'{name}' is there twice")
    return found


def _parsed(path: Path, made: Callable[[list[tuple[str, Any]]], dict[str, Any]] = dict) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=made)  # some editors begin with a BOM
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: give the path of a run directory or of a configuration.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}. It must be JSON.") from error
    except (ValueError, RecursionError) as error:  # numbers or nesting without end
        raise UserError(f"{path} cannot be read: {error}.") from error


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors under their names."""
    content = save({name: _own(tensor) for name, tensor in tensors.items()})
    with replacing(path) as beside:
        beside.write_bytes(content)  # not save_file: what that writes only its owner may read


def _own(tensor: Tensor) -> Tensor:
    """On the CPU and in memory of its own: networks may give one tensor two names, which the format refuses."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `UserError` if it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: it is written when a run ends; was this one cut off?") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): make it again, or restore it.") from error


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that another program wrote: safetensors, or a pickled `state_dict` by its suffix.

    `UserError` if it is missing or damaged, and for a pickle of more than tensors, which is never run.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    convert = "save_file(model.state_dict(), 'model.safetensors') of safetensors.torch, where it was made"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: give the weights.") from error
    except pickle.UnpicklingError as error:
        told = "is no file of torch, or a pickle of Python objects that could run any code when it is read"
        raise UserError(f"{path} {told}: not read. Convert it by {convert}.") from error
    except Exception as error:  # a damaged archive fails in many ways
        raise UserError(f"{path} is damaged, or no state_dict ({line(error)[:200]}): make it by {convert}.") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} must hold a state_dict, tensors under their names alone: make it by {convert}.")
    return found


def load_into(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Fill `module` with the tensors of `path` whose names start with `prefix`, which is cut off; all must fit."""
    fill(module, {name[len(prefix) :]: t for name, t in read_tensors(path).items() if name.startswith(prefix)}, path)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str, assign: bool = False) -> None:
    """Fill `module` with these tensors, which come from `source`; all must fit.

    Of the names of one tensor, as of tied weights, one is enough. assign: whether it takes them as they are, as one
    without memory must that was made on the device meta.
    """
    own = module.state_dict(keep_vars=True)
    there = {id(value): tensors[name] for name, value in own.items() if name in tensors}
    tied = {name: there[id(value)] for name, value in own.items() if id(value) in there}
    try:
        module.load_state_dict({**tied, **tensors}, assign=assign)
    except RuntimeError as error:
        raise UserError(f"{source} does not fit this network: {sentence(error)}") from error
