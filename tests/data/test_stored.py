"""Images in a file are those that were written, and take no memory once they were read."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from semisynth.data.datasets import Images
from semisynth.data.stored import Stored


@pytest.fixture
def pixels(tmp_path):
    x = torch.randint(256, (50, 3, 4, 5), dtype=torch.uint8)
    x.numpy().tofile(tmp_path / "pixels")
    return x


def test_rows_are_read_by_their_index(pixels, tmp_path):
    rows = torch.arange(49, -1, -1)
    found = Stored(tmp_path / "pixels", (3, 4, 5), rows)
    assert len(found) == 50 and found.shape == (50, 3, 4, 5)
    index = torch.tensor([4, 4, 0, 49])
    assert torch.equal(found[index], pixels.flip(0)[index]) and found[index].dtype == torch.uint8
    part = found.subset(torch.tensor([3, 7]))
    assert torch.equal(part[torch.arange(2)], pixels[[46, 42]])
    assert torch.equal(part.join(found.subset(torch.tensor([0])))[torch.arange(3)], pixels[[46, 42, 49]])
    found[index].zero_()
    assert torch.equal(found[index], pixels.flip(0)[index])


def test_images_are_the_same_in_memory_and_in_a_file(pixels, tmp_path):
    y = torch.arange(50) % 7
    memory, file = (Images(x, y) for x in (pixels, Stored(tmp_path / "pixels", (3, 4, 5), torch.arange(50))))
    index = torch.tensor([9, 3, 3])

    def content(images):
        return torch.cat(list(images.batches(20)))

    for one, other in [
        (memory, file),
        (memory.subset(index), file.subset(index)),
        (memory.subset(index).join(memory), file.subset(index).join(file)),
    ]:
        assert torch.equal(content(one), content(other)) and torch.equal(one.y, other.y) and len(one) == len(other)
    assert [len(x) for x in file.batches(20)] == [20, 20, 10]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_read_takes_no_memory(tmp_path):
    def resident() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1]) * 1024

    n, shape = 4000, (1, 100, 100)
    np.zeros((n, *shape), np.uint8).tofile(tmp_path / "pixels")
    found = Stored(tmp_path / "pixels", shape, torch.arange(n))
    before = resident()
    for index in torch.randperm(n).split(100):
        found[index]
    assert resident() - before < 5e6  # of 40 MB
