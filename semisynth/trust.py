"""What a report shows of how far a classifier can be believed: its confidence, and each of its classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from semisynth import charts
from semisynth.charts import Bin
from semisynth.evaluate import wilson
from semisynth.runs import Group
from semisynth.sections import Colours, at_most, fold, key, section, short
from semisynth.statistics import mean, t_interval

LONG = 20  # a table of more classes than this is folded
CURVES = {"before": "as trained", "after": "with the temperature"}
SHADES = {"as trained": "s5 d0", "with the temperature": "s0 d0"}


def calibration(groups: Sequence[Group], colours: Colours) -> str:
    """A reliability diagram of each group, before and after its temperature."""
    figures = [_diagram(group) for group in groups if group.runs and all(map(_calibrated, group.runs))]
    note = (
        "How many of the test images that are classified with a confidence are classified correctly: on the diagonal "
        "as many as the confidence promises, below it fewer. The temperature was fitted to the validation split. "
        "Larger dots are of more images; the bar of a single run is the 95 % interval by Wilson."
    )
    keys = "".join(f"<li>{key(SHADES[name])}{name}</li>" for name in CURVES.values())
    shown = at_most(4, figures, "diagrams")
    return section("Calibration", note, f'<ul class="keys">{keys}</ul>{shown}' if shown else "")


def classes(groups: Sequence[Group], colours: Colours) -> str:
    """Recall and precision of each class, with intervals; folded where there are several groups or many classes."""
    measured = [group for group in groups if group.runs and all("confusion" in run.test for run in group.runs)]
    found = {group.label: _classes(group, colours[group.kind]) for group in measured}
    several = len(found) > 1
    content = "".join(fold(label, table) if several else table for label, table in found.items())
    note = (
        "On the test images. Recall is the share of a class's images that are found, precision the share of what is "
        "taken for the class that is of it. Intervals are 95 %: by Wilson over the images for one run, by Student's t "
        "over the seeds for several."
    )
    return section("Classes", note, content)


def _calibrated(run: Any) -> bool:
    return "test" in (run.result or {}).get("calibration", {})


def _diagram(group: Group) -> str:
    told = [run.result["calibration"] for run in group.runs if run.result]
    curves = {name: list(_bins([each["test"][when] for each in told])) for when, name in CURVES.items()}
    of = {
        f"{what} {when}": mean([e["test"][when][what] for e in told]) for what in ("error", "loss") for when in CURVES
    }
    caption = (
        f"{escape(group.label)}: temperature {short(mean([each['temperature'] for each in told]))}; calibration error "
        f"{of['error before']:.3f}, then {of['error after']:.3f}; cross-entropy {of['loss before']:.3f}, then "
        f"{of['loss after']:.3f}"
    )
    drawing = charts.reliability(f"reliability of {group.label}", curves, SHADES)
    return f'<figure class="reliability"><figcaption>{caption}</figcaption>{drawing}</figure>'


def _bins(tables: Sequence[dict[str, Any]]) -> Iterator[Bin]:
    """The bins that have images, over all runs; an interval only of a single run, as runs share the test images."""
    for parts in zip(*(zip(t["count"], t["confidence"], t["accuracy"], strict=True) for t in tables), strict=True):
        filled = [(count, confidence, share) for count, confidence, share in parts if count]
        n = sum(count for count, _, _ in filled)
        if n:
            confidence, share = (sum(part[0] * part[i] for part in filled) / n for i in (1, 2))
            yield Bin(n, confidence, share, wilson(round(n * share), n) if len(tables) == 1 else None)


def _classes(group: Group, colour: str) -> str:
    names = list(group.runs[0].test["per_class"])
    counts = np.array([run.test["confusion"] for run in group.runs])
    right = counts.diagonal(axis1=1, axis2=2)
    both = [(right[:, i], counts[:, i].sum(-1), counts[:, :, i].sum(-1)) for i in range(len(names))]
    at = [0.0, 0.25, 0.5, 0.75, 1.0]
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td>{true.mean():,.0f}</td>'
        f"{_cells(hits, true, at, colour)}{_cells(hits, said, at, colour)}</tr>"
        for name, (hits, true, said) in zip(names, both, strict=True)
    ]
    head = '<th scope="col">class</th><th scope="col">images</th>' + "".join(
        f'<td class="chart"></td><th scope="col">{name}, %</th>' for name in ("recall", "precision")
    )
    axis = f'<td class="chart">{charts.scale(at)}</td><td></td>'
    table = (
        f'<div class="scroll"><table class="classes"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f"<tfoot><tr><td></td><td></td>{axis}{axis}</tr></tfoot></table></div>"
    )
    return fold(f"{len(names)} classes", table) if len(names) > LONG else table


def _cells(hits: Any, of: Any, at: Sequence[float], colour: str) -> str:
    """A share and its interval, drawn and written; empty where it is a share of nothing in any run."""
    if not of.all():
        return '<td class="chart"></td><td>–</td>'
    shares = [int(hit) / int(n) for hit, n in zip(hits, of, strict=True)]
    ends = wilson(int(hits[0]), int(of[0])) if len(shares) == 1 else t_interval(shares)
    low, high = (min(max(end, 0.0), 1.0) for end in ends)
    drawing = charts.strip([], mean(shares), (low, high), at, colour)
    return (
        f'<td class="chart">{drawing}</td>'
        f"<td>{100 * mean(shares):.0f}<small>{100 * low:.0f} to {100 * high:.0f}</small></td>"
    )
