"""What a report shows of a run's `insight.safetensors`: where its mapper leads, and what its synthetic images do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from semisynth import charts
from semisynth.errors import UserError
from semisynth.runs import Group
from semisynth.sections import Colours, curve, first_with, fold, key, section, short
from semisynth.weights import read_tensors

NAME = "insight.safetensors"
# Of each tensor the type, the sizes, and the least and the largest value. Sizes of one name agree; a name as the
# largest value stands for numbers below that size. "groups" are the target classes of a mapper, and one for a finder.
TENSORS: Mapping[str, tuple[torch.dtype, str, float, float | str]] = {
    "angle": (torch.float32, "groups quantiles", 0, 180),
    "mixture": (torch.float32, "groups many", 0, 1.001),  # a mean of shares, so rounded
    "foundation": (torch.int64, "shown", 0, "many"),
    "portraits": (torch.uint8, "shown c h w", 0, 255),
    "top": (torch.int64, "groups top", 0, "many"),
    "asked": (torch.int64, "n", 0, "groups"),
    "images": (torch.uint8, "n c h w", 0, 255),
    "neighbours": (torch.uint8, "n c h w", 0, 255),
    "neighbour_classes": (torch.int64, "n", 0, "classes"),
    "effect": (torch.float32, "n", -math.inf, math.inf),
    "error": (torch.float32, "n", 0, math.inf),
    **{
        f"{space}/{of}": (torch.float32, size, 0, math.inf)
        for space in ("pixels", "features")
        for of, size in {"labeled": "labeled", "mapped": "n", "uniform": "n"}.items()
    },
}
CONDITIONAL = {"mixture", "foundation", "portraits", "top"}  # they come together, of a generator that has classes
PULLS = {"mapper/validation_gradient": "validation loss one step ahead", "mapper/gap_gradient": "gap"}
SHOWN = 5  # images of the largest influence, on either side
LONG = 20  # a table of more classes than this is folded
Found = Mapping[str, Tensor]


def learned(groups: Sequence[Group], colours: Colours) -> str:
    """What the mapper of each setting learned; folded where there is more than one."""
    blocks = {group.label: block for group in groups if (block := _block(group))}
    content = "".join(fold(*block) for block in blocks.items()) if len(blocks) > 1 else "".join(blocks.values())
    return section("What the mapper learned", "When the first run of a setting ended.", content)


def _block(group: Group) -> str:
    run = first_with(group, NAME)
    if run is None:
        return _pulls(group)
    names = [*run.test.get("per_class", [])]
    found = _read(run.path / NAME, len(names))
    classes = names or [str(i) for i in range(len(found["angle"]))]
    beside = f"<div>{_angles(found, classes)}{_pulls(group)}</div>"
    mapping = f'<div class="pairs">{_draws(found, classes)}{beside}</div>'
    return mapping + _influence(found, classes) + _closeness(found)


def _read(file: Path, classes: int) -> Found:
    """The tensors of the file; `UserError` names one that is missing or cannot be. classes: 0 if that is not known."""
    found = read_tensors(file)
    optional = {"asked"} | (CONDITIONAL if CONDITIONAL.isdisjoint(found) else set())
    known = {"quantiles": 5, "classes": classes, "groups": classes if "asked" in found else 1}
    sizes = {name: size for name, size in known.items() if size}
    for name in TENSORS:
        if name not in found and name not in optional:
            raise UserError(f"{file}: '{name}' is missing: repeat this run, or delete the file.")
        if name in found and not _fits(found, name, sizes):
            raise UserError(f"{file}: '{name}' has a wrong type, size or value: repeat this run, or delete the file.")
    return found


def _fits(found: Found, name: str, sizes: dict[str, int]) -> bool:
    """Whether this tensor is as `TENSORS` says; sizes that were not known are noted."""
    x, (dtype, shape, low, high) = found[name], TENSORS[name]
    if x.dtype != dtype or x.ndim != len(shape.split()) or not x.numel():
        return False
    if any(sizes.setdefault(size, length) != length for size, length in zip(shape.split(), x.shape, strict=True)):
        return False
    most = sizes.get(high, math.inf) - 1 if isinstance(high, str) else high
    shown = name != "top" or bool(torch.isin(x, found["foundation"]).all())  # each has its portrait
    return shown and bool(((x >= low) & (x <= most) & x.isfinite()).all())


def _draws(found: Found, classes: Sequence[str]) -> str:
    """The foundation classes that each target class draws on most, an image beside each."""
    if "mixture" not in found:
        return ""
    portraits = dict(zip(found["foundation"].tolist(), found["portraits"], strict=True))
    rows = []
    for name, mixture, top in zip(classes, found["mixture"], found["top"].tolist(), strict=True):
        tiles = "".join(
            f"<li>{_tile(portraits[i], f'foundation class {i}')}<b>{_percent(mixture[i].item())}</b>"
            f"<small>no. {i}</small></li>"
            for i in top
        )
        spread = mixture.clamp_min(1e-12).log().mul(-mixture).sum().exp().item()
        rows += [f'<tr>{_row(name)}<td><ul class="tiles">{tiles}</ul></td><td>{short(spread)}</td></tr>']
    many = found["mixture"].shape[1]
    note = (
        f"The largest shares of the mean class vector, out of {many} foundation classes: an even spread gives each "
        f"{_percent(1 / many)}. Their numbers are shuffled and mean nothing to the method; each image is one sample of "
        "its class. Spread is over how many classes an even choice would be as undecided."
    )
    return _figure(
        "What each class draws on",
        note,
        _folded(len(rows), _table(("class", "foundation classes", "spread"), rows, "wide")),
    )


def _angles(found: Found, classes: Sequence[str]) -> str:
    """By how much the mapper turns the latents of each target class."""
    names = classes if len(found["angle"]) == len(classes) else ["all"]
    at = charts.ticks(0, max(found["angle"].max().item(), 1.0))
    rows = []
    for name, angles in zip(names, found["angle"].tolist(), strict=True):
        label = f"{name}: median {angles[2]:.0f} degrees, 5 to 95 % of the latents {angles[0]:.0f} to {angles[4]:.0f}"
        drawing = charts.spread(angles, at, "s0", label)
        rows += [f'<tr>{_row(name)}<td class="chart">{drawing}</td><td>{angles[2]:.0f}°</td></tr>']
    rows += [f'<tr class="axis"><td></td><td class="chart">{charts.scale(at, unit=1)}</td><td></td></tr>']
    note = (
        "The angle between a latent as drawn and as the mapper hands it on: 0° where it is left alone, near 90° where "
        "nothing of it is left. The dot is the median, the bar half of the latents, the line 90 % of them."
    )
    return _figure(
        "How far latents move",
        note,
        _folded(len(names), _table(("class", "angle, degrees", "median"), rows, "wide angles")),
    )


def _pulls(group: Group) -> str:
    """The norms of the outer problem's two gradients at the images, by step."""
    members = group.runs or group.pending
    curves = {title: points for name, title in PULLS.items() if (points := curve(members, name))}
    colours = {title: charts.series(i) for i, title in enumerate(PULLS.values())}
    if not curves:
        return ""
    keys = "".join(f"<li>{key(colours[title])}{title}</li>" for title in curves)
    note = "The norm of each outer term's gradient at the synthetic images, mean over the runs."
    plot = charts.lines("norm of the gradient", curves, colours)
    return _figure("What pulls the mapper", note, f'<ul class="keys">{keys}</ul><div class="plots">{plot}</div>')


def _influence(found: Found, classes: Sequence[str]) -> str:
    """The synthetic images that lower and that raise the validation loss most, each by its nearest labeled image."""
    order, effect = found["effect"].argsort().tolist(), found["effect"].tolist()
    power = math.floor(math.log10(max(*map(abs, effect), 1e-12)))
    sides = {
        "They lower the validation loss most": [i for i in order[:SHOWN] if effect[i] < 0],
        "They raise it most": [i for i in order[: -SHOWN - 1 : -1] if effect[i] > 0],
    }
    head = ("synthetic", "nearest labeled", f"effect, 10<sup>{power}</sup>")
    tables = "".join(
        f"<figure><figcaption>{caption}</figcaption>"
        + _table(head, [_influential(found, classes, i, 10.0**power) for i in rows], "beside")
        + "</figure>"
        for caption, rows in sides.items()
        if rows
    )
    note = (
        f"Of {len(effect)} images: the effect on the validation loss, to first order, of one inner step along the loss "
        "of this image alone; below zero it helps. With the standard error over random views: an effect of one or two "
        "errors is none that could be told. Beside each image the labeled one with the nearest features."
    )
    return _figure("Images of the largest influence", note, f'<div class="pairs">{tables}</div>')


def _influential(found: Found, classes: Sequence[str], i: int, unit: float) -> str:
    asked = f"asked for {classes[int(found['asked'][i])]}" if "asked" in found else ""
    label = classes[label] if (label := int(found["neighbour_classes"][i])) < len(classes) else str(label)
    image = _tile(found["images"][i], ", ".join(filter(None, ("synthetic image", asked))))
    neighbour = _tile(found["neighbours"][i], f"labeled image of {label}")
    value, error = (found[name][i].item() / unit for name in ("effect", "error"))
    return (
        f"<tr><td>{image}<small>{escape(asked)}</small></td>"
        f"<td>{neighbour}<small>{escape(label)}</small></td>"
        f"<td>{_signed(value)} <small>± {error:.2f}</small></td></tr>"
    )


def _closeness(found: Found) -> str:
    """The share of synthetic images nearer to a labeled one than labeled ones are to one another."""
    rows = []
    for space in ("pixels", "features"):
        among = found[f"{space}/labeled"]
        for which, bound in (("smallest", among.amin()), ("median", among.quantile(0.5))):
            shares = ((found[f"{space}/{name}"] < bound).double().mean().item() for name in ("mapped", "uniform"))
            cells = "".join(f"<td>{_percent(share)}</td>" for share in shares)
            rows += [f"<tr>{_row(f'{space}, {which}')}<td>{bound:.3f}</td>{cells}</tr>"]
    note = (
        f"The share of synthetic images whose distance to the nearest of {len(among)} labeled images is below the "
        "smallest, or the median, of the distances between a labeled image and the nearest other one. Images drawn as "
        "the labeled ones were would be below the median about half of the time; copies are below the smallest. The "
        "distance is the root mean square difference, per pixel of range 1 or per feature of the classifier."
    )
    head = ("nearer than the", "distance", "mapped", "uniform")
    return _figure("Are labeled images copied?", note, _table(head, rows))


def _figure(title: str, note: str, content: str) -> str:
    return f'<div class="finding"><h3>{title}</h3><p class="note">{note}</p>{content}</div>'


def _table(head: Iterable[str], rows: Sequence[str], kind: str = "") -> str:
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    table = f'<table class="{kind}"><thead><tr>{names}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _folded(classes: int, table: str) -> str:
    return fold(f"{classes} classes", table) if classes > LONG else table


def _row(name: str) -> str:
    return f'<th scope="row">{escape(name)}</th>'


def _tile(image: Tensor, alt: str) -> str:
    source = charts.montage(image[None].float().numpy() / 255)
    return f'<img class="tile" src="{source}" alt="{escape(alt)}">'


def _percent(share: float) -> str:
    return f"{100 * share:.{1 if share < 0.1 else 0}f}\u00a0%"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")
