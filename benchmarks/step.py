"""What a whole training step costs over its network alone.

One side is `Engine.fit` of FixMatch on a stream of uint8 images: batches, augmentation, EMA, log and all. The other is
a bare loop over tensors of the same shapes: the network's forward pass on the unlabeled images without gradient,
forward and backward pass on all images, and the step of SGD. Blocks of both take turns in one process, so that what
else the machine does falls on both; an engine block is compared with the mean of the bare blocks before and after it.
torch has `--threads` threads on both sides; the engine also gathers the next batch's bytes on a thread of its own.

With `--rsmatch` one side is `Engine.fit` of RSMatch, told apart from the first step on, and the other that of FixMatch.
With `--frank-wolfe` one is that of all pretext tasks, weighed by Frank-Wolfe, and the other with fixed weights.

The default takes about three minutes on two cores, of which the WRN has most.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import nn

from semisynth import allocator, models
from semisynth.augment import Strong, Weak
from semisynth.data.datasets import Images
from semisynth.data.stream import Pool, Stream
from semisynth.engine import Engine, resolve
from semisynth.method import Batch, Method
from semisynth.methods import FixMatch, Pretext, RSMatch

CLASSES, IMAGES = 10, 2000
TARGETS = {"fixmatch": 1.10, "rsmatch": 1.20, "frank-wolfe": 1.15}


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    allocator.keep()  # as the engine does, for both sides
    device = resolve(given.device)
    results = []
    for network in given.networks:
        results.append(measure(network, given, device))
        told = "{network}: {ratio:.3f}, interval {interval}, step of the other side {bare_ms} ms"
        print(told.format(**results[-1]), flush=True)
    timing.conclude("step", given, device, results)


def parse() -> argparse.Namespace:
    parser = timing.options(__doc__, repeats=9)
    parser.add_argument("--networks", nargs="+", default=["small-cnn", "wrn-16-2"])
    parser.add_argument("--device", default="cpu")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--rsmatch", action="store_true", help="measure RSMatch over FixMatch instead")
    what.add_argument(
        "--frank-wolfe", action="store_true", help="measure pretext tasks weighed over fixed ones instead"
    )
    parser.add_argument("--batch", type=int, default=64, help="labeled images of a step")
    parser.add_argument("--unlabeled-batch", type=int, default=7 * 64, help="unlabeled images of a step")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--seconds", type=float, default=1.0, help="a block is as many steps as fit in, at least one")
    return parser.parse_args()


def measure(network: str, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The ratio of an engine step's time to one of the other side, for the network of that name."""
    method, other, sides, shape = compared(network, given, device)
    other(1)  # the first one allocates
    block = max(1, int(given.seconds / other(1)))
    turns = Turns(lambda: other(block), block, device)
    turns.run(method, stream(given, device), given.repeats)
    engine = turns.engine[1:]  # without the first, which warms up
    around = [(before + after) / 2 for before, after in pairwise(turns.bare)]
    return {
        "network": network,
        "sides": sides,
        **timing.ratio(engine, around),
        "target": TARGETS[sides[0]],
        "steps_of_a_block": block,
        "engine_ms": round(1000 * median(engine) / block, 2),
        "bare_ms": round(1000 * median(around) / block, 2),
        "images": [given.batch, given.unlabeled_batch],
        "shape": list(shape),
    }


def compared(
    network: str, given: argparse.Namespace, device: torch.device
) -> tuple[Method, Callable[[int], float], list[str], tuple[int, int, int]]:
    """What the engine trains, how long so many steps of the other side take, the names of both, the images' shape."""
    torch.manual_seed(0)
    model = models.build(network, given.channels, CLASSES).to(device)
    again, views, shape = copy.deepcopy(model), (Weak(True), Strong(True)), (given.channels, given.size, given.size)
    if given.rsmatch:
        method = RSMatch(model, *views, CLASSES, IMAGES, shape, start=0.0)
        return method, fitted(FixMatch(again, *views), given, device), ["rsmatch", "fixmatch"], shape
    if given.frank_wolfe:
        weighed = Pretext(model, shape, combine="frank-wolfe")
        return weighed, fitted(Pretext(again, shape), given, device), ["frank-wolfe", "fixed"], shape
    return FixMatch(model, *views), repeated(bare(again, given, device), device), ["fixmatch", "bare"], shape


def repeated(step: Callable[[], None], device: torch.device) -> Callable[[int], float]:
    """How long so many steps take."""

    def seconds(times: int) -> float:
        timing.wait(device)
        began = time.perf_counter()
        for _ in range(times):
            step()
        timing.wait(device)
        return time.perf_counter() - began

    return seconds


def fitted(method: Method, given: argparse.Namespace, device: torch.device) -> Callable[[int], float]:
    """How long so many steps of the engine take with this method."""
    engine, batches = (
        Engine(device=str(device), log_every=0, evaluate_every=0, checkpoint_every=0),
        stream(given, device),
    )

    def seconds(steps: int) -> float:
        timing.wait(device)
        began = time.perf_counter()
        engine.fit(method, batches, steps)
        timing.wait(device)
        return time.perf_counter() - began

    return seconds


def bare(model: nn.Module, given: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """FixMatch's network computation and nothing else."""
    shape = (given.channels, given.size, given.size)
    u, both = (
        torch.rand(n, *shape, device=device) for n in (given.unlabeled_batch, given.batch + given.unlabeled_batch)
    )
    y = torch.randint(CLASSES, (given.batch,), device=device)
    sgd = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def step() -> None:
        with torch.no_grad():
            target = model(u).argmax(-1)
        F.cross_entropy(model(both), torch.cat([y, target])).backward()
        sgd.step()
        sgd.zero_grad()

    return step


def stream(given: argparse.Namespace, device: torch.device) -> Stream:
    """Batches of random uint8 images."""
    x = torch.randint(256, (IMAGES, given.channels, given.size, given.size), dtype=torch.uint8)
    images = Images(x, torch.randint(CLASSES, (IMAGES,)))
    pool = Pool(images, given.unlabeled_batch, 0, device)
    return Stream(images.subset(torch.arange(40)), pool, batch=given.batch, steps=10**6, seed=0, device=device)


class Turns:
    """Times `Engine.fit` in blocks; after each, where the engine would evaluate, comes a block of the other side."""

    def __init__(self, other: Callable[[], float], block: int, device: torch.device) -> None:
        self.other, self.block, self.device = other, block, device
        self.engine: list[float] = []
        self.bare: list[float] = []
        self._made, self._ahead = 0, threading.Condition()

    def run(self, method: Method, stream: Stream, repeats: int) -> None:
        """A block to warm up, `repeats` more, and one step that keeps the stream ahead to the end of them."""
        self._last = (repeats + 1) * self.block
        engine = Engine(device=str(self.device), log_every=self.block, evaluate_every=self.block, checkpoint_every=0)
        self._stream = stream
        self._began = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            engine.fit(method, self._counted, self._last + 1, Path(out), self._turn)

    def _counted(self, step: int) -> Batch:
        batch = self._stream(step)
        with self._ahead:
            self._made = step + 1
            self._ahead.notify()
        return batch

    def _turn(self, _: nn.Module) -> dict[str, float]:
        done = (len(self.engine) + 1) * self.block
        if done > self._last:
            return {}
        # The batch ahead is waited for, so that all its time is the engine's.
        with self._ahead:
            self._ahead.wait_for(lambda: self._made > done)
        timing.wait(self.device)
        self.engine.append(time.perf_counter() - self._began)
        self.bare.append(self.other())
        self._began = time.perf_counter()
        return {}


if __name__ == "__main__":
    main()
