"""The first comparison: MP-SSL, its controls and the baselines, at few labels."""

from __future__ import annotations

from comparison import Comparison, main

ROWS = ("mpssl", "gap-only", "scr-uniform", "naive-fixmatch", "fixmatch-real", "supervised")
COMPARISON = Comparison(
    name="house",
    grid={
        ("foundation", 2): ("100-119", ROWS),
        ("none", 2): ("100-119", ROWS),
        ("foundation", 1): ("100-109", ROWS),
        ("foundation", 4): ("100-109", ROWS),
    },
    configurations={"foundation": 16, "none": 8},
    pivots=("mpssl",),
)

if __name__ == "__main__":
    main(COMPARISON)
