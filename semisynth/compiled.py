"""Networks through `torch.compile`, for the length of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from semisynth.errors import UserError
from semisynth.method import Average, External, Method, Update
from semisynth.models.mapper import Mapper

BACKEND = "inductor"


def check(updates: Mapping[str, Update | Average], device: torch.device) -> None:
    """Raise `UserError` where these updates cannot be compiled, or nothing can."""
    twice = [name for name, entry in updates.items() if isinstance(entry, Update) and entry.second_order]
    if twice:
        raise UserError(
            f"compile: the update '{twice[0]}' differentiates the network twice, which compiled code cannot: "
            "leave --compile out."
        )
    try:
        torch.compile(lambda x: x.sin() + 1, backend=BACKEND)(torch.zeros(8, device=device))
    except Exception as error:  # each backend, compiler and version has its own
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        told = " ".join(str(error).strip().partition("\n\n")[0].split())
        raise UserError(
            f"compile: torch.compile does not work here ({told}). Install {needed}, or leave --compile out."
        ) from error


@contextlib.contextmanager
def networks(method: Method) -> Iterator[None]:
    """Within this context the method's networks, and the direct parts of each, are compiled where they are called.

    A loss calls a classifier or its features, so both are; views and noise stay as they are. Each shape has its own
    code, so that it does not depend on what was run before.
    """
    # A mapper is small, draws noise, and reads the progress of the training, which each graph would hold constant.
    whole = [module for module in method.children() if not isinstance(module, (External, Mapper))]
    inner = [part for module in whole for part in module.children() if not isinstance(part, External)]
    parts = list(dict.fromkeys([*whole, *inner]))
    for part in parts:
        # Of the instance: no name in the state changes, and a copy made before stays as it was.
        part.forward = torch.compile(part.forward, dynamic=False, backend=BACKEND)
    try:
        yield
    finally:
        for part in parts:
            del part.forward
