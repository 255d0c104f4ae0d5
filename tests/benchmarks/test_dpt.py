"""The digits benchmark of DPT: what is compared with what, from stages that a test makes up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from semisynth import weights
from semisynth.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench(script):
    return script("dpt")


def test_every_cell_is_planned_once_and_rows_differ_in_what_they_say(bench) -> None:
    cells = [cell for group in bench.plan() for cell in group]
    assert len(cells) == len(set(cells)) and {cell.seed for cell in cells} == set(range(100, 110))
    assert {cell.seed for cell in cells if cell.labels == 4} == set(range(100, 105))
    options = {row: bench.Cell("linear-probe", row, 1, 100).options({"lr": 0.1}) for row in bench.ROWS}
    assert options["stage1"] == options["k128"]  # whose first classifier it is
    different = {repr(found) for row, found in options.items() if row != "stage1"}
    assert len(different) == len(options) - 1
    assert options["k12-faithful"].arm == "faithful" and options["k0"].images_per_class == 0
    assert all(found.classifier == {"lr": 0.1} and found.seed == 100 for found in options.values())


def result(path: Path, accuracy: float, seconds: float) -> dict[str, object]:
    environment = {"commit": "abc", "device": "cpu"}
    path.mkdir()
    weights.write_json(path / "result.json", {"steps": 300, "seconds": seconds, "environment": environment})
    return {"path": str(path), "validation": accuracy, "test": accuracy}


def test_a_line_holds_its_own_classifier_and_what_led_to_it(bench, tmp_path: Path) -> None:
    stages = {
        "classifier-0": result(tmp_path / "first", 0.5, 2.0),
        "labels-1": {"path": "", "accuracy": 0.6},
        "diffusion-1": result(tmp_path / "diffusion", 0.0, 60.0),
        "classifier-1": result(tmp_path / "second", 0.75, 3.0),
    }
    first = bench.line(bench.Cell("fixmatch", "stage1", 2, 100), stages)
    second = bench.line(bench.Cell("fixmatch", "k128", 2, 100), stages)
    assert (first["method"], first["accuracy"], first["seconds"]) == ("fixmatch stage1", 0.5, 2.0)
    assert (second["method"], second["accuracy"], second["seconds"]) == ("fixmatch k128", 0.75, 65.0)
    assert second["labels_per_class"] == 2 and second["commit"] == "abc"


def test_the_summary_pairs_rows_with_k_0_by_seed(bench) -> None:
    def lines(row: str, *accuracies: float) -> list[dict[str, object]]:
        names = {"method": f"fixmatch {row}", "init": "foundation", "labels_per_class": 1, "share": None}
        return [{**names, "seed": 100 + i, "accuracy": value} for i, value in enumerate(accuracies)]

    text = bench.summary([*lines("k0", 0.5, 0.6, 0.7), *lines("k128", 0.6, 0.7, 0.8)])
    assert "| fixmatch k128 | 70.0 (+10.0 [+10.0, +10.0]) | – | – |" in text
    assert "| fixmatch k0 | 60.0 (+0.0 [+0.0, +0.0])" in text


def test_a_search_comes_first(bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the search of 'fixmatch' is not finished: run --stage tune"):
        bench.tuned("fixmatch", tmp_path)


def test_images_are_compared_seed_by_seed(bench) -> None:
    held_out = {"fid": 0.2, "kid": 0.0, "precision": 0.9, "recall": 0.9, "accuracy": 0.98}

    def line(row: str, seed: int, fid: float, right: float | None) -> dict[str, object]:
        measures = {"fid": fid, "kid": 0.1, "precision": 0.5, "recall": 0.5, "accuracy": right, "held_out": held_out}
        return {"method": f"linear-probe {row}", "labels_per_class": 1, "seed": seed, **measures}

    lines = [line("k128", 100, 1.0, 0.9), line("k128", 101, 2.0, 0.7)]
    lines += [line("unconditional", 100, 3.0, None), line("unconditional", 101, 4.0, None)]
    text = bench.quality_table(lines).splitlines()
    assert text[2].startswith("| 1 | predicted labels | 2 | 1.500 ± ") and text[2].endswith("| – |")
    assert text[3].startswith("| 1 | no labels | 2 | 3.500 ± ") and text[3].endswith("| – | +2.00 [+2.00, +2.00] |")
    assert text[4] == "| – | held-out real images | – | 0.200 | 0.000 | 0.900 | 0.900 | 0.980 | – |"


def test_difficulty_is_told_beside_accuracy(bench) -> None:
    def line(row: str, seed: int, found: float, accuracy: float) -> dict[str, object]:
        names = {"method": f"linear-probe {row}", "init": "foundation", "labels_per_class": 2, "share": None}
        return {**names, "seed": seed, "difficulty": found, "accuracy": accuracy}

    lines = [
        line("k128", 100, 0.1, 0.8),
        line("k128", 101, 0.1, 0.9),
        line("s0.9", 100, 0.6, 0.7),
        line("s0.9", 101, 0.6, 0.8),
    ]
    text = bench.difficulty_table(lines).splitlines()
    assert text[2].startswith("| 2 | not told | 0.100 ± 0.000 | 0.850 ± ")
    assert text[3].startswith("| 2 | 0.9 | 0.600 ± 0.000 | 0.750 ± ") and text[3].endswith("| -10.0 [-10.0, -10.0] |")


def test_page_and_readme_are_what_the_results_say(bench, tmp_path: Path, monkeypatch) -> None:
    kept = {name: [json.loads(text) for text in (path / "results.jsonl").read_text().splitlines()]
            for name, path in (("lines", bench.CLASSIFIER), ("images", bench.GENERATOR))}  # fmt: skip
    for name, file in (("PAGE", "docs/dpt.md"), ("README", "README.md")):
        monkeypatch.setattr(bench, name, Path(shutil.copy(ROOT / file, tmp_path)))
    bench.fill(**kept)
    for file in ("docs/dpt.md", "README.md"):
        assert (tmp_path / Path(file).name).read_text() == (ROOT / file).read_text()
