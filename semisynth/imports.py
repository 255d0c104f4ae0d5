"""Python code of a user's own: a factory in a file, which is imported anew, or in a package that is installed."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from semisynth.errors import UserError, sentence

NOTHING: Mapping[str, Any] = {}


class Made(NamedTuple):
    """What a factory made, and by which code: the hash of each file."""

    network: nn.Module
    code: dict[str, str]


def made(place: Path, module: str, factory: str, told: str, arguments: Mapping[str, Any] = NOTHING) -> Made:
    """What the factory of a module in the folder `place` makes of the arguments.

    Its files are imported anew and leave no module behind, so that two folders may have the same names.
    told: how it is named. `UserError` for what goes wrong within it, and for what is no network.
    """
    with _importing_from(place, module) as before, _told(told), _as_it_was():
        network = _called(importlib.import_module(module), factory, told, arguments)
        files = {str(file.relative_to(place.resolve())): file for file in _files(place.resolve(), before)}
    return Made(network, {name: hashed(file) for name, file in sorted(files.items())})


def installed(module: str, factory: str, told: str) -> Made:
    """What the factory of a module makes that Python finds, in the working directory or where it is installed."""
    with _beside(Path()), _told(told), _as_it_was():
        found = importlib.import_module(module)
        file = Path(found.__file__ or "")
        return Made(_called(found, factory, told, NOTHING), {file.name: hashed(file)})


def hashed(file: Path) -> str:
    """A hash of what is in a file."""
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()


def _called(module: ModuleType, factory: str, told: str, arguments: Mapping[str, Any]) -> nn.Module:
    network = getattr(module, factory)(**arguments)
    if not isinstance(network, nn.Module):
        raise UserError(f"{told} gives a {type(network).__name__}: it must give a torch.nn.Module.")
    return network


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """What another's code changes of the whole process is afterwards as before: seeds, torch's dtype and grad mode.

    But for torch's seed, by which it may draw weights.
    """
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    python, numbers = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        random.setstate(python)
        np.random.set_state(numbers)


@contextlib.contextmanager
def _told(told: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # it may do anything, as to read a command line
        name = type(error).__name__
        raise UserError(f"{told} fails ({name}: {sentence(error).rstrip('.')}): mend it.") from error


@contextlib.contextmanager
def _importing_from(place: Path, name: str) -> Iterator[set[str]]:
    """Within this context the module is found in `place`, and nowhere else; gives the names of those there before."""
    root = name.partition(".")[0]
    hidden = {other: sys.modules.pop(other) for other in list(sys.modules) if other.partition(".")[0] == root}
    before = set(sys.modules)
    try:
        with _beside(place):
            yield before
    finally:
        for other in _new(place.resolve(), before):
            del sys.modules[other]
        sys.modules.update(hidden)


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[None]:
    """Within this context what lies in `place` is found first, and the command line is not for what is imported."""
    path, argv, written = str(place.resolve()), sys.argv, sys.dont_write_bytecode
    sys.path.insert(0, path)
    sys.argv = sys.argv[:1]
    sys.dont_write_bytecode = True  # a file that changed within a second would be taken for what was compiled of it
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(path)
        sys.argv, sys.dont_write_bytecode = argv, written


def _new(place: Path, before: set[str]) -> list[str]:
    """The modules of this folder that were imported since; those of packages that are installed below it are not."""
    roots = {name.partition(".")[0] for name in before}
    found = []
    for name in set(sys.modules) - before:
        root, module = name.partition(".")[0], sys.modules[name]
        own = (str(place / root) + os.sep, str(place / root) + ".py")
        paths = [str(getattr(module, "__file__", "")), *(f"{part}{os.sep}" for part in getattr(module, "__path__", ()))]
        if root not in roots and any(path.startswith(own) for path in paths):
            found.append(name)
    return found


def _files(place: Path, before: set[str]) -> list[Path]:
    return [Path(file) for name in _new(place, before) if (file := getattr(sys.modules[name], "__file__", None))]
