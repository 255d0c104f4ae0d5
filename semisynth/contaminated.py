"""What a report shows of runs that were scored against what is hidden of their pools (`contamination`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semisynth.contamination import NAME, QUARTERS
from semisynth.errors import UserError
from semisynth.runs import Group
from semisynth.sections import Colours, fold, section, short, table
from semisynth.statistics import mean
from semisynth.weights import read_json

SOURCE = {
    "images": "images",
    "probability": "mean probability",
    "taken": "taken for synthetic",
    "queued": "ever queued",
    "accuracy": "predicted as their class",
}


def contamination(groups: Sequence[Group], colours: Colours) -> str:
    """Detector, share, queue and sources of each setting that has scored runs; folded where there are several."""
    blocks = {group.label: block for group in groups if (block := _block(group))}
    content = "".join(fold(*block) for block in blocks.items()) if len(blocks) > 1 else "".join(blocks.values())
    note = (
        "What the detector of synthetic images found in the unlabeled pool, scored after the training against the "
        "hidden table of the mix. The area under the curve is how often it holds a synthetic image for more suspicious "
        "than a real one. Means over the runs that were scored."
    )
    return section("Synthetic images in the pool", note, content)


def _block(group: Group) -> str:
    files = [run.path / NAME for run in group.runs if (run.path / NAME).exists()]
    if not files:
        return ""
    scored = [read_json(file) for file in files]
    try:
        return _detector(scored) + _sources(scored) + _queue(scored)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{files[0].parent}: {NAME} is not as evaluate --hidden wrote it: delete it, or score the run again."
        ) from error


def _detector(scored: Sequence[dict[str, Any]]) -> str:
    rows = {
        "area under the curve": [one["auroc"] for one in scored],
        "calibration error": [one["calibration_error"] for one in scored],
        "share, estimated": [one["share"]["estimated"] for one in scored],
        "share, true": [one["share"]["true"] for one in scored],
    }
    return table(("detector", "mean"), [(name, [_mean(values)]) for name, values in rows.items()])


def _sources(scored: Sequence[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for one in scored for name in one["sources"])
    rows = []
    for name in names:
        of = [one["sources"][name] for one in scored if name in one["sources"]]
        rows += [(name, [_mean([one[key] for one in of]) for key in SOURCE])]
    return table(("source", *SOURCE.values()), rows)


def _queue(scored: Sequence[dict[str, Any]]) -> str:
    """Purity by class over time."""
    classes = dict.fromkeys(name for one in scored for name in one["purity"])
    columns = range(QUARTERS + 1)
    rows = [(name, [_mean([one["purity"][name][i] for one in scored]) for i in columns]) for name in classes]
    rows += [("all", [_mean([one["purity"][name][i] for one in scored for name in classes]) for i in columns])]
    head = [f"entered in quarter {i + 1}" for i in range(QUARTERS)]
    return table(("purity of the queue", *head, "at the end"), rows)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return short(mean(known)) if known else "–"
