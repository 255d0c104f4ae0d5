"""The one training loop: it runs a method's updates in order, and does all that is not mathematics."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from semisynth import allocator, compiled, distributed, interruption, noise
from semisynth.errors import Diverged, UserError, between
from semisynth.log import Bar, Log, Timer
from semisynth.method import Average, Batch, Losses, Method, Ready, Update
from semisynth.models.classifier import Classifier
from semisynth.schedule import Schedule, factor
from semisynth.state import State, Statistics, move

Stream = Callable[[int], Batch]
NEVER = 2**62


def resolve(device: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, and torchrun's processes take a CUDA device each."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used here: choose auto or cpu.") from error
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


@dataclass(frozen=True)
class Engine:
    """Trains a `Method` on a `Stream`.

    Args:
        seed: of the label draw, the initial weights, the batches and all noise
        device: auto (CUDA where there is one), cpu, cuda, cuda:1, ...
        precision: of the computation; bf16 is autocast, the weights stay float32
        channels_last: whether weights, and so activations, lie in that memory format, which is often quicker
        compile: whether networks go through torch.compile; not for bilevel methods, and no gain on a CPU so far
        lr: learning rate of SGD, for the updates that bring no optimiser of their own
        features_lr: a factor on that rate for the features of a classifier, for low-rank adapters in them too
        momentum: Nesterov's, of SGD
        weight_decay: of SGD
        schedule: multiplies every optimiser's rate; cosine is cos(7 pi t / 16)
        clip: largest norm of an update's gradient; 0 for none
        ema: decay of the average of the weights, which is what is evaluated
        log_every: steps between log lines; 0 for the last step only
        evaluate_every: steps between measurements on the validation split; 0 for the last step only
        checkpoint_every: steps between checkpoints; 0 for the last step only
    """

    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    lr: float = 0.03
    features_lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    clip: float = 0.0
    ema: float = 0.999
    log_every: int = 50
    evaluate_every: int = 100
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        between(0, math.inf, lr=self.lr, weight_decay=self.weight_decay, clip=self.clip, features_lr=self.features_lr)
        between(0, 1, momentum=self.momentum, ema=self.ema)
        between(0, math.inf, log_every=self.log_every, evaluate_every=self.evaluate_every)
        between(0, math.inf, checkpoint_every=self.checkpoint_every)

    def fit(
        self,
        method: Method,
        stream: Stream,
        steps: int,
        out: Path | None = None,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        name: str = "fit",
        show: bool = False,
    ) -> nn.Module:
        """Train up to `steps`, from the checkpoint in `out` if there is one, and return the averaged `method.model`.

        evaluate: metrics of the average, logged; name, show: of the progress bar. Raises `UserError` when a loss is not
        finite, the checkpoint cannot be used, or `check` fails. After Ctrl-C it ends the step and writes a checkpoint.
        """
        device = resolve(self.device)
        method.to(device).train()
        if self.channels_last:
            method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        updates = method.updates()
        self.check(updates)
        state = State(method, self.optimizers(updates), self.ema)
        allocator.keep()
        if out is not None and (out / "checkpoint.pt").exists():
            state.load(out / "checkpoint.pt")
        main = distributed.rank() == 0
        log = Log(out / "log.jsonl" if out is not None and main else None, state.step)
        step = _Step(self, state, updates, device)
        began = time.perf_counter() - state.seconds
        networks = compiled.networks(method) if self.compile else contextlib.nullcontext()
        bar = Bar(name, steps, state.step, show and main)
        with bar, step.statistics, networks, interruption.awaited() as asked:
            for batch in _prefetched(stream, state.step, steps, step.timer):
                step(batch)
                state.step = batch.step + 1
                due = {what for what in ("log", "evaluate", "checkpoint") if self._due(what, state.step, steps)}
                if stopping := asked.is_set():
                    due.add("checkpoint")
                if due:
                    state.seconds = time.perf_counter() - began
                    line = step.report(state.seconds)
                    line |= evaluate(state.ema.target) if evaluate and "evaluate" in due else {}
                    log.write({"step": state.step, **line})
                    bar.note(state.step, line["steps_per_second"], line)
                if "checkpoint" in due and out is not None and main:
                    state.save(out / "checkpoint.pt")
                bar.step()
                if stopping:
                    raise KeyboardInterrupt(f"the same command goes on after step {state.step}")
        distributed.barrier()
        return state.ema.target

    def _due(self, what: str, step: int, steps: int) -> bool:
        every = {"log": self.log_every, "evaluate": self.evaluate_every, "checkpoint": self.checkpoint_every}[what]
        return step == steps or (every > 0 and step % every == 0)

    def check(self, updates: Mapping[str, Update | Average]) -> None:
        """Raise `UserError` if these updates cannot be trained with these options, here."""
        if self.compile:
            compiled.check(updates, resolve(self.device))
        self.optimizers(updates)

    def optimizers(self, updates: Mapping[str, Update | Average]) -> dict[str, Optimizer]:
        """An optimiser for each update; `UserError` for a rate that it does not take."""
        try:
            return {name: self._optimizer(update) for name, update in updates.items() if isinstance(update, Update)}
        except ValueError as error:
            raise UserError(f"{error}: give another rate.") from error

    def _optimizer(self, update: Update) -> Optimizer:
        sgd = partial(torch.optim.SGD, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if update.optimizer is None:
            optimizer: Optimizer = sgd(self._groups(update.module), nesterov=self.momentum > 0)
        else:
            optimizer = update.optimizer([p for p in update.module.parameters() if p.requires_grad])
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def _groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """The parameters that are trained; the features of a classifier apart, where they have a rate of their own."""
        trained = [p for p in module.parameters() if p.requires_grad]
        if self.features_lr == 1:
            return [{"params": trained}]
        classifiers = [part for part in module.modules() if isinstance(part, Classifier)]
        features = {p for part in classifiers for p in part.features.parameters()}
        rest, apart = [p for p in trained if p not in features], [p for p in trained if p in features]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": apart, "lr": self.lr * self.features_lr}]
        return [group for group in groups if group["params"]]


class _Step:
    """One training step, and what it measured since the last log line."""

    def __init__(
        self, engine: Engine, state: State, updates: Mapping[str, Update | Average], device: torch.device
    ) -> None:
        self.engine, self.state, self.updates, self.device = engine, state, updates, device
        self.timer, self.statistics = Timer(device), Statistics(state.method)
        self._broken: dict[str, Tensor] = {}  # by what it is: the first step at which it was not finite
        self._since = (state.step, time.perf_counter())

    def __call__(self, batch: Batch) -> None:
        ready: dict[str, Ready] = {}  # what an update had on its way of those after it in this step
        for name, update in self.updates.items():
            if isinstance(update, Average):
                move(update, batch.step)
            elif batch.step % update.every == 0:
                with self.timer.part(name), self.statistics.written_by(update.module):
                    ready |= self._update(name, update, batch, ready.pop(name, None))
        move(self.state.ema, batch.step)

    def _update(self, name: str, update: Update, batch: Batch, ready: Ready | None) -> Mapping[str, Ready]:
        engine, optimizer = self.engine, self.state.optimizers[name]
        parameters = [p for p in update.module.parameters() if p.requires_grad]
        losses, gradients = ready or self._evaluate(name, update, batch, parameters)
        self._record(name, losses, batch.step)
        if engine.clip:
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            # Not in place: autograd may give two parameters the same tensor.
            gradients = list(torch._foreach_mul(gradients, (engine.clip / (norm + 1e-12)).clamp(max=1.0)))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor(engine.schedule, batch.progress)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in losses.memory.items():
                self.state.method.get_buffer(buffer).copy_(value)
        return losses.ready

    def _evaluate(self, name: str, update: Update, batch: Batch, parameters: list[nn.Parameter]) -> Ready:
        engine = self.engine
        seed = (engine.seed, "step", batch.step, name)
        torch.manual_seed(noise.derive(*seed))  # for dropout; everything else draws from `noise`
        # Without the cache, a no-grad pass leaves no casts that lack a graph (pytorch #112583).
        cast = torch.autocast(self.device.type, torch.bfloat16, engine.precision == "bf16", cache_enabled=False)
        with noise.seeded(*seed), cast:
            losses = update.loss(batch)
        gradients, metrics = update.combine(losses, parameters)
        return Ready(losses._replace(metrics={**losses.metrics, **metrics}), distributed.average(gradients))

    def _record(self, name: str, losses: Losses, step: int) -> None:
        self.state.metrics |= {f"{name}/{k}": v.detach() for k, v in (*losses.terms.items(), *losses.metrics.items())}
        for term, value in losses.terms.items():
            self._watch(f"the loss term '{name}/{term}'", value.detach(), step)

    def _watch(self, what: str, value: Tensor, step: int) -> None:
        before = self._broken.setdefault(what, torch.full((), NEVER, device=self.device))
        self._broken[what] = torch.where(value.isfinite(), before, before.clamp(max=step))

    def report(self, seconds: float) -> dict[str, Any]:
        """The newest terms and metrics, averaged over ranks, and times; raises `UserError` if one was not finite."""
        self._check()
        values = torch.stack([value.to(self.device, torch.float32) for value in self.state.metrics.values()])
        mean = distributed.average([values])[0]
        # What the checkpoint keeps must not be rank 0's own: an update may not run again before the next line.
        self.state.metrics = dict(zip(self.state.metrics, mean, strict=True))
        steps, now = self.state.step - self._since[0], time.perf_counter()
        rate = steps / (now - self._since[1])
        self._since = (self.state.step, now)
        times = {"seconds": round(seconds, 3), "steps_per_second": round(rate, 2)}
        parts = {f"time/{part}": round(spent, 4) for part, spent in self.timer.take().items()}
        return times | parts | dict(zip(self.state.metrics, mean.tolist(), strict=True))

    def _check(self) -> None:
        # A finite loss may have an infinite gradient: weights that are lost must not replace the last checkpoint.
        for name, optimizer in self.state.optimizers.items():
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            norm = torch.stack(torch._foreach_norm(weights)).sum().detach()
            self._watch(f"the norm of the weights of '{name}'", norm, self.state.step)
        first = distributed.concatenate(torch.stack(list(self._broken.values()))[None]).amin(0).tolist()
        bad = {what: step for what, step in zip(self._broken, first, strict=True) if step < NEVER}
        if bad:
            what = min(bad, key=lambda key: bad[key])
            raise Diverged(
                f"{what} was not finite at step {bad[what]}. The last checkpoint is as it was; "
                "a lower --lr or --clip 1 often helps."
            )


def _prefetched(stream: Stream, first: int, steps: int, timer: Timer) -> Iterator[Batch]:
    """The batches from `first` on, the next one being made on a thread while the current one is used."""
    with ThreadPoolExecutor(1, "stream") as thread:
        ahead = thread.submit(stream, first) if first < steps else None
        for step in range(first, steps):
            assert ahead is not None
            with timer.part("data"):
                batch = ahead.result()
            ahead = thread.submit(stream, step + 1) if step + 1 < steps else None
            yield batch
