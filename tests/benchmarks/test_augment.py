"""Pillow's side of the benchmark is the policy of `semisynth.augment`."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semisynth.augment import ops, policies

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
OURS = [*(getattr(ops, name) for name in policies.GEOMETRIC), *policies.COLOUR]


@pytest.fixture(scope="module")
def reference(script):
    return script("augment")


@pytest.fixture
def image():
    """A smooth one in colour, so that rounding and interpolation differ little."""
    rows, columns = np.mgrid[:32, :32] / 32
    planes = [np.sin(3 * rows + 2 * columns), np.cos(4 * columns), rows * columns]
    return Image.fromarray((127 + 100 * np.stack(planes, -1)).astype(np.uint8))


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("position", range(len(OURS)), ids=[op.__name__ for op in OURS])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_each_operation_has_the_same_range_and_meaning(reference, image, position, share):
    apply, (low, high) = reference.OPERATIONS[position]
    assert [low, high] == policies.RANGES[position].tolist()
    magnitude = low + share * (high - low)
    ours = OURS[position](tensor(image), torch.tensor([magnitude]))
    # A border pixel may fall out on one side only, and Pillow equalises 1,024 pixels in steps of a whole four.
    tolerance = 0.1 if OURS[position] is ops.equalize else 0.03
    assert (tensor(apply(image, magnitude)) - ours).abs().mean() < tolerance


def test_the_view_shifts_with_reflection_and_cuts_a_hole(reference, image):
    shifted = reference.reflected(32, 3)
    assert shifted.tolist() == [3, 2, 1, *range(29)]
    assert reference.reflected(32, -2).tolist() == [*range(2, 32), 30, 29]
    hole = np.asarray(reference.cutout(image.copy(), 0.25, 0.5, 0.0))
    assert (hole[12:20, :4] == 0).all() and hole[12:20, 4:].any(-1).mean() > 0.9
    assert np.array_equal(np.delete(hole, range(12, 20), 0), np.delete(np.asarray(image), range(12, 20), 0))
    views = [reference.strong(image, random.Random(seed), reference.padded) for seed in range(5)]
    assert {view.size for view in views} == {(32, 32)} and len({view.tobytes() for view in views}) == 5


@pytest.mark.parametrize(("right", "down"), [(3, -2), (-4, 4), (0, 0)])
def test_both_ways_to_shift_are_the_weak_view(reference, image, right, down):
    ours = ops.shift(tensor(image), torch.tensor([right]), torch.tensor([down]))
    for shift in (reference.padded, reference.indexed):
        for source in (image, image.convert("L")):
            moved = shift(source, right, down)
            assert moved.size == source.size and moved.mode == source.mode
        assert torch.equal(tensor(shift(image, right, down)), ours)
        assert np.array_equal(np.asarray(moved), np.asarray(reference.indexed(image.convert("L"), right, down)))
