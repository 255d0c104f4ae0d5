"""Semi-supervised losses on the real unlabeled pool: fixed thresholds, and thresholds that follow the training."""

from __future__ import annotations

from comparison import Comparison, main

ROWS = ("supervised", "fixmatch-real", "flexmatch-real", "freematch-real", "softmatch-real")
COMPARISON = Comparison(
    name="pool",
    grid={("foundation", labels): ("100-109", ROWS) for labels in (1, 2, 4)},
    configurations={"foundation": 16},
    pivots=("fixmatch-real",),
)

if __name__ == "__main__":
    main(COMPARISON)
