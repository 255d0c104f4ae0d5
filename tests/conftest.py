"""Every test runs on one thread and from the same seed, so that its numbers are the same each time."""

from __future__ import annotations

import os

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
