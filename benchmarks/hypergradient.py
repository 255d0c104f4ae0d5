"""What MP-SSL's exact meta-gradient costs: a full iteration, in units of an iteration without it.

The unit is the plain SCR iteration: images sampled from the generator without gradient, the classifier's loss and its
step. A full iteration has the mapper's update before it: gap, validation one classifier step ahead, the gradient
through generator and mapper, Adam's step. Views, clipping, averages and all that the engine does are in both. All
variants take turns in one process; the ratio is the median over the rounds, with its 95 % bootstrap interval. The norms
of the mapper's two gradients at the images, which MP-SSL logs at every tenth mapper update, are switched off.

    naive       the graph of the whole look-ahead step (`functional.look_ahead`), grad(outer, mapper)
    torchopt    the same by torchopt's MetaSGD, and higher by its differentiable SGD, where they are installed
    unshared    `functional.hypergradient`: a mixed derivative of the synthetic branch alone
    shared      the same, and its inner gradient moves the classifier
    amortised   the same, a mapper update in every fourth iteration; the mean of the four

`count` is the same ratio in theory. A pass of the classifier's convolutions over a batch of 64 is one unit, a backward
pass is one for the gradient by the input and one for that by the weights. SCR: weak view 1, labeled and strong 2 * 3,
so 7. Shared: the real images' features 1, weak view 1 and back to the images 1, labeled 3, strong 3, validation 3, and
4 for the mixed derivative of the strong view, which is two passes of the tangent and two of the adjoint: 16. The others
have the classifier's own 7 besides. The generator and all that is no convolution are left out.

`memory` is the peak of what one iteration allocates, by the profiler's record of torch's CPU allocator, or by
`torch.cuda.max_memory_allocated`. `exact` is the relative distance between the mapper's gradient and the naive one,
both in float64 on a few images; `error` is that of the row's own precision from the naive one in float32.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisynth import allocator, models, noise, weights
from semisynth.augment import Strong, Weak
from semisynth.engine import Engine, _Step, resolve
from semisynth.functional import Function, frozen, look_ahead
from semisynth.generators.gan import ConditionalGenerator
from semisynth.method import Batch, Losses, Update
from semisynth.methods import MPSSL
from semisynth.methods.mpssl import Outer, gap_loss
from semisynth.methods.scr import consistency
from semisynth.recipes import bench
from semisynth.state import State

SHAPE, CLASSES, FOUNDATION, WIDTH = (3, 32, 32), 10, 62, 24
PERIOD = 4
CHECKED = 16  # images of each kind at which gradients are compared
Unroll = Callable[[nn.Module, Tensor, Callable[[Function], Tensor], float], Tensor]


def naive(model: nn.Module, inner: Tensor, outer: Callable[[Function], Tensor], lr: float) -> Tensor:
    """The outer loss one step ahead, with the graph of the step."""
    return outer(look_ahead(model, inner, lr))


def by_torchopt(model: nn.Module, inner: Tensor, outer: Callable[[Function], Tensor], lr: float) -> Tensor:
    """The same by torchopt, which puts the stepped weights into the model: they are taken out again."""
    torchopt = importlib.import_module("torchopt")
    before = torchopt.extract_state_dict(model, by="reference")
    torchopt.MetaSGD(model, lr=lr).step(inner)
    value = outer(model)
    torchopt.recover_state_dict(model, before)
    return value


def by_higher(model: nn.Module, inner: Tensor, outer: Callable[[Function], Tensor], lr: float) -> Tensor:
    """The same by higher, whose patched model is called with the stepped weights."""
    higher = importlib.import_module("higher")
    own = list(model.parameters())
    stepped = higher.optim.DifferentiableSGD(torch.optim.SGD(own, lr=lr), own).step(inner, params=own)
    patched = higher.monkeypatch(model, copy_initial_weights=False)
    return outer(lambda x: patched(x, params=stepped))


@dataclass(frozen=True)
class Unrolled(Outer):
    """The outer problem by an unrolled look-ahead, with the same draws of noise."""

    unroll: Unroll = naive

    def losses(self, batch: Batch) -> Losses:
        problem, features, latents = self.problem, self.problem.model.features, self.latents
        y = noise.integers(CLASSES, latents.synthetic, like=batch.x)
        z = noise.normal(len(y), *latents.mapper.latent_shape, like=batch.x)
        s = latents.generator(*latents.mapper(z, y))
        target = frozen(features)(problem.weak(s))
        with torch.no_grad():
            real = features(problem.weak(batch.x))

        def cross_entropy(model: Function) -> Tensor:
            return F.cross_entropy(model(problem.view(batch.x)), batch.y)

        unsupervised = problem.weight * consistency(features(problem.strong(s)), target)
        inner = cross_entropy(problem.model) + unsupervised
        validation = self.unroll(problem.model, inner, cross_entropy, self.inner_lr)
        return Losses({"gap": self.gap * gap_loss(real, batch.y, target, y, CLASSES), "validation": validation})


class Plain(MPSSL):
    """The classifier's update alone: SCR on samples of a mapper that stays."""

    def updates(self) -> dict[str, Update]:
        return {"classifier": super().updates()["classifier"]}


@dataclass(frozen=True)
class Variant:
    """units: convolution passes of a period; shared, every: options of MP-SSL; needs: a package that may be missing."""

    units: int
    unroll: Unroll | None = None
    shared: bool = False
    every: int = 1
    needs: str | None = None

    def missing(self) -> bool:
        """Whether its package is not installed."""
        return self.needs is not None and importlib.util.find_spec(self.needs) is None


SCR = 7
VARIANTS = {
    "SCR": Variant(SCR),
    "naive": Variant(16 + SCR, naive),
    "torchopt": Variant(16 + SCR, by_torchopt, needs="torchopt"),
    "higher": Variant(16 + SCR, by_higher, needs="higher"),
    "unshared": Variant(16 + SCR),
    "shared": Variant(16, shared=True),
    "amortised": Variant(16 + (PERIOD - 1) * SCR, shared=True, every=PERIOD),
}


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    allocator.keep()
    device = resolve(given.device)
    for name, variant in VARIANTS.items():
        if variant.missing():
            print(f"{name}: not installed")
    results = []
    for network in given.networks:
        methods = {name: make(network, name, given, device) for name in here()}
        exact, single = (gradient(methods["naive"], precision, device) for precision in ("float64", "float32"))
        for precision in given.precisions:
            lines = measure(network, precision, methods, given, device)
            for line in lines[1:]:
                method = methods[line["variant"]]
                line["exact"] = distance(gradient(method, "float64", device), exact)
                line["error"] = distance(gradient(method, precision, device), single)
            print(table(lines), flush=True)
            results += lines
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        weights.write_text(given.out.with_suffix(".md"), table(results))
    timing.conclude("hypergradient", given, device, results)


def parse() -> argparse.Namespace:
    parser = timing.options(__doc__, repeats=7)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--networks", nargs="+", default=["small-cnn", "wrn-16-2", "small-cnn-bn", "wrn-16-2-bn"])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64, help="labeled images, and as many synthetic ones")
    return parser.parse_args()


def here() -> list[str]:
    """The variants that can be run."""
    return [name for name, variant in VARIANTS.items() if not variant.missing()]


def batch(n: int, device: torch.device) -> Batch:
    """Random labeled images."""
    x, y = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(n) % CLASSES
    return Batch(x.to(device), y.to(device), x[:0].to(device), torch.empty(0))


def make(network: str, name: str, given: argparse.Namespace, device: torch.device) -> MPSSL:
    """The method with the same weights for each variant, BatchNorm frozen at the statistics of one batch."""
    torch.manual_seed(0)
    model, generator = models.build(network, SHAPE[0], CLASSES), ConditionalGenerator(SHAPE, FOUNDATION, width=WIDTH)
    variant, views = VARIANTS[name], (Weak(True), Strong(True))
    kind = Plain if name == "SCR" else MPSSL
    method = kind(model, generator, *views, CLASSES, given.batch, every=variant.every)
    if variant.unroll is not None:
        method.outer = Unrolled(*vars(method.outer).values(), variant.unroll)
    # Past the refusal of BatchNorm: frozen statistics are not written.
    object.__setattr__(method.outer, "shared", variant.shared)
    object.__setattr__(method.outer, "_norms", lambda *_: {})
    nn.init.normal_(method.mapper.out.weight, std=0.1)  # at its zero start most of the mapper's gradients vanish
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(torch.rand(given.batch, *SHAPE))
    for norm in norms:
        norm.eval()
    return method.to(device)


def measure(
    network: str, precision: str, methods: dict[str, MPSSL], given: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """A line for each variant."""
    data = batch(given.batch, device)
    steps = {name: period(method, precision, data, device) for name, method in methods.items()}
    for step in steps.values():
        step()  # the first one allocates
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.repeats):
        for name, step in steps.items():
            seconds[name].append(timing.timed(step, device) / VARIANTS[name].every)
    peaks = {name: timing.peak(step, device) for name, step in steps.items()}
    return [
        {
            "network": network,
            "precision": precision,
            "variant": name,
            **timing.ratio(taken, seconds["SCR"]),
            "count": round(VARIANTS[name].units / (SCR * VARIANTS[name].every), 2),
            "memory": round(peaks[name] / peaks["SCR"], 3),
            "ms": round(1000 * median(taken), 1),
            "peak_mib": round(peaks[name] / 2**20, 1),
        }
        for name, taken in seconds.items()
    ]


def period(method: MPSSL, precision: str, data: Batch, device: torch.device) -> Callable[[], None]:
    """As many training steps as lie between two mapper updates."""
    engine = Engine(device=str(device), precision="bf16" if precision == "bf16" else "float32", lr=0.001)
    method = copy.deepcopy(method)
    updates = method.updates()
    step = _Step(engine, State(method, engine.optimizers(updates), engine.ema), updates, device)
    numbers = itertools.count()

    def run() -> None:
        for number in itertools.islice(numbers, method.outer.every):
            step(Batch(data.x, data.y, data.u, data.index, number))

    return run


def gradient(method: MPSSL, precision: str, device: torch.device) -> Tensor:
    """The mapper's gradient (parameters,) on a few images."""
    method = copy.deepcopy(method)
    object.__setattr__(method.outer.latents, "synthetic", CHECKED)
    data = batch(CHECKED, device)
    if precision == "float64":
        method, data = method.double(), Batch(data.x.double(), data.y, data.u, data.index)
    update = method.outer.update(method.mapper_lr)
    with (
        noise.seeded("hypergradient"),
        torch.autocast(device.type, torch.bfloat16, precision == "bf16", cache_enabled=False),
    ):
        losses = update.loss(data)
    found = update.combine(losses, list(method.mapper.parameters())).gradients
    return torch.cat([gradient.flatten() for gradient in found]).double()


def distance(found: Tensor, reference: Tensor) -> float:
    """Relative to the reference, to two digits."""
    return float(f"{((found - reference).norm() / reference.norm()).item():.1e}")


def table(results: list[dict[str, Any]]) -> str:
    """As markdown; time and memory over those of SCR."""
    head = ["network", "precision", "variant", "time", "interval", "count", "memory", "ms", "MiB", "exact", "error"]
    keys = [
        "network",
        "precision",
        "variant",
        "ratio",
        "interval",
        "count",
        "memory",
        "ms",
        "peak_mib",
        "exact",
        "error",
    ]
    return bench.markdown(head, [[str(line.get(key, "")) for key in keys] for line in results]) + "\n"


if __name__ == "__main__":
    main()
