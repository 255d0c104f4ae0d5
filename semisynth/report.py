"""One page about one or many runs: a single HTML file that needs nothing else, in light and dark, on any screen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from semisynth import charts, sections
from semisynth.errors import UserError
from semisynth.runs import Group, load, mean

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">"""


def write(runs: Sequence[Path], out: Path) -> None:
    """Write the report on every run at or below `runs` to the file `out`.

    Raises UserError where there is no run, where a file is damaged, and where `out` is a directory.
    """
    if out.is_dir():
        raise UserError(f"'{out}' is a directory: give a file in it, such as '{out / 'report.html'}'.")
    text = page(load(runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, out)


def page(groups: Sequence[Group]) -> str:
    """Return the report on `groups` as HTML: fewest labels first, then the most accurate."""
    groups = sorted(groups, key=lambda group: (group.labels, -mean(group.accuracies or [0.0])))
    kinds = dict.fromkeys(group.kind for group in groups)
    colours = {kind: charts.series(i) for i, kind in enumerate(kinds)}
    title = escape(_title(groups))
    header = f'<p class="eyebrow">semisynth report</p><h1>{title}</h1><p class="lead">{escape(_summary(groups))}</p>'
    body = "\n".join(section(groups, colours) for section in sections.ALL)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    head = f"{HEAD}<title>{title}</title><style>\n{style}</style></head>"
    return f"{head}\n<body><main><header>{header}</header>\n{body}\n</main></body></html>\n"


def _title(groups: Sequence[Group]) -> str:
    data = " and ".join(dict.fromkeys(str(group.config["data"]) for group in groups if "data" in group.config))
    what = groups[0].label if len(groups) == 1 else f"{len(groups)} settings compared"
    return f"{what}, on {data}" if data else what


def _summary(groups: Sequence[Group]) -> str:
    finished = sum(len(group.runs) for group in groups)
    scored = [group for group in groups if group.accuracies]
    if not scored:
        return f"{finished or 'No'} finished run{'' if finished == 1 else 's'}, none with a test accuracy."
    best = max(scored, key=lambda group: mean(group.accuracies))
    low, high = best.interval
    found = (
        f"{best.label} classifies {100 * mean(best.accuracies):.1f} % of the test images correctly "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %, {sections.basis(best)})"
    )
    return found + ("." if len(scored) == 1 else f": the highest mean of {len(scored)} settings, in {finished} runs.")
