"""The schedules at points that can be computed by hand."""

from __future__ import annotations

import math

import pytest

from semisynth.schedule import factor


@pytest.mark.parametrize(
    "progress, expected", [(0.0, 1.0), (4 / 7, math.sqrt(0.5)), (16 / 21, 0.5), (1.0, math.sin(math.pi / 16))]
)
def test_cosine_is_seven_sixteenths_of_pi_wide(progress, expected):
    assert factor("cosine", progress) == pytest.approx(expected)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_constant_is_one(progress):
    assert factor("constant", progress) == 1.0
