"""Where many tasks are computed: in this process, in others, or on a Ray cluster.

Each task computes on one thread wherever it is: sums on several threads round in another order, so its result would
depend on where.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch

from semisynth import processes
from semisynth.errors import UserError, line

P = ParamSpec("P")
T = TypeVar("T")
LOCAL = "local"  # Ray's word for a cluster that is started here


@dataclass(frozen=True)
class Ray:
    """A Ray cluster: the one at this address, or a local one of so many processes, which ends with the work."""

    address: str = LOCAL
    processes: int = 1


Workers = int | Ray  # so many processes, or a cluster


def require(workers: Workers) -> None:
    """`UserError` for what cannot be asked for, before anything is written."""
    count = workers.processes if isinstance(workers, Ray) else workers
    if count < 1:
        raise UserError(f"--workers is {count}: give at least 1.")
    if isinstance(workers, Ray):
        _ray()


def each(function: Callable[..., object], tasks: Sequence[Iterable[Any]], workers: Workers, device: str) -> None:
    """Call the function with the arguments of every task, here if there is one worker; the first error ends them."""
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for task in tasks:
                function(*task)
        finally:
            torch.set_num_threads(threads)
        return
    with pool(workers, len(tasks), device) as executor:
        for future in as_completed([executor.submit(function, *task) for task in tasks]):
            future.result()


@contextmanager
def pool(workers: Workers, tasks: int, device: str) -> Iterator[Executor]:
    """What runs so many tasks on this device, in processes of their own; left by an error, it ends what still runs.

    Raises `UserError` for a worker that was lost, if the block lets the `BrokenExecutor` of its task through.
    """
    made: AbstractContextManager[Executor]
    made = _joined(workers, device) if isinstance(workers, Ray) else processes.pool(min(workers, tasks), _begin)
    try:
        with made as executor:
            yield executor
    except BrokenExecutor as error:
        raise UserError(
            "a worker process was ended from outside, perhaps for want of memory. "
            "Run the same command again, with fewer --workers if it happens twice."
        ) from error


def _begin() -> None:
    torch.set_num_threads(1)
    processes.begin()


# ---- Ray ------------------------------------------------------------------------------------------------------------


@contextmanager
def _joined(cluster: Ray, device: str) -> Iterator[Executor]:
    """A cluster that this process has joined already stays joined."""
    ray = _ray()
    began = not ray.is_initialized()
    if began:
        own = {"num_cpus": cluster.processes, "include_dashboard": False} if cluster.address == LOCAL else {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it would tell its makers
        try:
            ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--ray {cluster.address} cannot be joined ({line(error)}): give the address of a Ray cluster, or none."
            ) from error
    gpus = 0 if device == "cpu" else ray.cluster_resources().get("GPU", 0)
    tasks = _Tasks(ray, min(1, gpus / cluster.processes) if cluster.address == LOCAL else min(1, gpus))
    try:
        yield tasks
    except BaseException:
        tasks.end()
        raise
    finally:
        if began:
            ray.shutdown()


class _Tasks(Executor):
    """Tasks of one CPU each and of so many GPUs, perhaps a part of one."""

    def __init__(self, ray: Any, gpus: float) -> None:
        # What is lost is told and not tried again, as with processes.
        self.ray, self.remote = ray, ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_run)
        self.references: list[Any] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As of any executor; a worker that is lost is a `BrokenExecutor`."""
        reference, future = self.remote.remote(os.getcwd(), fn, args, kwargs), Future[T]()
        self.references.append(reference)
        reference.future().add_done_callback(partial(_settle, future))
        return future

    def end(self) -> None:
        """End what runs, and begin no more."""
        for reference in self.references:
            self.ray.cancel(reference, force=True)


def _run(place: str, function: Callable[..., T], args: Sequence[Any], kwargs: dict[str, Any]) -> T:
    """A task in a worker, to which the paths of the user's directory mean the same."""
    os.chdir(place)
    torch.set_num_threads(1)
    return function(*args, **kwargs)


def _settle(future: Future[T], done: Future[T]) -> None:
    error = done.exception()
    if error is None:
        future.set_result(done.result())
        return
    cause = getattr(error, "cause", None) or BrokenExecutor(str(error))
    cause.__cause__ = error  # which tells where it happened
    future.set_exception(cause)


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError("--ray needs ray: pip install 'semisynth[ray]'.") from error
