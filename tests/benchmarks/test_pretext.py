"""What the benchmark of pretext features chooses, and what it writes."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from semisynth import weights
from semisynth.recipes.config import Config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("pretext")


def line(row: str, seed: int, accuracy: float, measure: str = "linear probe", name: str = "cifar") -> dict[str, Any]:
    about = {"lr": 0.01, "block": "block-1", "commit": "abc", "device": "cpu"}
    return {"set": name, "row": row, "seed": seed, "measure": measure, "accuracy": accuracy, **about}


def probed(place: Path, *validation: float) -> None:
    """A probe whose blocks have these validation accuracies; the test images would choose the last one."""
    place.mkdir(parents=True)
    linear = [
        {"measure": "linear", "block": f"block-{i}", "each": [{"validation": found, "test": i / 10}]}
        for i, found in enumerate(validation, 1)
    ]
    weights.write_json(place / "probe.json", {"rows": linear})


def test_block_and_learning_rate_are_chosen_on_validation(benchmark: ModuleType, tmp_path: Path) -> None:
    work = benchmark.Work(tmp_path, None)
    for lr, found in zip(benchmark.LRS, ((0.5, 0.3, 0.4), (0.2, 0.6, 0.1), (0.3, 0.3, 0.5)), strict=True):
        probed(work.probed("digits", "real", lr, benchmark.TUNING_SEED), *found)
    assert work.tuned("digits", "real") == benchmark.LRS[1] and work.tuned("digits", "random") is None
    best = benchmark.chosen(work.probed("digits", "real", benchmark.LRS[1], benchmark.TUNING_SEED))
    assert (best["block"], best["test"]) == ("block-2", 0.2)
    assert benchmark.TUNING_SEED not in {*benchmark.SEEDS["cifar"], *benchmark.SEEDS["digits"]}


def test_what_starts_differs_in_its_features_alone(benchmark: ModuleType, tmp_path: Path) -> None:
    work = benchmark.Work(tmp_path, None)
    for row in ("real", "synthetic"):
        for lr in benchmark.LRS:
            probed(work.probed("digits", row, lr, benchmark.TUNING_SEED), lr)
    found: dict[tuple[str, int], dict[str, Config]] = {}
    for method, row, cell in work.starts():
        found.setdefault((method, cell.config.engine.seed), {})[row] = cell.config
    assert len(found) == 2 * len(benchmark.SEEDS["digits"])
    for (method, seed), pair in found.items():
        fields = {row: config.flat() for row, config in pair.items()}
        nothing, learned = fields["none"], fields["real" if method == "fixmatch" else "synthetic"]
        assert {name for name in nothing if nothing[name] != learned[name]} == {"init"} and nothing["init"] == "none"
        assert learned["init"].endswith(f"/{seed}") and nothing["unlabeled"] == (
            "pool" if method == "fixmatch" else "none"
        )


def test_rows_are_paired_by_seed(benchmark: ModuleType) -> None:
    found = [line("rotation", 100, 0.5), line("rotation", 101, 0.7), line("random", 101, 0.4), line("random", 100, 0.4)]
    assert benchmark.mean(found, "cifar", "rotation", "linear probe") == "60.0 ± 127.1"  # 12.706 * 14.14 / sqrt(2)
    assert benchmark.difference(found, "cifar", "rotation", "random", "linear probe") == "+20.0 [-107.1, +147.1]"
    assert benchmark.mean(found, "digits", "rotation", "linear probe") == "–"


def test_page_and_readme_have_the_committed_results(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [json.loads(text) for text in (benchmark.RESULTS / "results.jsonl").read_text().splitlines()]
    for name, path in {"PAGE": "docs/pretext.md", "README": "README.md"}.items():
        monkeypatch.setattr(benchmark, name, Path(shutil.copy(ROOT / path, tmp_path)))
    benchmark.fill(found)
    for path in (benchmark.PAGE, benchmark.README):
        there = ROOT / ("docs" if path.name == "pretext.md" else ".") / path.name
        assert path.read_text() == there.read_text()
    assert {line["seed"] for line in found if line["set"] == "cifar"} == {*benchmark.SEEDS["cifar"]}
