"""Every test runs on one thread and from the same seed, so that its numbers are the same each time."""

from __future__ import annotations

import os
import signal

import pytest
import tiny
import torch

from semisynth import insight
from semisynth.recipes import single

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
insight.VIEWS = insight.LABELED_VIEWS = 2  # few, for the many short fits
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images of the tests lie where those of the user do not."""
    os.environ["SEMISYNTH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run directory of a generator that hardly learned; its source classifier's is beside it."""
    out = tmp_path_factory.mktemp("generator") / "run"
    single.fit(tiny.config("gan", steps=2, labels_per_class=0), out, show=False)
    reads = tiny.config("supervised", data=f"generator:{out}", steps=2, labels_per_class=0)
    single.fit(reads, out.parent / "source", show=False)
    return str(out)
