"""What a report shows of its groups, as HTML: each function takes the groups and the colour of each kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from torch import Tensor

from semisynth import charts
from semisynth.errors import UserError
from semisynth.runs import Group, Run
from semisynth.statistics import mean
from semisynth.weights import read_tensors

SHOWN = 100  # synthetic images of each kind
OPEN = 4  # more confusion matrices or sheets of images than these are folded
Colours = Mapping[str, str]


def accuracy(groups: Sequence[Group], colours: Colours) -> str:
    """Table and chart of the test accuracy."""
    scored = [group for group in groups if group.accuracies]
    if not scored:
        return ""
    shares = [share for group in scored for share in (*group.accuracies, *group.interval)]
    at = [tick for tick in charts.ticks(min(shares), max(shares)) if -1e-9 < tick < 1 + 1e-9]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Accuracy, %", "95 % interval", "Runs", "Seconds"))
    bodies = (
        "".join(_accuracy_row(group, at, colours[group.kind]) for group in scored if group.labels == labels)
        for labels in dict.fromkeys(group.labels for group in scored)
    )
    return section(
        "Test accuracy",
        _reading(scored),
        f'<table class="accuracy"><thead><tr><th scope="col">Setting</th><td></td>{head}</tr></thead>'
        + "".join(f"<tbody>{body}</tbody>" for body in bodies)
        + f'<tfoot><tr><td></td><td class="chart">{charts.scale(at)}</td><td colspan="4"></td></tr></tfoot></table>',
    )


def basis(group: Group) -> str:
    """Say what the interval of the accuracy is over."""
    many = len(group.accuracies)
    return f"Student's t, {many} seeds" if many > 1 else f"Wilson, {group.scored[0].test.get('images', 'test')} images"


def measures(groups: Sequence[Group], colours: Colours) -> str:
    """Table of the other numbers that the evaluation found."""
    rows = {group.label: _scalars(group.runs) for group in groups if group.runs}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not names:
        return ""
    head = [name.replace("_", " ") for name in ("setting", *names)]
    cells = {label: [short(row[name]) if name in row else "–" for name in names] for label, row in rows.items()}
    return section("Other measures", "On the test images, mean over the runs.", table(head, cells.items()))


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of named rows of cells; it scrolls where it is wider than the page."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for name, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def curves(groups: Sequence[Group], colours: Colours) -> str:
    """What the log says by step, a panel for each number of labels: validation, then every loss term and metric."""
    panels = dict.fromkeys(group.labels for group in groups)
    members = ([group for group in groups if group.labels == labels] for labels in panels)
    content = "".join(_panel(panel, colours, folded=len(panels) > 1) for panel in members)
    return section("Curves", "By step, mean over the runs of a setting.", content)


def confusion(groups: Sequence[Group], colours: Colours) -> str:
    """Confusion matrix of each group, summed over its runs."""
    figures = [_confusion(group) for group in groups if _all_have(group.runs, "confusion")]
    note = "Rows are the true classes, columns the predicted ones; test images, summed over the runs."
    return section("Confusion", note, at_most(OPEN, figures, "matrices"))


def samples(groups: Sequence[Group], colours: Colours) -> str:
    """Synthetic images: those of uniform classes beside those the mapper asks for."""
    name = "samples.safetensors"
    sheets = [_sheets(group, run.path / name) for group in groups if (run := first_with(group, name))]
    return section("Synthetic images", "From the first run of a setting.", at_most(OPEN, sheets, "settings"))


def time(groups: Sequence[Group], colours: Colours) -> str:
    """Time of each part of a step."""
    spent = {group.label: parts for group in groups if (parts := _parts(group.runs or group.pending))}
    names = dict.fromkeys(name for parts in spent.values() for name in parts)
    shades = {name: charts.series(i) for i, name in enumerate(names)}
    longest = max((math.fsum(parts.values()) for parts in spent.values()), default=0.0) or 1.0
    content = "".join(
        f"<figure><figcaption>{escape(label)}: <b>{short(math.fsum(parts.values()))} ms</b></figcaption>"
        + charts.bar(parts, longest, shades)
        + '<ul class="keys">'
        + "".join(f"<li>{key(shades[name])}{escape(name)} {short(value)}</li>" for name, value in parts.items())
        + "</ul></figure>"
        for label, parts in spent.items()
    )
    bars = f'<div class="pairs">{content}</div>' if content else ""
    return section("Time per step", "Milliseconds in each part of a step, mean over the steps and runs.", bars)


def section(title: str, note: str, content: str) -> str:
    """Return a headed section; nothing where there is no content."""
    return f'<section><h2>{title}</h2><p class="note">{note}</p>{content}</section>' if content else ""


def fold(summary: str, content: str) -> str:
    """Return `content` folded under a summary."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def at_most(count: int, parts: Sequence[str], noun: str) -> str:
    """Return the parts in a row that wraps, folded if there are more than `count`."""
    row = f'<div class="row">{"".join(parts)}</div>' if parts else ""
    return fold(f"{len(parts)} {noun}", row) if len(parts) > count else row


def key(colour: str) -> str:
    """The colour of a curve or a bar, beside its name."""
    return f'<svg class="key {colour}" aria-hidden="true"><line x2="100%" y1="50%" y2="50%"/></svg>'


def short(value: float) -> str:
    """Three digits, or whole numbers from a hundred up."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _accuracy_row(group: Group, at: Sequence[float], colour: str) -> str:
    seeds, (low, high) = group.accuracies, group.interval
    seconds = [run.result["seconds"] for run in group.runs if run.result and _is_number(run.result.get("seconds"))]
    return (
        f'<tr><th scope="row">{key(colour)}{escape(group.label)}</th>'
        f'<td class="chart">{charts.strip(seeds, mean(seeds), (low, high), at, colour)}</td>'
        f'<td class="main" data-label="%">{100 * mean(seeds):.1f}</td>'
        f"<td>{100 * low:.1f} to {100 * high:.1f}<small>{escape(basis(group))}</small></td>"
        f'<td data-label="{"run" if len(seeds) == 1 else "runs"}">{len(seeds)}</td>'
        f'<td data-label="s">{short(mean(seconds)) if seconds else "–"}</td></tr>'
    )


def _reading(groups: Sequence[Group]) -> str:
    notes = [
        "The large dot is the mean, the bar its 95 % interval, each faint dot a seed; seconds are the mean of a run."
    ]
    if any(len(group.accuracies) > 1 for group in groups):
        notes += ["Intervals by t cover the draw of labels and training, not the choice of the test images."]
    if any(len(group.accuracies) == 1 for group in groups):
        notes += ["Intervals by Wilson cover the choice of the test images, not the draw of labels or training."]
    return " ".join(notes)


def _scalars(members: Sequence[Run]) -> dict[str, float]:
    names = [
        name for name, value in members[0].test.items() if _is_number(value) and name not in ("images", "accuracy")
    ]
    return {
        name: mean([run.test[name] for run in members])
        for name in names
        if all(_is_number(run.test.get(name)) for run in members)
    }


def _panel(groups: Sequence[Group], colours: Colours, folded: bool) -> str:
    logged = dict.fromkeys(
        name for group in groups for run in group.runs or group.pending for line in run.log for name in line
    )
    validation = [name for name in logged if name.startswith("validation/")]
    validation.sort(key=lambda name: name not in ("validation/accuracy", "validation/loss"))
    terms = [name for name in logged if "/" in name and not name.startswith(("time/", "validation/"))]
    first, rest = (_plots(names, groups, colours) for names in (validation, terms))
    if not first + rest:
        return ""
    keys = "".join(f"<li>{key(colours[group.kind])}{escape(group.label)}</li>" for group in groups)
    plots = f'<div class="plots">{first}{"" if folded else rest}</div>'
    more = fold("Loss terms", f'<div class="plots">{rest}</div>') if folded and rest else ""
    return f'<div class="panel"><ul class="keys">{keys}</ul>{plots}{more}</div>'


def _plots(names: Iterable[str], groups: Sequence[Group], colours: Colours) -> str:
    by_label = {group.label: colours[group.kind] for group in groups}
    figures = []
    for name in names:
        found = {group.label: points for group in groups if (points := curve(group.runs or group.pending, name))}
        title = "validation/accuracy, %" if name == "validation/accuracy" else name
        figures += [charts.lines(title, found, by_label)] if found else []
    return "".join(figures)


def curve(members: Sequence[Run], name: str) -> charts.Points:
    """Mean over the runs of what they log as `name`, at the steps where all of them do; accuracy in percent."""
    unit = 100 if name == "validation/accuracy" else 1
    values = [{line["step"]: unit * line[name] for line in run.log if _is_number(line.get(name))} for run in members]
    steps = sorted(set.intersection(*(set(value) for value in values)))
    return [(step, mean([value[step] for value in values])) for step in steps]


def _all_have(members: Sequence[Run], field: str) -> bool:
    return bool(members) and all(field in run.test for run in members)


def _confusion(group: Group) -> str:
    classes = list(group.runs[0].test["per_class"])
    counts = np.sum([run.test["confusion"] for run in group.runs], axis=0)
    drawing = charts.heat(counts, classes, f"confusion matrix of {group.label}")
    return f'<figure><figcaption>{escape(group.label)}</figcaption><div class="scroll">{drawing}</div></figure>'


def first_with(group: Group, name: str) -> Run | None:
    """The first run of the group that has a file of this name."""
    return next((run for run in (*group.runs, *group.pending) if (run.path / name).exists()), None)


def _sheets(group: Group, file: Path) -> str:
    images = read_tensors(file)
    captions = {"uniform": "uniform classes", "mapped": "images that the mapper asks for"}
    sheets = "".join(
        _sheet(images[name], f"{caption}, {group.label}", file) for name, caption in captions.items() if name in images
    )
    return f'<div class="pairs">{sheets}</div>'


def _sheet(images: Tensor, caption: str, file: Path) -> str:
    if images.ndim != 4 or not len(images):
        raise UserError(f"{file}: expected images of shape (n, c, h, w): repeat this run, or delete the file.")
    alt = f"{min(len(images), SHOWN)} synthetic images in rows of ten: {caption}"
    image = f'<img class="pixels" src="{charts.montage(images[:SHOWN].float().numpy())}" alt="{escape(alt)}">'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{image}</figure>"


def _parts(members: Sequence[Run]) -> dict[str, float]:
    """Milliseconds per step in each part, longest first: sums over the log, mean over the runs."""
    spent: dict[str, float] = {}
    logs = [run.log for run in members if run.log]
    for log in logs:
        for line in log:
            for name, value in line.items():
                if name.startswith("time/") and _is_number(value):
                    part = name.removeprefix("time/")
                    spent[part] = spent.get(part, 0.0) + 1000 * value / max(log[-1]["step"], 1) / len(logs)
    return dict(sorted(spent.items(), key=lambda item: -item[1]))
