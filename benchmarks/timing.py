"""What the speed benchmarks share: options, the ratio of two times taken in turn, and how a result is kept."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semisynth import environment, weights

RESAMPLES = 10_000


def options(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser of the options that every speed benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="blocks of each side that are compared")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--out", type=Path, help="also write that object to this file")
    return parser


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, Any]:
    """The median of over / under, pair by pair, and its 95 % bootstrap interval over the pairs."""
    ratios = np.asarray(over) / np.asarray(under)
    picks = np.random.RandomState(0).randint(len(ratios), size=(RESAMPLES, len(ratios)))
    interval = np.quantile(np.median(ratios[picks], 1), [0.025, 0.975])
    return {
        "ratio": round(float(np.median(ratios)), 4),
        "interval": [round(float(bound), 4) for bound in interval],
        "blocks": len(ratios),
    }


def conclude(name: str, given: argparse.Namespace, device: torch.device, results: list[dict[str, Any]]) -> None:
    """Write and print the result with where it comes from."""
    content = {
        "name": name,
        "results": results,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "environment": environment.describe(device),
        "command": " ".join(["python", *sys.argv]),
    }
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        weights.write_json(given.out, content)
    if given.json:
        print(json.dumps(content))
