"""The comparison that MP-SSL's headline is put to: every sampling, every baseline, and real unlabeled images."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from comparison import HERE, README, Comparison, Row, between, contrast, figures, main

from semisynth.recipes.bench import markdown
from semisynth.recipes.config import method_class, method_options
from semisynth.weights import read_json

MAIN = ("supervised", "naive-fixmatch", "scr-uniform", "mpssl", "mpssl-plus", "fixmatch-real")
ROWS = (
    "supervised",
    "supervised-long",
    "naive-fixmatch",
    "naive-uda",
    "pssl",
    "gda",
    "mgr",
    "scr-uniform",
    "scr-long",
    "gap-only",
    "mpssl-no-gap",
    "mpssl",
    "mpssl-amortised",
    "mpssl-letters",
    "transport-only",
    "mpssl-plus",
    "fixmatch-real",
    "fixmatch-real-long",
    "uda-real",
)
COMPARISON = Comparison(
    name="mpssl",
    grid={
        ("foundation", 1): ("100-119", ROWS),
        ("foundation", 2): ("100-119", ROWS),
        ("none", 1): ("100-119", MAIN),
        ("none", 2): ("100-119", MAIN),
        ("foundation", 4): ("100-109", MAIN),
        ("foundation", 10): ("100-109", MAIN),
        ("foundation", 25): ("100-109", MAIN),
    },
    configurations={"foundation": 16, "none": 8},
    pivots=("mpssl", "mpssl-plus"),
    borrowed={
        "supervised-long": Row("supervised", steps=12),  # the wall time of `mpssl`
        "scr-long": Row("scr-uniform", steps=3.6),  # the same
        "fixmatch-real-long": Row("fixmatch-real", steps=2.4),  # the wall time of `mpssl-plus`
        "mpssl-amortised": Row("mpssl"),
        "mpssl-letters": Row("mpssl"),
    },
)


PAGE, COSTS = README.parent / "docs" / "mpssl.md", HERE / "results" / "hypergradient.json"
COLUMNS = COMPARISON.columns
REAL = ("fixmatch-real", "fixmatch-real-long", "uda-real")


def write(lines: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """Write the README's short table, and the parts of the page that are generated; the note stands under results."""
    told = f"Test accuracy in %, mean over seeds and its 95 % interval. Made by `{COMPARISON.command}`. {note}".strip()
    between(README, "mpssl", f"{figures(lines, MAIN, COLUMNS)}\n\n{told}")
    between(PAGE, "ablation", f"{figures(lines, ROWS, COLUMNS)}\n\n{told}")
    between(PAGE, "contrasts", f"{contrasts(lines)}\n\n{note}".strip())
    between(PAGE, "options", options())
    between(PAGE, "cost", cost() if COSTS.exists() else "Not measured yet.")


def contrasts(lines: Sequence[Mapping[str, Any]]) -> str:
    """What the headline needs: both methods minus what they must beat, at the fewest labels."""
    pairs = [
        ("mpssl", "supervised"),
        ("mpssl", "scr-uniform"),
        ("mpssl", "scr-long"),
        ("mpssl", "supervised-long"),
        ("scr-long", "supervised-long"),
        ("mpssl", "gap-only"),
        ("mpssl", "mpssl-no-gap"),
        ("mpssl", "pssl"),
        ("mpssl", "gda"),
        ("mpssl", "mgr"),
        ("mpssl", "naive-uda"),
        ("mpssl-amortised", "mpssl"),
        ("mpssl-letters", "mpssl"),
        ("mpssl-plus", "supervised"),
        ("mpssl-plus", "mpssl"),
        ("mpssl-plus", "transport-only"),
        *(("mpssl-plus", row) for row in REAL),
    ]
    columns = [column for column in COLUMNS if column.labels <= 2]
    head = ["difference", *map(str, columns)]
    return markdown(head, [[f"{a} - {b}", *(contrast(lines, a, b, column) for column in columns)] for a, b in pairs])


def options() -> str:
    """The options of `mpssl` and of `transport`, from their docstrings and defaults."""
    rows = []
    for name in ("mpssl", "transport"):
        listed = (inspect.getdoc(method_class(name)) or "").partition("Args:\n")[2]
        told = dict(re.findall(r"^    (\w+): (.+?)(?=\n    \w|\Z)", listed, re.M | re.S))
        for option, default in method_options(name).items():
            rows.append([f"`{name}`", f"`{option}`", f"`{default}`", " ".join(told[option].split())])
    return markdown(["method", "option", "default", "meaning"], rows)


def cost() -> str:
    """Time and memory of a full iteration over those of an SCR iteration: a row for each network and precision."""
    found = read_json(COSTS)
    places: dict[tuple[str, str], dict[str, Any]] = {}
    for line in found["results"]:
        places.setdefault((line["network"], line["precision"]), {})[line["variant"]] = line
    kinds, held = [kind for kind in next(iter(places.values())) if kind != "SCR"], ("naive", "shared")

    def row(name: str, precision: str, lines: Mapping[str, Any], field: str) -> list[str]:
        return [name, precision, *(f"{lines[kind][field]:.2f}" for kind in kinds)]

    rows = [
        [*row(*place, lines, "ratio"), *(f"{lines[k]['memory']:.2f}" for k in held)] for place, lines in places.items()
    ]
    rows.append([*row("in theory", "", next(iter(places.values())), "count"), "", ""])
    table = markdown(["network", "precision", *kinds, *(f"memory, {kind}" for kind in held)], rows)
    exact = max(line.get("exact", 0.0) for line in found["results"])
    where = f"{found['environment']['device']}, commit {found['environment']['commit']}"
    told = f"Time and memory over an SCR iteration's, in one run: `{found['command']}` ({where})."
    return f"{table}\n\n{told} The largest relative distance to the unroll's gradient, in float64: {exact:.0e}."


if __name__ == "__main__":
    main(COMPARISON, write)
