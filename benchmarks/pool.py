"""Semi-supervised losses on the real unlabeled pool: fixed thresholds, and thresholds that follow the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comparison import README, Comparison, between, figures, main

ROWS = ("supervised", "fixmatch-real", "flexmatch-real", "freematch-real", "softmatch-real")
COMPARISON = Comparison(
    name="ssl",
    grid={("foundation", labels): ("100-109", ROWS) for labels in (1, 2, 4)},
    configurations={"foundation": 16},
    pivots=("fixmatch-real",),
    script="pool",
)


def write(lines: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """Write the README's short table."""
    told = f"Test accuracy in %, mean over seeds and its 95 % interval. Made by `{COMPARISON.command}`. {note}".strip()
    between(README, "pool", f"{figures(lines, ROWS, COMPARISON.columns)}\n\n{told}")


if __name__ == "__main__":
    main(COMPARISON, write)
