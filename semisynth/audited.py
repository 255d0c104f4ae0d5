"""The page of an audit: its figures, the most and the least suspicious images, and what it cannot know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from semisynth import charts
from semisynth.report import HEAD
from semisynth.sections import section, table

SHOWN = 60  # images of either end
ENDS = ("most", "least")
CONDITION = (
    "The labeled images must stand for the real ones of the pool: the same classes in about the same proportions, by "
    "the same cameras or writers, resized and stored in the same way. Where they do not, what differs is taken for "
    "synthetic, and neither estimate nor interval tells of synthetic images."
)
LIMITS = (
    "Real digits by other writers are found to be synthetic in part. So are, now and then, pools that have half as "
    "many images of each class as of the one before: images are compared within the class of the nearest labeled one, "
    "which may be wrong.",
    "The fitted model knows one way in which synthetic images differ. Where two generators differ in opposite ways, "
    "the images of one are taken for real, and there are more synthetic ones than the interval says.",
    "Images are compared by two plain features, how near their nearest neighbours are and how sharp they are. A "
    "generator whose images cannot be told from real ones by these is not seen, and one that made a small part of the "
    "pool hardly ever.",
    "A suspicion is a probability under the fitted model. It ranks; it proves nothing of a single image.",
    "Copies within the pool count once, and copies of labeled images are taken for real.",
)
Sheet = Sequence[tuple[str, float, Tensor]]


def assumption(detectable: float) -> str:
    """What bounds the share from above, in words."""
    return (
        "The upper end of the interval assumes that synthetic images all differ from real ones in one way, and that "
        "the two features that are compared tell them apart with an area under the curve of at least "
        f"{detectable:g}. Of others there may be more."
    )


def told(record: Mapping[str, Any]) -> str:
    """The finding in a sentence or two."""
    low, high = (100 * end for end in record["interval"])
    images, interval = f"{record['images']['pool']:,} images", f"95\u00a0% interval {low:.0f} to {high:.0f}\u00a0%"
    if record["share"] == 0:
        return f"No synthetic image was found with any certainty among {images} ({interval})."
    return (
        f"About {100 * record['share']:.0f}\u00a0% of {images} differ from the labeled ones as synthetic images would "
        f"({interval}). They are synthetic, or of other classes, cameras, writers or processing."
    )


def lines(record: Mapping[str, Any]) -> list[str]:
    """What the terminal shows: the finding, on what it rests, and what was done to the images."""
    return [told(record), *([CONDITION] if record["share"] else []), record["assumption"], *record["notes"]]


def page(record: Mapping[str, Any], sheets: Mapping[str, Sheet]) -> str:
    """The page as HTML. sheets: of each of `ENDS` the name, the suspicion and the pixels (c, h, w) uint8 of images."""
    title = escape(f"Audit of {Path(record['options']['pool']).name}")
    header = f'<p class="eyebrow">semisynth audit</p><h1>{title}</h1><p class="lead">{escape(told(record))}</p>'
    note = {
        "most": "The images that the fitted model holds for synthetic first, with its probability.",
        "least": "And those that it holds for synthetic last.",
    }
    if record["share"] == 0:
        note["most"] = "As nothing was found, their suspicion is 0; these would come first."
    body = [
        f"<header>{header}</header>",
        section("Share that differs", f"{escape(CONDITION)} {escape(record['assumption'])}", _figures(record)),
        *(section(f"{which.capitalize()} suspicious", note[which], _tiles(sheets[which])) for which in ENDS),
        section("What this cannot know", "", "".join(f"<p>{escape(limit)}</p>" for limit in LIMITS)),
        section("Setup", "What it takes to repeat the audit.", _setup(record)),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    head = f"{HEAD}<title>{title}</title><style>\n{style}</style></head>"
    return f"{head}\n<body><main>{''.join(body)}</main></body></html>\n"


def _figures(record: Mapping[str, Any]) -> str:
    at = [0.0, 0.25, 0.5, 0.75, 1.0]
    drawing = charts.strip([], record["share"], record["interval"], at, charts.series(0)) + charts.scale(at)
    low, high = record["interval"]
    counts = record["images"]
    rows = [
        ("estimated share, %", f"{100 * record['share']:.0f}"),
        ("95 % interval", f"{100 * low:.0f} to {100 * high:.0f}"),
        ("p of the test that all are alike", f"{record['p']:.3f}"),
        ("labeled images", f"{counts['labeled']:,}"),
        ("images of the pool", f"{counts['pool']:,}"),
        ("copies besides", f"{counts['copies']:,}"),
    ]
    return f"<figure>{drawing}</figure>" + table(("", "found"), [(name, [cell]) for name, cell in rows])


def _tiles(sheet: Sheet) -> str:
    tiles = []
    for name, suspicion, pixels in sheet:
        told = f"{100 * suspicion:.0f}\u00a0%"
        alt = escape(f"{name}, suspicion {told}")
        source = charts.montage(pixels[None].numpy() / 255)
        tiles += [f'<li><img class="tile" src="{source}" alt="{alt}" title="{alt}"><small>{told}</small></li>']
    return f'<ul class="tiles">{"".join(tiles)}</ul>'


def _setup(record: Mapping[str, Any]) -> str:
    options = {name: value for name, value in record["options"].items() if name != "reading"}
    shown = {
        **options,
        **record["options"]["reading"],
        **{f"hash of the {k} set": v for k, v in record["data"].items()},
    }
    shown |= {f"note {i + 1}": note for i, note in enumerate(record["notes"])}
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(v))}</dd>" for name, v in shown.items()) + "</dl>"
