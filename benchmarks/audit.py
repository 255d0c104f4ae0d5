"""Audits of pools whose truth is known, by generators that no audit ever saw: does the interval hold it?

Each pool is a mix (`semisynth mix`) of digits and the samples of one generator, with ten labeled digits of each class.
An audit is given these and the pool, and no synthetic image. Beside its ranking stands that of a logistic regression on
histogram and spectrum (`separable.features`), fitted to tell the labeled images from the pool, fold by fold.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semisynth import environment
from semisynth.data import datasets, parquet
from semisynth.recipes import audit, bench, mix
from semisynth.recipes.cells import numbers
from semisynth.separable import features, rank_auroc
from semisynth.statistics import mean

RESULTS = Path(__file__).parent / "results" / "audit"
GENERATORS = ("digits-gan", "digits-vae")
SHARES = (0.0, 0.1, 0.4, 0.8)
COVERED, FALSE = 0.9, 0.03  # targets: of the intervals that hold the truth; mean estimate where nothing is synthetic
FOLDS = 5


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    environment.commit()
    shares = [float(share) for share in given.shares.split(",")]
    lines = []
    for seed in numbers(given.seeds, "--seeds"):
        for share in shares:
            for generator in GENERATORS:
                lines.append(cell(generator, share, seed))
                print(json.dumps(lines[-1]), flush=True)
    rows = summary(lines)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (given.out / "table.md").write_text(table(rows, command(sys.argv[1:])))
    print(table(rows))
    if given.json:
        print(json.dumps({"name": "audit", "rows": rows}))


def command(arguments: Sequence[str]) -> str:
    """What was typed, but for where the results go, which is a path of one machine."""
    kept, skip = ["python", "benchmarks/audit.py"], False
    for argument in arguments:
        kept += [] if skip or argument.split("=")[0] == "--out" else [argument]
        skip = argument == "--out"
    return shlex.join(kept)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="100-109")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the directory of results.jsonl and table.md")
    return parser.parse_args()


def cell(generator: str, share: float, seed: int) -> dict[str, Any]:
    """One mix and its audit, both by their commands' recipes."""
    with tempfile.TemporaryDirectory() as folder:
        options = mix.Mix("digits-pool", [generator], share, labeled=10, through="8x8:17", seed=seed)
        made = mix.mix(options, Path(folder) / "mix")
        path = Path(folder) / "mix" / mix.POOL
        began = time.perf_counter()
        found = audit.run(audit.Audit(str(path), str(path), seed=seed), Path(folder) / "audit")
        seconds = time.perf_counter() - began
        synthetic, order = truth(Path(folder) / "mix" / mix.HIDDEN, Path(folder) / "audit" / audit.RANKING)
        both = 0 < synthetic.sum() < len(synthetic)
        return {
            "method": "audit",
            "init": "none",
            "labels_per_class": options.labeled,
            "seed": seed,
            "share": share,
            "accuracy": None,
            "generator": generator,
            "true": made["share"],
            "estimate": found["share"],
            "interval": found["interval"],
            "p": found["p"],
            "auroc": rank_auroc(-order, synthetic) if both else None,
            "baseline": rank_auroc(baseline(path), synthetic) if both else None,
            "seconds": round(seconds, 2),
            "steps": 0,
            "commit": environment.commit(),
        }


def truth(hidden: Path, ranking: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of each unlabeled image, in the order of the pool, whether it is synthetic and its rank in the audit."""
    told = {int(row[0] or 0): row[1] for _, row in parquet.Parquet.open(str(hidden)).rows(["row", "source"])}
    ranks = {int(row[0] or 0): int(row[1] or 0) for _, row in parquet.Parquet.open(str(ranking)).rows(["row", "rank"])}
    assert list(told) == sorted(ranks), "the ranking is of other images"
    return np.array([source != mix.REAL for source in told.values()]), np.array([ranks[row] for row in told])


def baseline(path: Path) -> np.ndarray[Any, Any]:
    """Of each unlabeled image the log odds, out of fold, that it is of the pool and not labeled."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = datasets.load(str(path))
    assert data.unlabeled is not None
    both = [torch.cat(list(images.batches(1000))) for images in (data.pool, data.unlabeled)]
    x, flags = features(torch.cat(both)), np.repeat([0, 1], [len(images) for images in both])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    found = cross_val_predict(model, x, flags, cv=FOLDS, method="decision_function")
    return np.asarray(found[len(both[0]) :])


def summary(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each generator and share the means over seeds, and how many intervals hold the truth."""
    rows = []
    for generator, share in dict.fromkeys((line["generator"], line["share"]) for line in lines):
        of = [line for line in lines if (line["generator"], line["share"]) == (generator, share)]
        held = sum(line["interval"][0] <= line["true"] <= line["interval"][1] for line in of)
        row = {"generator": generator, "share": share, "n": len(of), "covered": held}
        row |= {name: mean([line[name] for line in of]) for name in ("estimate", "seconds")}
        row |= {end: mean([line["interval"][i] for line in of]) for i, end in enumerate(("low", "high"))}
        row |= {"found": sum(line["estimate"] > 0 for line in of)}
        row |= {
            name: None if of[0][name] is None else mean([line[name] for line in of]) for name in ("auroc", "baseline")
        }
        reached = held >= COVERED * len(of) and (share > 0 or row["estimate"] < FALSE)
        rows.append({**row, "reached": bool(reached)})
    return rows


def table(rows: Sequence[Mapping[str, Any]], command: str = "") -> str:
    """The rows in Markdown, with what they are and the command."""
    head = (
        "generator, share %",
        "truth in interval",
        "found",
        "mean estimate, %",
        "mean interval, %",
        "AUROC",
        "baseline",
        "s",
    )
    cells = []
    for row in rows:
        curves = ["–" if row[name] is None else f"{row[name]:.3f}" for name in ("auroc", "baseline")]
        found = [
            f"{row['generator']}, {100 * row['share']:.0f}",
            f"{row['covered']} of {row['n']}",
            f"{row['found']} of {row['n']}",
            f"{100 * row['estimate']:.1f}",
            f"{100 * row['low']:.0f} to {100 * row['high']:.0f}",
            *curves,
            f"{row['seconds']:.1f}",
        ]
        cells.append(found)
    text = bench.markdown(head, cells) + "\n"
    if not command:
        return text
    notes = (
        "Ten labeled digits of each class; the share is of the pool, whose 557 real images are the same at every share "
        "of a seed. Found: how often the test refused that the pool is all real, without which the estimate is 0. "
        "AUROC: how well synthetic images are ranked above real ones; the baseline is a logistic regression on "
        "histogram and spectrum that learned to tell the labeled images from the pool. Intervals are of 95 %, for "
        "pools whose labeled images stand for the real ones and whose synthetic images are of one generator.\n\n"
        f"Commit {environment.commit()}, on {environment.describe(torch.device('cpu'))['device']}. Made by `{command}`."
    )
    return f"# Audit\n\n{text}\n{notes}\n"


if __name__ == "__main__":
    main()
