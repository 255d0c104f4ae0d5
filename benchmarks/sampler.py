"""Memory and time of an MP-SSL step whose gradient goes through all k steps of a diffusion model's sampler.

A step is a whole one of the engine: the mapper's update, through the sampler and, of latents, through the decoder, and
the classifier's. The networks have random weights, which changes neither.

    unet    diffusers' DDIM of images with a U-Net of classes
    dit     diffusers' DiT of latents, with an autoencoder
    edm     our own EDM with a U-ViT and Heun's method, of two passes of the network in all steps but the last

`memory` is the peak of what one step allocates beyond what was there, by the profiler's record of torch's CPU
allocator, or by `torch.cuda.max_memory_allocated`; `kept` is the same where nothing is computed again on the way back.
`growth` is the memory over that of the least k, `pass` the time of each pass of the network beyond those of the least
k, over the same time between the two least k: 1 where time is linear in k. Times are medians of rounds that take turns.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import timing
import torch
from comparison import between
from torch import Tensor

from semisynth import generators, models, weights
from semisynth.augment import Strong, Weak
from semisynth.engine import Engine, _Step, resolve
from semisynth.generators import Generator, Options, diffusion, sampler
from semisynth.generators.diffusion import Diffusion, denoiser_of
from semisynth.method import Batch
from semisynth.methods import MPSSL
from semisynth.recipes import bench
from semisynth.state import State

SHAPE, CLASSES, FOUNDATION, LABELED = (3, 32, 32), 10, 20, 32
WIDTH = 64  # of the first block of each diffusers network
HEAD = ("generator", "k", "passes", "ms", "pass", "MiB", "growth", "MiB, kept")
KEYS = ("generator", "k", "passes", "ms", "pass", "memory_mib", "growth", "kept_mib")


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    device = resolve(given.device)
    results = []
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in given.generators:
            lines = measured(name, GENERATORS[name](Path(place) / name), given, device)
            print(table(lines), flush=True)
            results += lines
    timing.conclude("sampler", given, device, results)
    if given.out is not None and given.page is not None:
        between(given.page, "sampler", told(weights.read_json(given.out)))


def parse() -> argparse.Namespace:
    parser = timing.options(__doc__, repeats=5)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--generators", nargs="+", choices=GENERATORS, default=list(GENERATORS))
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 4, 16], help="k, in rising order")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--page", type=Path, help="a page that has what is in --out between its markers")
    parser.add_argument("--synthetic", type=int, default=16, help="images that are sampled in a step")
    return parser.parse_args()


# ---- generators: of k, the one that takes k steps -------------------------------------------------------------------

Kind = Callable[[int], Generator]


def unet(folder: Path) -> Kind:
    """A U-Net of images, as DDPM's pipeline saves it."""
    import diffusers

    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    network = diffusers.UNet2DModel(
        SHAPE[1], 3, 3, block_out_channels=(WIDTH, 2 * WIDTH), num_class_embeds=FOUNDATION, layers_per_block=1, **kinds
    )
    diffusers.DDPMPipeline(network, diffusers.DDIMScheduler()).save_pretrained(folder)
    return lambda k: generators.load(str(folder), Options(sampler_steps=k))


def dit(folder: Path) -> Kind:
    """A DiT of latents of half the images' sides, with its autoencoder."""
    import diffusers

    sizes = {"num_attention_heads": 4, "attention_head_dim": WIDTH // 2, "num_embeds_ada_norm": FOUNDATION}
    network = diffusers.DiTTransformer2DModel(
        **sizes, in_channels=4, out_channels=8, num_layers=4, sample_size=SHAPE[1] // 2, patch_size=2
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = diffusers.AutoencoderKL(**blocks, block_out_channels=(WIDTH // 2, WIDTH), sample_size=SHAPE[1])
    diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler()).save_pretrained(folder)
    return lambda k: generators.load(str(folder), Options(sampler_steps=k))


def edm(folder: Path) -> Kind:
    """Our own."""
    denoiser = denoiser_of(SHAPE, FOUNDATION, "tiny", patch=4, deviation=0.5)
    return lambda k: Diffusion(denoiser, k).eval().requires_grad_(False)


GENERATORS: dict[str, Callable[[Path], Kind]] = {"unet": unet, "dit": dit, "edm": edm}


# ---- what is measured -----------------------------------------------------------------------------------------------


def measured(name: str, of: Kind, given: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """A line for each k."""
    steps = {k: step(of(k), given, device) for k in given.steps}
    for run in steps.values():
        run()  # the first one allocates
    seconds: dict[int, list[float]] = {k: [] for k in steps}
    for _ in range(given.repeats):
        for k, run in steps.items():
            seconds[k].append(timing.timed(run, device))
    memory = {k: timing.peak(run, device) for k, run in steps.items()}
    with remembering():
        kept = {k: timing.peak(run, device) for k, run in steps.items()}
    passes = {k: 2 * k - 1 if name == "edm" else k for k in steps}
    ms = {k: 1000 * median(taken) for k, taken in seconds.items()}
    first, second = given.steps[:2]
    unit = (ms[second] - ms[first]) / (passes[second] - passes[first])
    return [
        {
            "generator": name,
            "k": k,
            "passes": passes[k],
            "ms": round(ms[k], 1),
            "pass": round((ms[k] - ms[first]) / (passes[k] - passes[first]) / unit, 3) if k != first else None,
            "memory_mib": round(memory[k] / 2**20, 1),
            "growth": round(memory[k] / memory[first], 3),
            "kept_mib": round(kept[k] / 2**20, 1),
            "blocks": given.repeats,
        }
        for k in steps
    ]


def step(generator: Generator, given: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """A training step of MP-SSL."""
    torch.manual_seed(0)
    model = models.build("small-cnn", SHAPE[0], CLASSES)
    method = MPSSL(model, generator, Weak(True), Strong(True), CLASSES, given.synthetic).to(device)
    engine = Engine(device=str(device), lr=0.001)
    updates = method.updates()
    run = _Step(engine, State(method, engine.optimizers(updates), engine.ema), updates, device)
    x, y = torch.rand(LABELED, *SHAPE, device=device), torch.arange(LABELED, device=device) % CLASSES
    numbers = itertools.count()
    return lambda: run(Batch(x, y, x[:0], y[:0], next(numbers)))


@contextmanager
def remembering() -> Iterator[None]:
    """Within this context nothing is computed again on the way back."""

    def called(function: Callable[..., Tensor], *arguments: Any, remember: bool) -> Tensor:
        return function(*arguments)

    before = diffusion.again, sampler.again
    diffusion.again = sampler.again = called
    try:
        yield
    finally:
        diffusion.again, sampler.again = before


def told(content: dict[str, Any]) -> str:
    """The table, and where it comes from."""
    on, day = content["environment"], content["date"][:10]
    made = f"Made by `{content['command']}` ({on['device']}, commit {on['commit']}, {day})."
    return f"{table(content['results'])}\n{made}"


def table(results: list[dict[str, Any]]) -> str:
    """As markdown."""
    rows = [["" if line[key] is None else str(line[key]) for key in KEYS] for line in results]
    return bench.markdown(list(HEAD), rows) + "\n"


if __name__ == "__main__":
    main()
