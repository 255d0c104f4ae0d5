"""One page about one or many runs: a single HTML file that needs nothing else, in light and dark, on any screen."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from semisynth import charts, contaminated, findings, sections, trust
from semisynth.errors import UserError
from semisynth.runs import Group, Run, differences, flatten, load
from semisynth.sections import fold, section
from semisynth.statistics import mean
from semisynth.weights import write_text

SECTIONS = (
    sections.accuracy,
    sections.measures,
    trust.calibration,
    sections.curves,
    trust.classes,
    sections.confusion,
    sections.samples,
    findings.learned,
    contaminated.contamination,
    sections.time,
)
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
    write_text(out, text)


def page(groups: Sequence[Group]) -> str:
    """Return the report on `groups` as HTML: fewest labels first, then the most accurate."""
    groups = sorted(groups, key=lambda group: (group.labels or math.inf, -mean(group.accuracies or [0.0])))
    kinds = dict.fromkeys(group.kind for group in groups)
    colours = {kind: charts.series(i) for i, kind in enumerate(kinds)}
    title = escape(_title(groups))
    header = f'<p class="eyebrow">semisynth report</p><h1>{title}</h1><p class="lead">{escape(_summary(groups))}</p>'
    body = "\n".join(show(groups, colours) for show in SECTIONS) + _setup(groups) + _left_out(groups)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    head = f"{HEAD}<title>{title}</title><style>\n{style}</style></head>"
    return f"{head}\n<body><main><header>{header}</header>\n{body}\n</main></body></html>\n"


def _title(groups: Sequence[Group]) -> str:
    named = (str(group.config["data"]) for group in groups if "data" in group.config)
    # Of a path its last part: the whole of it stands under "Setup".
    data = " and ".join(dict.fromkeys(name if ":" in name else Path(name).name for name in named))
    what = groups[0].label if len(groups) == 1 else f"{len(groups)} settings compared"
    return f"{what}, on {data}" if data else what


def _summary(groups: Sequence[Group]) -> str:
    finished = sum(len(group.runs) for group in groups)
    scored = [group for group in groups if group.accuracies]
    if not scored:
        told = f"{finished or 'No'} finished run{'' if finished == 1 else 's'}, none with a test accuracy"
        if finished and all((run.result or {}).get("task") == "represent" for group in groups for run in group.runs):
            return f"{told}: features and no classifier, for other runs to start from (--init)."
        return f"{told}."
    if len(scored) > 1:
        means = sorted(100 * mean(group.accuracies) for group in scored)
        return (
            f"{len(scored)} settings in {finished} runs; their mean test accuracies lie between {means[0]:.1f}\u00a0% "
            f"and {means[-1]:.1f}\u00a0%. The test images choose none of them."
        )
    only = scored[0]
    low, high = only.interval
    return (
        f"{only.label} classifies {100 * mean(only.accuracies):.1f}\u00a0% of the test images correctly "
        f"(95\u00a0% interval {100 * low:.1f} to {100 * high:.1f}\u00a0%, {sections.basis(only)})."
    )


def _setup(groups: Sequence[Group]) -> str:
    keys = differences([group.config for group in groups])
    differ = _list((group.label, _options(group, keys)) for group in groups) if keys else ""
    full = "".join(fold(f"Config and command of {group.label}", _full(group)) for group in groups)
    note = "What it takes to repeat the runs" + (", after where they differ." if keys else ".")
    return section("Setup", note, differ + full + _environments(groups))


def _environments(groups: Sequence[Group]) -> str:
    """Each environment that runs had, once."""
    found = Counter(json.dumps(run.result["environment"]) for group in groups for run in group.runs if run.result)
    return "".join(
        f"<h3>Environment of {count} run{'' if count == 1 else 's'}</h3>"
        + _list((name, escape(str(value))) for name, value in json.loads(text).items())
        for text, count in found.items()
        if text != "{}"
    )


def _left_out(groups: Sequence[Group]) -> str:
    pending = [(str(run.path), f"not finished{_progress(run)}") for group in groups for run in group.pending]
    repeated = [
        (str(run.path), f"repeats seed {run.config['seed']} of {escape(group.label)}")
        for group in groups
        for run in group.repeated
    ]
    note = "No accuracy above counts these. Running the command of an unfinished run again resumes it."
    return section("Runs left out", note, _list(pending + repeated) if pending + repeated else "")


def _list(rows: Iterable[tuple[str, str]]) -> str:
    """Return a definition list of names, which are text, and their values, which are HTML."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{html}</dd>' for name, html in rows)}</dl>"


def _options(group: Group, keys: Iterable[str]) -> str:
    flat = flatten(group.config)
    return " ".join(f"<code>{escape(f'{key}={flat[key]}')}</code>" for key in keys if key in flat)


def _full(group: Group) -> str:
    config = json.dumps(group.config, indent=2, ensure_ascii=False)
    seeds = ", ".join(str(run.config["seed"]) for run in (*group.runs, *group.pending))
    configs = [shlex.quote(str(run.path / "config.json")) for run in group.runs]
    commands = "\n".join(f"semisynth fit --config {each} --out AGAIN" for each in configs)
    return f"<p>Seeds: {seeds}</p><pre>{escape(commands or 'none is finished')}</pre><pre>{escape(config)}</pre>"


def _progress(run: Run) -> str:
    steps = f" of {run.config['steps']}" if "steps" in run.config else ""
    return f", step {run.log[-1]['step']}{escape(steps)}" if run.log else ""
