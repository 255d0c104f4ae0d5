"""What the speed benchmarks share: options, the ratio of two times taken in turn, and how a result is kept."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
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


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds."""
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(run: Callable[[], None], device: torch.device) -> int:
    """The most bytes that were allocated at a time, beyond those before."""
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


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
