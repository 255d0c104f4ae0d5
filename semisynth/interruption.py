"""Ctrl-C that waits for the end of a step, so that nothing that was trained is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from semisynth import distributed

TOLD = b"\nsemisynth: stopping after this step; Ctrl-C again stops at once.\n"


@contextmanager
def awaited() -> Iterator[threading.Event]:
    """What the first Ctrl-C sets, and nothing more; a second one ends the program at once.

    It is never set where Ctrl-C is somebody else's to handle: in a worker, a thread, a program with a handler of its
    own; nor with several ranks, as each would stop at a step of its own.
    """
    asked, usual = threading.Event(), signal.default_int_handler

    def ask(*_: object) -> None:
        signal.signal(signal.SIGINT, usual)
        asked.set()
        os.write(2, TOLD)  # a progress bar may be in the middle of a line of its own

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is usual
    if not ours or distributed.world() > 1:
        yield asked
        return
    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, usual)
