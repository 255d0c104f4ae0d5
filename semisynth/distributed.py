"""Which rank am I, and the few collectives that a step needs; every function is the identity in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from semisynth.errors import UserError


def start(device: torch.device) -> bool:
    """Join the process group that `torchrun` announces in the environment; return whether this call started it."""
    if "RANK" not in os.environ or dist.is_initialized():
        return False
    # What one rank does alone, such as writing a data set, may take hours. A rank that is gone is noticed at once.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    return True


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Be in the process group within this block; who leaves the outermost one, by an error too, is not waited for."""
    began = start(device)
    try:
        yield
    finally:
        if began:
            stop()


def rank() -> int:
    """This process's position, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes, 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(total: int, what: str) -> int:
    """This rank's part of a global batch of `total`; it must divide evenly, so that means of means are means."""
    if total % world():
        raise UserError(
            f"{what} is {total}, which {world()} processes cannot share evenly: choose a multiple of {world()}."
        )
    return total // world()


def average(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean over ranks of each tensor, by one flat all-reduce."""
    if world() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / world()).split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def concatenate(x: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the global batch; without gradient."""
    if world() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        dist.barrier()
