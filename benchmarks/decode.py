"""Decoding into the cache against plain Pillow, its resumption, and the memory of training on what it made.

The images are of 64x64, PNG and JPEG in turn, in a manifest, all made here in a temporary folder. Plain Pillow opens,
converts, resizes and makes an array of each, in one process. Both sides take blocks of the same images in turn, so that
whatever else the machine does disturbs both. Our side is all of `cache.load`: reading the manifest, starting processes,
the hash, and writing the pixels.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timing
import torch
from PIL import Image

from semisynth.data import cache, catalog, chunks
from semisynth.data.decode import Preparation

RATIO, GROWTH = 0.8, 0.05  # targets: rate per core over plain Pillow's; growth of the peak memory
SIDE, FITS = 64, 5
PREPARATION = Preparation((SIDE, SIDE), 3, "crop")
LOAD = """
import os, signal, sys
from semisynth.data import cache, catalog
from semisynth.data.decode import Preparation

path, side, at = sys.argv[1], *map(int, sys.argv[2:])
counts, step = [], cache.Bar.step

def counted(bar, images):
    step(bar, images)
    counts.append(images)
    if at and sum(counts) >= at:
        os.kill(os.getpid(), signal.SIGKILL)

cache.Bar.step = counted
cache.load(catalog.read(path), Preparation((side, side), 3, "crop"))
print(sum(counts))
"""
# Its own peak: what `resource` tells begins with that of the process that started it.
FIT = """
import re, sys
from semisynth import cli

assert cli.main(sys.argv[1:]) == 0
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1000)
"""


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        root = Path(name)
        os.environ["SEMISYNTH_CACHE"] = str(root / "cache")
        make(root, given.images, given.repeats)
        results = [rate(root, given), resumption(root, given.images), memory(root)]
    lines = (
        "{images} images: {ratio:.2f} times Pillow's rate per core, interval {interval}, and {processor[ratio]:.2f} "
        "times by processor time; {ours} images/s on {processes} processes, Pillow {pillow} on one",
        "killed when {before} images were kept, and resumed for {after}: {twice} decoded twice",
        "peak memory of a fit: {tenth:.0f} MB on a tenth of the images, {whole:.0f} MB on all of them: {growth:+.1%}",
    )
    for line, result in zip(lines, results, strict=True):
        print(line.format(**result), flush=True)
    timing.conclude("decode", given, torch.device("cpu"), results)


def parse() -> argparse.Namespace:
    parser = timing.options(__doc__, repeats=10)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    return parser.parse_args()


def make(root: Path, n: int, blocks: int) -> None:
    """Images, and manifests of the whole, of a tenth, and of each block."""
    (root / "images").mkdir()
    rows = []
    for i in range(n):
        coarse = np.random.RandomState(i).randint(256, size=(8, 8, 3)).astype(np.uint8)
        name = f"images/{i:06}.{('png', 'jpg')[i % 2]}"
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(root / name)
        split = {18: "validation", 19: "test"}.get(i // 10 % 20, "train")
        rows.append(f"{name},{i % 10},{split}\n")
    each = n // blocks
    parts = {"whole": rows, "tenth": rows[: n // 10]}
    parts |= {f"block{k}": rows[k * each : (k + 1) * each] for k in range(blocks)}
    for name, part in parts.items():
        (root / f"{name}.csv").write_text("path,label,split\n" + "".join(part))


def rate(root: Path, given: argparse.Namespace) -> dict[str, Any]:
    """How many times Pillow's rate ours is: per core by the clock, and by processor time."""
    each = given.images // given.repeats
    slow, fast = [], []
    for block in range(given.repeats):
        path = root / f"block{block}.csv"
        names = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
        slow.append(measured(lambda names=names: [plain(root / name) for name in names]))
        fast.append(measured(lambda path=path: cache.load(catalog.read(str(path)), PREPARATION)))
    processes = cache._cores() if any(children for *_, children in fast) else 1
    return {
        "images": given.images,
        **timing.ratio([clock for clock, *_ in slow], [processes * clock for clock, *_ in fast]),
        "target": RATIO,
        "processor": timing.ratio([own for _, own, _ in slow], [own + children for _, own, children in fast]),
        "ours": round(each / median(clock for clock, *_ in fast)),
        "pillow": round(each / median(clock for clock, *_ in slow)),
        "processes": processes,
    }


def measured(side: Callable[[], object]) -> tuple[float, float, float]:
    """Seconds by the clock, of this process and of those that it started and that ended."""
    before = os.times()
    began = time.perf_counter()
    side()
    clock, after = time.perf_counter() - began, os.times()
    own, children = (
        sum(getattr(after, name) - getattr(before, name) for name in names)
        for names in (("user", "system"), ("children_user", "children_system"))
    )
    return clock, own, children


def plain(path: Path) -> np.ndarray[Any, Any]:
    """An image as anyone would read it."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def resumption(root: Path, n: int) -> dict[str, Any]:
    """A process that decodes is killed at half, and another goes on: what it decodes the first had not kept."""
    killed = child(LOAD, str(root / "whole.csv"), SIDE, n // 2)
    time.sleep(1)  # until its own processes, which follow it, have ended
    (journal,) = (root / "cache").glob("*/journal.jsonl")
    before = sum(chunk.count for chunk in chunks.journaled(journal, n))
    after = int(child(LOAD, str(root / "whole.csv"), SIDE, 0).stdout)
    return {
        "killed": killed.returncode == -signal.SIGKILL,
        "before": before,
        "after": after,
        "twice": before + after - n,
    }


def memory(root: Path) -> dict[str, Any]:
    """Peak resident memory, in MB, of `semisynth fit` on a tenth and on all of the images, both decoded before.

    The median of some fits in turn: which memory the two threads of a fit find free differs from fit to fit.
    """
    child(LOAD, str(root / "tenth.csv"), SIDE, 0)
    peaks = [(peak(root, "tenth", fit), peak(root, "whole", fit)) for fit in range(FITS)]
    tenth, whole = (median(column) for column in zip(*peaks, strict=True))
    growth = {"growth": round(whole / tenth - 1, 4), "target": GROWTH}
    return {"tenth": round(tenth, 1), "whole": round(whole, 1), **growth, "peaks": peaks}


def peak(root: Path, name: str, fit: int) -> float:
    """Of a process of its own."""
    options = {
        "data": root / f"{name}.csv",
        "out": root / f"{name}-{fit}",
        "method": "fixmatch",
        "labels-per-class": 20,
    }
    options |= {"size": SIDE, "channels": "rgb", "steps": 20, "device": "cpu"}
    done = child(FIT, "fit", *(f"--{option}={value}" for option, value in options.items()))
    return float(done.stdout.splitlines()[-1])


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What this code printed, in a process of its own; it may fail only by being killed."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done


if __name__ == "__main__":
    main()
