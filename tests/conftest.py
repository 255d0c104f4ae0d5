"""Every test runs on one thread and from the same seed, so that its numbers are the same each time."""

from __future__ import annotations

import os

import pytest
import tiny
import torch

from semisynth.recipes import single

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run directory of a generator that hardly learned."""
    out = tmp_path_factory.mktemp("generator") / "run"
    single.fit(tiny.config("gan", steps=2, labels_per_class=0), out, show=False)
    return str(out)
