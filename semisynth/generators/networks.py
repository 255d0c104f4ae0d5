"""A user's own network: a module of a Python file, or a program that torch.export saved."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisynth import imports
from semisynth.errors import UserError, line

PICKLED = ("opaque_obj", "custom_obj")  # how the names of Python objects begin in a program's archive


def imported(folder: Path, named: str, arguments: Mapping[str, Any], told: str) -> imports.Made:
    """What `named` makes of the arguments: "package.file:factory" or "file.py:factory" of this folder; and its code.

    The code is a hash of each file of the folder that was imported.

    told: where it is named. `UserError` if there is no such file in the folder, or what goes wrong within it.
    """
    module, _, factory = named.partition(":")
    file = folder / module if module.endswith(".py") else folder.joinpath(*module.split("."))
    found = next((path for path in (file, file.with_suffix(".py"), file / "__init__.py") if path.is_file()), None)
    # Links are not followed: in a snapshot of the hub each file is one to a place beside the folder.
    if not factory or found is None or not Path(os.path.abspath(found)).is_relative_to(os.path.abspath(folder)):
        raise UserError(f"{told}: '{named}' is no 'file.py:factory' or 'package.file:factory' in {folder}.")
    place, name = (file.parent, file.stem) if module.endswith(".py") else (folder, module)
    if module.endswith(".py") and "." in name:
        raise UserError(f"{told}: {file.name} has dots in its name, which Python cannot import: rename it.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what no weights file fills is the same each time
        return imports.made(place, name, factory, f"{told}: '{named}'", arguments)


class Program(nn.Module):
    """A program of torch.export, for any number of rows: what it was exported for is filled up, or taken in turn."""

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.module = exported.module()
        self.module.train = lambda mode=True: self.module  # type: ignore[method-assign] # it has one mode, and refuses
        self.least, self.most = _rows(exported)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The program's output for these rows."""
        parts = zip(*(x.split(self.most or len(x)) for x in inputs), strict=True)
        return torch.cat([self.module(*(_filled(x, self.least) for x in part))[: len(part[0])] for part in parts])


def _filled(x: Tensor, least: int) -> Tensor:
    """x (n, ...) with its last row repeated, if there are fewer than `least`."""
    return x if len(x) >= least else torch.cat([x, x[-1:].expand(least - len(x), *x.shape[1:])])


def _rows(exported: torch.export.ExportedProgram) -> tuple[int, int]:
    """The least and the most rows that it takes at a time; 0 for as many as one likes."""
    first = exported.graph_signature.user_inputs[0]
    rows = next(node.meta["val"].shape[0] for node in exported.graph.nodes if node.name == first)
    if isinstance(rows, int):
        return rows, rows
    span = exported.range_constraints.get(rows.node.expr)
    return (1, 0) if span is None else (int(span.lower), int(span.upper) if span.upper < sys.maxsize else 0)


def program(path: Path) -> Program:
    """The program in a file; `UserError` if it is missing, damaged or has Python objects in it, which are never run."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: write it with torch.export.save.")
    try:
        unsafe = next(_unsafe(path), None)
        if unsafe is None:
            return Program(torch.export.load(path))
    except Exception as error:  # damaged archives fail in many ways
        told = f"cannot be read as a program of torch.export ({line(error)[:300]})"
        raise UserError(f"{path} {told}: write it on the CPU with torch.export.save, by this torch.") from error
    raise UserError(
        f"{path} has Python objects in it ({unsafe}), which could run any code when they are read: export a network "
        "whose parameters, buffers and example inputs are tensors alone."
    )


def _unsafe(path: Path) -> Iterator[str]:
    """The files in a program's archive that torch.export.load would unpickle, other than tensors."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            kind = Path(name)
            if kind.name.startswith(PICKLED):
                yield kind.name
            elif kind.name.endswith("config.json"):
                payloads = json.loads(archive.read(name)).get("config", {}).values()
                yield from (entry["path_name"] for entry in payloads if entry.get("use_pickle"))
            elif kind.suffix == ".pt" and (content := archive.read(name)):
                try:
                    torch.load(BytesIO(content), weights_only=True)
                except Exception:
                    yield kind.name
