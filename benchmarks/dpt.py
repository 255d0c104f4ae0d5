"""DPT on digits: is a classifier better for the diffusion model that it taught, and that for the labels it was given?

Two results. `dpt-classifier`: the first classifier, and the second one with K synthetic images of each class, in both
arms, beside the same without any (K = 0), with images of a diffusion model that knew all labels (oracle), with the
real images themselves under the labels that the first classifier gave them (self-training), and with images of a
difficulty s. `dpt-generator`: the images of diffusion models that learned from such labels, from the labeled images
alone, from all images without labels, and from all true labels.

Stages: tune, bench, table (from what is finished), all. Each may be stopped at any time: the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comparison import HERE, README, Column, between, contrast
from PIL import Image

from semisynth import clusters, environment, weights
from semisynth.data import datasets
from semisynth.data.datasets import Images
from semisynth.errors import UserError
from semisynth.evaluate import classify, logits
from semisynth.models import Classifier
from semisynth.recipes import bench, cells, dpt, restore, single
from semisynth.recipes.config import Config
from semisynth.recipes.quality import HELD_OUT, compare
from semisynth.recipes.tune import Search
from semisynth.statistics import paired, t_interval

COMMAND = "python benchmarks/dpt.py"
PAGE, SHEET = (HERE.parent / "docs" / name for name in ("dpt.md", "dpt-samples.png"))
CLASSIFIER, GENERATOR = (HERE / "results" / name for name in ("dpt-classifier", "dpt-generator"))
BASE = dpt.DPT(init="foundation", steps=300, diffusion_steps=4000, guidance=1.5, device="cpu", diffusion={"patch": 8})
ROWS: Mapping[str, Mapping[str, Any]] = {
    "stage1": {},
    "k0": {"images_per_class": 0},
    "k12": {"images_per_class": 12},
    "k128": {},
    "k12-faithful": {"images_per_class": 12, "arm": "faithful"},
    "k128-faithful": {"arm": "faithful"},
    "oracle": {"labels": "true"},
    "self-training": {"teach": "real"},
    "labeled-only": {"labels": "labeled"},
    "unconditional": {"labels": "none"},
    "s0.1": {"difficulty": 0.1},
    "s0.5": {"difficulty": 0.5},
    "s0.9": {"difficulty": 0.9},
}
MAIN = tuple(ROWS)[:8]
DIFFICULTIES = ("k128", "s0.1", "s0.5", "s0.9")
SHORT = ("k0", "k128", "k128-faithful", "self-training", "oracle")
GENERATORS = {
    "k128": "predicted labels",
    "k128-faithful": "predicted, faithful",
    "labeled-only": "labeled images alone",
    "unconditional": "no labels",
    "oracle": "true labels",
}
PLAN = (  # first classifier, rows, labels per class, seeds; in the order in which they run
    ("linear-probe", MAIN, (1, 2), "100-109"),
    ("linear-probe", MAIN, (4,), "100-104"),
    ("linear-probe", ("labeled-only", "unconditional"), (1, 2), "100-104"),
    ("linear-probe", ("s0.1", "s0.5", "s0.9"), (1, 2), "100-104"),
    ("fixmatch", ("stage1", "k0", "k12", "k128", "oracle", "self-training"), (1, 2), "100-109"),
    ("linear-probe", ("s0.1", "s0.5", "s0.9"), (1, 2), "105-109"),
)


class Cell(NamedTuple):
    """A row with a number of labels and a seed, and what it took to get there."""

    stage1: str
    row: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.stage1} {self.row}"

    def path(self, work: Path) -> Path:
        return work / "cells" / self.stage1 / self.row / f"{self.labels}-{self.seed}.json"

    def options(self, tuned: Mapping[str, Any]) -> dpt.DPT:
        given = {"labels_per_class": self.labels, "seed": self.seed, "stage1": self.stage1, "classifier": tuned}
        return replace(BASE, **given, **ROWS[self.row])


def plan() -> Iterator[list[Cell]]:
    """Cells that are run one after the other, as they share stages: those of a seed."""
    for stage1, rows, labels, seeds in PLAN:
        for seed in cells.numbers(seeds, "seeds"):
            yield [Cell(stage1, row, count, seed) for count in labels for row in rows]


def main() -> None:
    given = parse()
    try:
        if given.stage in ("tune", "all"):
            for stage1 in dict.fromkeys(stage1 for stage1, *_ in PLAN):
                tune(search(stage1, given.work), given.workers)
        if given.stage in ("bench", "all"):
            run(given.work, given.workers)
        if given.stage in ("table", "bench", "all"):
            write(given.work)
        if given.json:
            print(json.dumps({"name": "dpt", "stage": given.stage, "results": [str(CLASSIFIER), str(GENERATOR)]}))
    except UserError as error:
        sys.exit(f"dpt: error: {error}")
    except KeyboardInterrupt:
        sys.exit("dpt: interrupted; the same command goes on.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=("tune", "bench", "table", "all"), default="all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs") / "dpt", help="where the runs are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


def search(stage1: str, work: Path) -> Search:
    """Of the options of both classifiers, by the accuracy of the first."""
    content = {"init": BASE.init, "steps": BASE.steps, "labels_per_class": 2, "method": {"name": stage1}}
    return Search(Config.of(content), work / "tune" / stage1, 16, (0, 1), command=COMMAND)


def tune(asked: Search, workers: int) -> None:
    if asked.finished() is None:
        asked.claim()
        asked.conclude(cells.run(asked.cells(), workers, f"tune {asked.config.method}"))


def tuned(stage1: str, work: Path) -> dict[str, Any]:
    found = search(stage1, work).finished()
    if found is None:
        raise UserError(f"the search of '{stage1}' is not finished: run --stage tune.")
    options: dict[str, Any] = found["trials"][found["winner"]]["options"]
    return options


def run(work: Path, workers: int) -> None:
    """All cells that are missing."""
    environment.commit()
    best = {stage1: tuned(stage1, work) for stage1 in dict.fromkeys(stage1 for stage1, *_ in PLAN)}
    waiting = [[cell for cell in group if not cell.path(work).exists()] for group in plan()]
    with clusters.pool(workers, len(waiting), BASE.device) as pool:
        futures = {
            pool.submit(dpt.several, [cell.options(best[cell.stage1]) for cell in group], work / "stages"): group
            for group in waiting
            if group
        }
        for done, future in enumerate(as_completed(futures), 1):
            for cell, told in zip(futures[future], future.result(), strict=True):
                cell.path(work).parent.mkdir(parents=True, exist_ok=True)
                weights.write_json(cell.path(work), told["stages"])
            print(f"dpt: {done}/{len(futures)} groups", flush=True)


# ---- results ---------------------------------------------------------------------------------------------------------


def finished(work: Path) -> dict[Cell, dict[str, Any]]:
    """What was told of the stages of each cell that is there."""
    there = dict.fromkeys(cell for group in plan() for cell in group if cell.path(work).exists())
    return {cell: weights.read_json(cell.path(work)) for cell in there}


def line(cell: Cell, stages: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the classifier's results."""
    taken = {"stage1": ["classifier-0"], "k0": ["classifier-1"]}.get(cell.row, list(stages))
    fits = [read(stages[name]) for name in taken if name.startswith(("classifier", "diffusion"))]
    result = fits[-1]
    return {
        **common(cell),
        "accuracy": stages[taken[-1]]["test"],
        "validation_accuracy": stages[taken[-1]]["validation"],
        "seconds": round(sum(fit["seconds"] for fit in fits), 2),
        "steps": result["steps"],
        "commit": result["environment"]["commit"],
        "device": result["environment"]["device"],
    }


def read(stage: Mapping[str, Any]) -> dict[str, Any]:
    """What a fit wrote."""
    found: dict[str, Any] = weights.read_json(Path(stage["path"]) / "result.json")
    return found


def common(cell: Cell) -> dict[str, Any]:
    names = {"method": cell.name, "init": BASE.init, "labels_per_class": cell.labels, "seed": cell.seed}
    return {**names, "share": None}


def measured(work: Path, found: Mapping[Cell, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The generator's results: by the features of a classifier that knows all labels of the images for training."""
    path, device = work / "reader", torch.device("cpu")
    content = {"init": BASE.init, "steps": 1500, "lr": 0.05, "device": "cpu", "method": {"name": "supervised"}}
    single.fit(Config.of(content), path, name="reader")
    _, model, classes, _ = restore.classifier(path, device)
    assert isinstance(model, Classifier)
    data, lines = datasets.load("digits"), []
    for cell, stages in found.items():
        if cell.row not in GENERATORS or cell.seed >= 105 or cell.labels == 4 or cell.stage1 != "linear-probe":
            continue
        made = images_of(cell, stages, work)
        measures = compare(model, data.pool, {"made": made, HELD_OUT: data.test}, device)["measures"]
        result = read(stages["diffusion-1"])
        right = None if cell.row == "unconditional" else classify(model, made, classes)["accuracy"]
        told = {**common(cell), "accuracy": right, **measures["made"]}
        told["held_out"] = {"accuracy": classify(model, data.test, classes)["accuracy"], **measures[HELD_OUT]}
        told |= {"seconds": round(result["seconds"], 2), "steps": result["steps"]}
        lines.append({**told, **{key: result["environment"][key] for key in ("commit", "device")}})
    return lines


def images_of(cell: Cell, stages: Mapping[str, Any], work: Path) -> Images:
    return dpt.Work(cell.options({}), work / "stages").made(dpt.Stage(Path(stages["images-1"]["path"]), ""))


def labels_right(cell: Cell, stages: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """The share of the labels that the first classifier gave to unlabeled images that are right."""
    if ROWS[cell.row].get("labels", "predicted") != "predicted" or cell.row == "k0" or "labels-1" not in stages:
        return {}
    told = dpt.Work(cell.options({}), work / "stages").told("labels-1", dpt.Stage(Path(stages["labels-1"]["path"]), ""))
    return {"pseudo_labels": told["accuracy"]}


def difficulty(cell: Cell, stages: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """How hard the images are for the classifier that told the diffusion model so; of rows that ask for it."""
    if cell.row not in DIFFICULTIES or cell.stage1 != "linear-probe":
        return {}
    _, model, names, _ = restore.classifier(Path(stages["classifier-0"]["path"]), torch.device("cpu"))
    made = images_of(cell, stages, work)
    p = logits(model, made, names).softmax(1).gather(1, made.y[:, None])
    return {"difficulty": 1 - p.mean().item()}


def write(work: Path) -> None:
    """Results, tables and the README's figures, from what is finished."""
    found = finished(work)
    missing = len({cell for group in plan() for cell in group}) - len(found)
    note = f"**Partial: {missing} cells are missing.**" if missing else ""
    lines = [
        line(cell, stages) | labels_right(cell, stages, work) | difficulty(cell, stages, work)
        for cell, stages in found.items()
        if cell.row != "unconditional"
    ]
    searches = [{"row": name, **search_of(name, work)} for name in dict.fromkeys(stage1 for stage1, *_ in PLAN)]
    texts = []
    for stage1 in dict.fromkeys(stage1 for stage1, *_ in PLAN):
        own = [found for found in lines if found["method"].startswith(f"{stage1} ")]
        texts.append(bench.table(own, COMMAND, (f"{stage1} k0",), (f"{stage1} k128",)) if own else "")
    settings = (
        f"- both classifiers with options tuned for the first: 16 configurations, seeds 0-1, 2 labels per class, "
        f"validation split (tuning.json); {BASE.diffusion_steps} steps of diffusion, patches of 8, guidance "
        f"{BASE.guidance}: chosen by the images of seed 0\n"
    )
    CLASSIFIER.mkdir(parents=True, exist_ok=True)
    bench.write(lines, "\n".join(texts) + settings + (f"- {note}\n" if note else ""), CLASSIFIER)
    weights.write_json(CLASSIFIER / "tuning.json", {"command": COMMAND, "searches": searches})
    images = measured(work, found)
    GENERATOR.mkdir(parents=True, exist_ok=True)
    text = f"# Quality of the images\n\n{quality_table(images)}\n\n- command: `{COMMAND}`\n"
    bench.write(images, text + (f"- {note}\n" if note else ""), GENERATOR)
    fill(lines, images, note)
    sheet = Image.open(shown(found))
    sheet.resize((3 * sheet.width, 3 * sheet.height), Image.Resampling.NEAREST).save(SHEET, optimize=True)


def search_of(stage1: str, work: Path) -> dict[str, Any]:
    found = search(stage1, work).finished() or {}
    kept = {name: found[name] for name in ("budget", "ranges", "winner")}
    return {**kept, "options": tuned(stage1, work)}


def fill(lines: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """The tables of the page, and a short one in the README."""
    told = f"Made by `{COMMAND}`. {note}".strip()
    between(PAGE, "accuracies", f"{summary(lines)}\n\n{told}")
    between(PAGE, "images", f"{quality_table(images)}\n\n{told}")
    between(PAGE, "difficulty", f"{difficulty_table(lines)}\n\n{told}")
    short = [f"{stage1} {row}" for stage1 in ("linear-probe", "fixmatch") for row in SHORT]
    between(README, "dpt", f"{summary([found for found in lines if found['method'] in short])}\n\n{told}")


def shown(found: Mapping[Cell, Mapping[str, Any]]) -> Path:
    """What the images of the first seed look like, of which each class had two labels."""
    stages = found[Cell("linear-probe", "k128", 2, 100)]
    return Path(stages["quality-1"]["path"]) / dpt.SHEET


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy of each row, and what it is above K = 0, paired by seed."""
    columns = [Column(BASE.init, labels) for labels in (1, 2, 4)]
    table = []
    for name in dict.fromkeys(found["method"] for found in lines):
        row = [name]
        for column in columns:
            values = [
                100 * found["accuracy"]
                for found in lines
                if (found["method"], found["labels_per_class"]) == (name, column.labels)
            ]
            over = contrast(lines, name, f"{name.split(' ')[0]} k0", column)
            row.append(f"{sum(values) / len(values):.1f} ({over})" if values else "–")
        table.append(row)
    return bench.markdown(["classifier", *(f"{column.labels} per class (minus K = 0)" for column in columns)], table)


def difficulty_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """How hard the images are that were asked for by their difficulty, and what they are worth."""
    table = []
    for labels, row in itertools.product((1, 2), DIFFICULTIES):
        name, column = f"linear-probe {row}", Column(BASE.init, labels)
        own = [found for found in lines if (found["method"], found["labels_per_class"]) == (name, labels)]
        if len(own) > 1:
            asked = "not told" if row == "k128" else row[1:]
            measures = [_mean([found[what] for found in own]) for what in ("difficulty", "accuracy")]
            table.append([str(labels), asked, *measures, contrast(lines, name, "linear-probe k128", column)])
    return bench.markdown(["labels per class", "s", "difficulty found", "accuracy", "minus not told"], table)


def quality_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Each measure's mean over the seeds and half the width of its t interval; FID's difference too."""
    names = {"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "accuracy": "class accuracy"}
    table = []
    for labels, (row, told) in itertools.product((1, 2), GENERATORS.items()):
        own, first = (of_row(lines, f"linear-probe {name}", labels) for name in (row, "k128"))
        if len(own) > 1:
            both = sorted(own.keys() & first.keys())
            over = paired([own[seed]["fid"] for seed in both], [first[seed]["fid"] for seed in both])
            above = "–" if row == "k128" else f"{over.mean:+.2f} [{over.t[0]:+.2f}, {over.t[1]:+.2f}]"
            measures = [_mean([found[name] for found in own.values()]) for name in names]
            table.append([str(labels), told, str(len(own)), *measures, above])
    held_out = next((found["held_out"] for found in lines), {})
    table += [["–", "held-out real images", "–", *(f"{held_out[name]:.3f}" for name in names), "–"]] if held_out else []
    head = ["labels per class", "diffusion learned from", "seeds", *names.values(), "FID minus predicted labels'"]
    return bench.markdown(head, table)


def of_row(lines: Sequence[Mapping[str, Any]], method: str, labels: int) -> dict[int, Mapping[str, Any]]:
    """By seed."""
    return {found["seed"]: found for found in lines if (found["method"], found["labels_per_class"]) == (method, labels)}


def _mean(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return "–"
    low, high = t_interval(numbers)
    return f"{(low + high) / 2:.3f} ± {(high - low) / 2:.3f}"


if __name__ == "__main__":
    main()
