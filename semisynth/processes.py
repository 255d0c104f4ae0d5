"""Worker processes that do not outlive their parent, and that need nothing of the script it runs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess


def begin() -> None:
    """Prepare a worker: Ctrl-C is the parent's to handle; no life after the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def pool(workers: int, prepare: Callable[[], None] = begin, patient: bool = False) -> Iterator[ProcessPoolExecutor]:
    """Workers that end with this block; left by an error, what runs is waited for if `patient`, else ended."""
    executor = ProcessPoolExecutor(workers, _Context(), prepare)
    try:
        yield executor
    except BaseException:
        for process in [] if patient else list(executor._processes.values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


class _Process(SpawnProcess):
    """It is not told of the parent's script, and so does not run it: that needs no `if __name__ == "__main__"`."""

    def start(self) -> None:
        script = sys.modules["__main__"].__dict__
        hidden: dict[str, object] = {name: script.pop(name) for name in ("__file__", "__spec__") if name in script}
        script["__spec__"] = None
        try:
            super().start()
        finally:
            script.update(hidden)


class _Context(SpawnContext):
    Process = _Process
