"""DPT on CIFAR-10 at 40 labels: FreeMatch, a class-conditional EDM, K images of each class, FreeMatch again.

--data is a folder of CIFAR-10's images by split and class, as of cifar.py. Each stage has a directory of its own, so
that the same command goes on where it was stopped. FreeMatch has its paper's options. The diffusion model has the
learning rate of You et al. 2023, no label left out and no guidance, as there; but its network, batch and steps are
those asked for, its average has the engine's decay, and there is neither dropout nor augmentation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cifar import ENGINE, METHODS, READING

from semisynth import environment, weights
from semisynth.engine import resolve
from semisynth.errors import UserError
from semisynth.recipes import bench, directory, dpt
from semisynth.recipes.cells import numbers

RESULTS = Path(__file__).parent / "results" / "dpt-cifar"


def main() -> None:
    given = parse()
    try:
        lines = [found for seed in numbers(given.seeds, "--seeds") for found in run(given, seed)]
        directory.make(given.out)
        bench.write(lines, table(lines, given), given.out)
    except UserError as error:
        sys.exit(f"cifar_dpt: error: {error}")
    except KeyboardInterrupt:
        sys.exit("cifar_dpt: interrupted; the same command goes on.")
    if given.json:
        about = {"environment": environment.describe(resolve(given.device))}
        print(json.dumps({"name": "dpt-cifar", "results": lines, **about}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of train/<class>/* and test/<class>/*")
    parser.add_argument("--labels-per-class", type=int, default=4)
    parser.add_argument("--images-per-class", default="0,100,1000", help="K, each in turn")
    parser.add_argument("--seeds", default="100")
    parser.add_argument("--arm", choices=("careful", "faithful"), default="careful")
    parser.add_argument("--steps", type=int, default=20_000, help="of each classifier")
    parser.add_argument("--diffusion-steps", type=int, default=50_000)
    parser.add_argument("--model", default="wrn-28-2-bn")
    parser.add_argument("--network", default="small", help="of the diffusion model, as --method.network of edm")
    parser.add_argument("--diffusion-batch", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64, help="labeled images of a step")
    parser.add_argument("--unlabeled-batch", type=int, default=7 * 64)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/cifar-dpt"), help="where the stages are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results.jsonl and table.md are written")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


def run(given: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The lines of a seed: the first classifier, and the second one for each K."""
    common = {"precision": given.precision, "channels_last": True, "evaluate_every": max(1, given.steps // 10)}
    classifier = {**ENGINE, **METHODS["freematch"], **common, "batch": given.batch}
    options = dpt.DPT(
        data=str(given.data),
        labels_per_class=given.labels_per_class,
        stage1="freematch",
        model=given.model,
        steps=given.steps,
        diffusion_steps=given.diffusion_steps,
        guidance=1.0,
        arm=given.arm,
        seed=seed,
        device=given.device,
        reading=READING,
        classifier={**classifier, "unlabeled_batch": given.unlabeled_batch},
        diffusion={"network": given.network, "model_lr": 1e-3, "batch": given.diffusion_batch, "drop": 0.0}
        | {"precision": given.precision},
    )
    lines = []
    for k in numbers(given.images_per_class, "--images-per-class"):
        stages = dpt.dpt(replace(options, images_per_class=k), given.work)["stages"]
        if not lines:
            lines.append(line("freematch-real", seed, given, stages["classifier-0"]))
        lines.append(line(f"dpt-k{k}-{given.arm}", seed, given, stages["classifier-1"]) | images(stages))
    return lines


def line(name: str, seed: int, given: argparse.Namespace, stage: Mapping[str, Any]) -> dict[str, Any]:
    result = weights.read_json(Path(stage["path"]) / "result.json")
    return {
        "method": name,
        "init": "none",
        "labels_per_class": given.labels_per_class,
        "seed": seed,
        "share": None,
        "accuracy": stage["test"],
        "seconds": round(result["seconds"], 1),
        "steps": result["steps"],
        "commit": result["environment"]["commit"],
        "device": result["environment"]["device"],
    }


def images(stages: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of labels and images between the classifiers."""
    if "images-1" not in stages:
        return {}
    measures = stages["quality-1"].get("measures", {})
    told = {f"fid of {name}": found["fid"] for name, found in measures.items()}
    return {"pseudo_labels": stages["labels-1"].get("accuracy"), **told}


def table(lines: list[dict[str, Any]], given: argparse.Namespace) -> str:
    rows = [
        [found["method"], str(found["seed"]), f"{100 * found['accuracy']:.2f}", f"{found['seconds']:.0f}"]
        for found in lines
    ]
    typed = {name: value for name, value in vars(given).items() if name not in ("data", "work", "out", "json")}
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in typed.items())
    told = [
        f"command: `python benchmarks/cifar_dpt.py --data FOLDER {options}`",
        f"device: {lines[0]['device']}",
        f"commit: {lines[0]['commit']}",
    ]
    facts = "".join(f"- {fact}\n" for fact in told)
    return f"# DPT on CIFAR-10\n\n{bench.markdown(['row', 'seed', 'test accuracy, %', 'seconds'], rows)}\n\n{facts}"


if __name__ == "__main__":
    main()
