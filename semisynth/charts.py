"""Small charts as inline SVG; the page around them gives their classes colours, for light and dark.

Widths are in percent of the place a chart is given and heights in pixels, so that text keeps its size on any screen.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

COLOURS = 7  # classes s0 to s6: the palette of Okabe and Ito (2008) without its yellow, which is faint on white
LEFT, WIDTH, TOP, HEIGHT = 12, 87, 15, 140  # the plot inside `lines`: percent across, pixels down
SIDE = 220  # pixels down of a reliability diagram
Points = list[tuple[float, float]]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers at equal steps; the first and the last enclose [low, high]."""
    raw = (high - low) / count or abs(high) / count or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if raw <= size * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def series(index: int) -> str:
    """Return the classes of the `index`-th line or bar: a colour, and a dash where the colours are used up."""
    return f"s{index % COLOURS} d{index // COLOURS % 3}"


def strip(seeds: Sequence[float], centre: float, interval: Sequence[float], at: Sequence[float], colour: str) -> str:
    """Draw a row of a dot-and-interval chart over the ticks `at`; below the mean a faint dot for each seed."""
    x = _across(at)
    (low, high), middle = interval, "40%" if len(seeds) > 1 else "50%"
    label = f"mean {100 * centre:.1f} %, interval {100 * low:.1f} to {100 * high:.1f} %"
    marks = [f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="100%"/>' for tick in at]
    marks += [f'<line class="interval" x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}"/>']
    marks += [f'<circle class="seed" cx="{x(seed)}" cy="76%" r="3"/>' for seed in seeds if len(seeds) > 1]
    marks += [f'<circle class="mean" cx="{x(centre)}" cy="{middle}" r="5"/>']
    return f'<svg class="strip {colour}" role="img" aria-label="{label}">{"".join(marks)}</svg>'


def spread(quantiles: Sequence[float], at: Sequence[float], colour: str, label: str) -> str:
    """Draw five quantiles of a distribution over the ticks `at`: a line, its thick middle half, and the median."""
    x = _across(at)
    first, lower, middle, upper, last = map(x, quantiles)
    marks = [f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="100%"/>' for tick in at]
    marks += [f'<line class="interval" x1="{first}" x2="{last}" y1="50%" y2="50%"/>']
    marks += [f'<line class="half" x1="{lower}" x2="{upper}" y1="50%" y2="50%"/>']
    marks += [f'<circle class="mean" cx="{middle}" cy="50%" r="5"/>']
    return f'<svg class="spread {colour}" role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'


def scale(at: Sequence[float], unit: float = 100) -> str:
    """Draw the axis that belongs under rows of `strip`, in percent, or of `spread`, with unit 1."""
    x = _across(at)
    labels = (f'<text x="{x(tick)}" y="13" text-anchor="middle">{unit * tick:.4g}</text>' for tick in at)
    return f'<svg class="scale" aria-hidden="true">{"".join(labels)}</svg>'


def lines(title: str, curves: Mapping[str, Points], colours: Mapping[str, str]) -> str:
    """Draw the named `curves`, points (step, value) each, as one figure; `colours` gives each name its classes."""
    steps, values = zip(*(point for points in curves.values() for point in points), strict=True)
    at = ticks(min(values), max(values))
    x, y = _unit(min(steps), max(steps)), _unit(at[0], at[-1])
    marks = [_level(tick, TOP + HEIGHT * (1 - y(tick))) for tick in at]
    marks += [_step(min(steps), LEFT, "start")]
    marks += [_step(max(steps), LEFT + WIDTH, "end")] if max(steps) > min(steps) else []
    marks += [f'<svg x="{LEFT}%" y="{TOP}" width="{WIDTH}%" height="{HEIGHT}" viewBox="0 0 1000 1000"']
    marks[-1] += ' preserveAspectRatio="none">'
    marks += [_path(name, points, colours[name], x, y) for name, points in curves.items()]
    marks += ["</svg>", *(_end(points[-1], colours[name], x, y) for name, points in curves.items())]
    label = escape(f"{title}, by step. At the end: " + ", ".join(f"{n} {p[-1][1]:.4g}" for n, p in curves.items()))
    drawing = f'<svg role="img" aria-label="{label}">{"".join(marks)}</svg>'
    return f'<figure class="plot"><figcaption>{escape(title)}</figcaption>{drawing}</figure>'


class Bin(NamedTuple):
    """Images of about the same confidence: how many, their mean confidence, the share that is right, its interval."""

    images: int
    confidence: float
    accuracy: float
    interval: Sequence[float] | None


def reliability(title: str, curves: Mapping[str, Sequence[Bin]], colours: Mapping[str, str]) -> str:
    """Draw accuracy by confidence for each of the named `curves`, beside the diagonal where the two are the same."""
    most = max((b.images for bins in curves.values() for b in bins), default=1)
    marks = [_level(100 * share, TOP + SIDE * (1 - share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    marks += [f'<line class="grid d1" x1="{LEFT}%" y1="{TOP + SIDE}" x2="{LEFT + WIDTH}%" y2="{TOP}"/>']
    for share, anchor, name in ((0.0, "start", "0"), (0.5, "middle", "50 % confidence"), (1.0, "end", "100")):
        x = LEFT + WIDTH * share
        marks += [f'<text x="{x}%" y="{TOP + SIDE + 19}" text-anchor="{anchor}">{name}</text>']
    marks += [_dot(name, b, most, colours[name]) for name, bins in curves.items() for b in bins]
    told = "; ".join(
        f"{name}: "
        + ", ".join(f"{100 * b.accuracy:.0f} % right at confidence {100 * b.confidence:.0f} %" for b in bins)
        for name, bins in curves.items()
    )
    label = escape(f"{title}. {told}")
    return f'<svg height="{TOP + SIDE + 24}" role="img" aria-label="{label}">{"".join(marks)}</svg>'


def bar(parts: Mapping[str, float], longest: float, colours: Mapping[str, str]) -> str:
    """Draw `parts`, in ms, end to end, where `longest` fills the width."""
    pieces, start = "", 0.0
    for name, value in parts.items():
        width, title = 100 * value / longest, f"<title>{escape(name)}: {value:.3g} ms</title>"
        pieces += f'<rect class="{colours[name]}" x="{start:.2f}%" width="{width:.2f}%" height="100%">{title}</rect>'
        start += width
    label = escape(", ".join(f"{name} {value:.3g} ms" for name, value in parts.items()))
    return f'<svg class="bar" role="img" aria-label="{label}">{pieces}</svg>'


def heat(confusion: npt.NDArray[np.int64], classes: Sequence[str], title: str) -> str:
    """Draw a confusion matrix: rows true, columns predicted, shaded by the share of the row; the recall ends a row.

    Up to twenty classes the counts are written in the cells.
    """
    k, cell = len(classes), 27 if len(classes) <= 20 else 14
    names = [name if len(name) <= 12 else name[:11] + "…" for name in classes]
    wide = 7 * max(map(len, names))
    turned, margin = wide > cell, wide + 10
    top = margin if turned else 20
    recall = confusion.diagonal() / np.maximum(confusion.sum(1), 1)
    marks = [_column_name(name, margin + cell * (i + 0.5), top - 6, turned) for i, name in enumerate(names)]
    marks += [f'<text x="{margin + cell * k + 44}" y="{top - 6}" text-anchor="end">recall</text>']
    for i, name in enumerate(names):
        base = top + cell * (i + 0.5) + 4
        marks += [f'<text x="{margin - 6}" y="{base}" text-anchor="end">{escape(name)}</text>']
        marks += [f'<text x="{margin + cell * k + 44}" y="{base}" text-anchor="end">{100 * recall[i]:.0f} %</text>']
    marks += [f'<rect class="ground" x="{margin}" y="{top}" width="{cell * k}" height="{cell * k}"/>']
    for i, j in np.argwhere(confusion):
        marks += [_cell(margin + cell * j, top + cell * i, cell, confusion[i, j], confusion[i].sum(), k <= 20)]
    size = f'width="{margin + cell * k + 48}" height="{top + cell * k + 2}"'
    return f'<svg class="heat" {size} role="img" aria-label="{escape(title)}">{"".join(marks)}</svg>'


def montage(images: npt.NDArray[np.floating], columns: int = 10) -> str:
    """Return the `sheet` of images (n, c, h, w) as a data URI."""
    return "data:image/png;base64," + base64.b64encode(sheet(images, columns)).decode()


def sheet(images: npt.NDArray[np.floating], columns: int = 10) -> bytes:
    """Return images (n, c, h, w) in [0, 1] as one PNG, in rows of `columns` with a clear pixel between them.

    One channel is grey; of more than three the first three are shown.
    """
    n, c, h, w = images.shape
    pixels = (np.nan_to_num(images).clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    colour = pixels[..., :3] if c >= 3 else pixels[..., [0, 0, 0]]
    grid = np.zeros((-(-n // columns) * (h + 1) - 1, min(n, columns) * (w + 1) - 1, 4), np.uint8)
    for i, image in enumerate(colour):
        top, left = i // columns * (h + 1), i % columns * (w + 1)
        grid[top : top + h, left : left + w, :3] = image
        grid[top : top + h, left : left + w, 3] = 255
    file = io.BytesIO()
    Image.fromarray(grid).save(file, "PNG", optimize=True)
    return file.getvalue()


def _unit(low: float, high: float) -> Callable[[float], float]:
    return lambda value: (value - low) / ((high - low) or 1.0)


def _across(at: Sequence[float]) -> Callable[[float], str]:
    """Return the place of a value between the ticks `at`, with room for half a tick label at either end."""
    unit = _unit(at[0], at[-1])
    return lambda value: f"{3 + 94 * unit(value):.2f}%"


def _level(tick: float, y: float) -> str:
    label = f'<text x="{LEFT - 1.5}%" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    return f'<line class="grid" x1="{LEFT}%" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>{label}'


def _step(step: float, x: float, anchor: str) -> str:
    return f'<text x="{x}%" y="{TOP + HEIGHT + 19}" text-anchor="{anchor}">{step:,.0f}</text>'


def _path(name: str, points: Points, colour: str, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    path = " ".join(f"{1000 * x(step):.0f},{1000 * (1 - y(value)):.0f}" for step, value in points)
    return f'<polyline class="{colour}" points="{path}"><title>{escape(name)}</title></polyline>'


def _end(point: tuple[float, float], colour: str, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    across, down = LEFT + WIDTH * x(point[0]), TOP + HEIGHT * (1 - y(point[1]))
    return f'<circle class="end {colour}" cx="{across:.1f}%" cy="{down:.1f}" r="3"/>'


def _dot(name: str, bin: Bin, most: int, colour: str) -> str:
    x, (y, *ends) = (
        f"{LEFT + WIDTH * bin.confidence:.1f}%",
        (f"{TOP + SIDE * (1 - share):.1f}" for share in (bin.accuracy, *(bin.interval or ()))),
    )
    bar = f'<line class="interval" x1="{x}" x2="{x}" y1="{ends[0]}" y2="{ends[1]}"/>' if ends else ""
    told = f"<title>{escape(name)}: {bin.images} images, {100 * bin.accuracy:.0f} % right</title>"
    dot = f'<circle class="mean" cx="{x}" cy="{y}" r="{3 + 5 * math.sqrt(bin.images / most):.1f}">{told}</circle>'
    return f'<g class="{colour}">{bar}{dot}</g>'


def _column_name(name: str, x: float, y: float, turned: bool) -> str:
    turn = f' transform="rotate(-90 {x + 4} {y})"' if turned else ' text-anchor="middle"'
    return f'<text x="{x + 4 * turned}" y="{y}"{turn}>{escape(name)}</text>'


def _cell(x: int, y: int, size: int, count: int, total: int, written: bool) -> str:
    shade = 0.75 * count / total  # never so dark that the count on it is hard to read
    square = f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{size - 1}" height="{size - 1}" fill-opacity="{shade:.2f}"/>'
    text = f'<text class="count" x="{x + size / 2}" y="{y + size / 2 + 4}" text-anchor="middle">{count}</text>'
    return square + text * written
