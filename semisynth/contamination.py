"""What a run of RSMatch found of the synthetic images in its pool, scored against what only the mix knows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semisynth.data.parquet import Parquet
from semisynth.errors import UserError
from semisynth.evaluate import calibration_error, logits
from semisynth.mixed import HIDDEN, POOL, REAL
from semisynth.recipes import restore
from semisynth.recipes.config import Config
from semisynth.separable import rank_auroc
from semisynth.weights import write_json

NAME = "contamination.json"
QUARTERS = 4  # of the training, for each of which the queue's purity is told by class


def score(run: Path, hidden: Path, device: torch.device) -> dict[str, Any]:
    """How well the detector of a finished run told real from synthetic, by the hidden table of its mix; kept beside it.

    share: of the images that were seen, "true" and "estimated", None if the queue stayed empty, as nothing is estimated
    then; auroc: of the probabilities, None where all images are of one kind; calibration_error: of the probabilities;
    purity: the share of synthetic ones among the images that entered the queue, by class, None where none did, "last"
    of those that are in it at the end; sources: of each how many "images" there are, their mean "probability", the
    share "taken" for synthetic, the number "queued" at any time, and the "accuracy" of the classifier on those that
    show a class of the data, None without any. Raises `UserError` for another method, and for another pool's table.
    """
    config, model, data = restore.trained(run, device)
    memory = _memory(run, config)
    table = _hidden(hidden, config)
    assert data.unlabeled is not None, "a mix has unlabeled images"
    images, suspicion = data.unlabeled, memory["suspicion"]
    first = len(suspicion) - len(images)  # before them come images whose labels were not drawn, all of them real
    sources = [REAL] * first + [source for source, _ in table]
    synthetic = torch.tensor([source != REAL for source in sources])
    seen = suspicion >= 0
    queued, filled = (memory["entered"] >= 0).any(0), bool((memory["index"] >= 0).any())
    taken = suspicion >= (0.5 if filled or not config.options["queue"] else math.inf)
    predicted = logits(model, images, data.classes, device=device).argmax(1)
    right = torch.tensor([data.classes[c] == name for c, (_, name) in zip(predicted.tolist(), table, strict=True)])
    known = torch.tensor([name in data.classes for _, name in table])
    found = {
        "share": {
            "true": synthetic[seen].double().mean().item(),
            "estimated": memory["share"].item() if filled else None,
        },
        "auroc": _auroc(suspicion[seen], synthetic[seen]),
        "calibration_error": calibration_error(suspicion[seen].double(), synthetic[seen]),
        "purity": _purity(memory, synthetic, data.classes),
        "sources": {
            name: {
                "images": int(of.sum()),
                "probability": _mean(suspicion[of & seen]),
                "taken": _mean(taken[of & seen]),
                "queued": int((of & queued).sum()),
                "accuracy": _mean(right[of[first:] & known]),
            }
            for name in dict.fromkeys(sources)
            for of in [torch.tensor([source == name for source in sources])]
        },
    }
    write_json(run / NAME, found)
    return found


def _memory(run: Path, config: Config) -> dict[str, Tensor]:
    """What the method remembered of each image."""
    if config.method != "rsmatch" or not config.options["detector"]:
        raise UserError(f"{run} has no detector that --hidden could score: give a run of --method rsmatch.")
    found: dict[str, Tensor] = restore.checkpoint(run)["method"]
    return found


def _hidden(hidden: Path, config: Config) -> list[tuple[str, str | None]]:
    """Source and class of each unlabeled image of the pool that the run was trained on, in its order."""
    data = config.setting.data
    if Path(data).name != POOL or not Path(data).exists():
        raise UserError(
            f"the run was trained on '{data}', which is no mix that is there: --hidden scores runs on mixes."
        )
    rows = [row for _, row in Parquet.open(str(hidden)).rows(["hash", "source", "class"])]
    pool = Parquet.open(data).rows(["split", "hash"])
    if [row[0] for row in rows] != [row[1] for _, row in pool if row[0] == "unlabeled"]:
        raise UserError(f"{hidden} is not the hidden table of the pool {data}: give the {HIDDEN} beside that.")
    return [(source or REAL, name) for _, source, name in rows]


def _auroc(suspicion: Tensor, synthetic: Tensor) -> float | None:
    both = bool(synthetic.any()) and not bool(synthetic.all())
    return rank_auroc(suspicion.numpy(), synthetic.numpy()) if both else None


def _purity(memory: dict[str, Tensor], synthetic: Tensor, classes: tuple[str, ...]) -> dict[str, list[float | None]]:
    """By class: of the images that entered in each quarter of the training, and of the queue as it is at the end."""
    quarters = memory["entered"].chunk(QUARTERS)
    found = {}
    for c, name in enumerate(classes):
        last = memory["index"][c]
        entered = [_mean(synthetic.expand_as(quarter)[quarter == c]) for quarter in quarters]
        found[name] = [*entered, _mean(synthetic[last[last >= 0]])]
    return found


def _mean(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None
