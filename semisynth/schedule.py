"""Learning-rate schedules: functions of progress in [0, 1) that multiply each parameter group's own rate."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "constant"]


def factor(name: Schedule, progress: float) -> float:
    """The multiplier at `progress`; "cosine" is cos(7 pi t / 16), FixMatch's (Sohn 2020, section 2.3)."""
    return math.cos(7 * math.pi * progress / 16) if name == "cosine" else 1.0
