"""What the comparisons write into the README and their page, and the options that a row of them is run with."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from semisynth import weights
from semisynth.errors import UserError

ROOT = Path(__file__).parents[2]
NOTE = "**Partial: 3 of 9 runs are missing.**"


@pytest.fixture
def comparison(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("comparison")


@pytest.fixture
def mpssl(comparison, monkeypatch, tmp_path):
    """The script of that name, which writes into copies."""
    module = importlib.import_module("mpssl")
    for name, path in {"README": "README.md", "PAGE": "docs/mpssl.md"}.items():
        monkeypatch.setattr(module, name, Path(shutil.copy(ROOT / path, tmp_path)))
    monkeypatch.setattr(module, "COSTS", tmp_path / "costs.json")
    return module


def line(method: str, seed: int, accuracy: float, labels: int = 1, init: str = "foundation") -> dict[str, Any]:
    return {"method": method, "init": init, "labels_per_class": labels, "seed": seed, "accuracy": accuracy}


# The middle seed is the mean; Student's t of two degrees of freedom is 4.3027, and 4.3027 * 10 / sqrt(3) = 24.84.
LINES = [
    *(line("mpssl", seed, accuracy) for seed, accuracy in zip((100, 101, 102), (0.7, 0.8, 0.9), strict=True)),
    *(line("supervised", seed, accuracy) for seed, accuracy in zip((102, 101, 100), (0.7, 0.8, 0.6), strict=True)),
    line("mpssl", 103, 0.8),
    line("mpssl", 100, 0.3, labels=2),
    line("supervised", 100, 0.1, init="none"),
]
MPSSL_TWICE = [*LINES[:6], line("mpssl", 100, 0.3, labels=2), line("mpssl", 101, 0.5, labels=2)]


def part(path: Path, name: str) -> str:
    """What stands between the markers."""
    return path.read_text().partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


def without(path: Path) -> str:
    """The text with nothing between its markers."""
    return re.sub(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", r"\1\3", path.read_text(), flags=re.S)


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a table's rows by their first one."""
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")]
    return {row[0]: row[1:] for row in found}


def test_figures_are_the_mean_and_half_of_its_t_interval(comparison):
    text = comparison.figures(MPSSL_TWICE, ("supervised", "mpssl"), [("foundation", 1), ("foundation", 2), ("none", 1)])
    assert text.splitlines() == [
        "| method | foundation, 1 per class | foundation, 2 per class | none, 1 per class |",
        "| --- | --- | --- | --- |",
        "| supervised | 70.0 ± 24.8 | – | – |",
        "| mpssl | 80.0 ± 24.8 | 40.0 ± 127.1 | – |",  # 12.706 * 14.14 / sqrt(2)
    ]
    assert comparison.figures(LINES, ("supervised",), [("none", 1)]).splitlines()[-1] == "| supervised | – |"


def test_a_contrast_is_paired_by_the_seeds_that_both_rows_have(comparison):
    # By seed 0.7 - 0.6, 0.8 - 0.8 and 0.9 - 0.7.
    assert comparison.contrast(LINES, "mpssl", "supervised", ("foundation", 1)) == "+10.0 [-14.8, +34.8]"
    assert comparison.contrast(LINES, "supervised", "mpssl", ("foundation", 1)) == "-10.0 [-34.8, +14.8]"
    assert comparison.contrast(LINES, "mpssl", "supervised", ("foundation", 2)) == "–"


def test_a_row_that_is_borrowed_takes_the_options_of_the_other_and_its_share_of_the_steps(comparison, tmp_path):
    found = comparison.Comparison(
        name="try",
        grid={("none", 2): ("100", ("scr-uniform", "scr-long", "mpssl-amortised"))},
        configurations={"none": 2},
        pivots=(),
        borrowed={"scr-long": comparison.Row("scr-uniform", 0.0127), "mpssl-amortised": comparison.Row("mpssl")},
    )
    assert found.tuned("none") == ["scr-uniform", "mpssl"]
    tuned = {"scr-uniform": (0.07, "scr", 2.5), "mpssl": (0.11, "mpssl", 3.5)}
    for row, (lr, name, weight) in tuned.items():
        folder = tmp_path / "none" / "tune" / row
        folder.mkdir(parents=True)
        weights.write_json(folder / "best.json", {"lr": lr, "method": {"name": name, "weight": weight}})
    own, long, amortised = found.cells(tmp_path)
    assert long.path == tmp_path / "none/bench/cells/scr-long/2/100"
    assert long.config.method == "scr" and long.config.options == own.config.options
    assert (long.config.engine.lr, long.config.options["weight"]) == (0.07, 2.5)
    assert (own.config.setting.steps, long.config.setting.steps) == (comparison.STEPS, 4)  # 3.81, rounded
    assert (long.config.setting.generator, long.config.setting.unlabeled) == ("glyphs", "generator")
    options = amortised.config.options
    assert (amortised.config.engine.lr, options["weight"], amortised.config.setting.steps) == (0.11, 3.5, 300)
    assert (options["every"], options["shared"]) == (4, True)  # its own, as the row is named


@pytest.mark.parametrize("note", ["", NOTE])
def test_write_fills_in_what_stands_between_the_markers_and_no_more(mpssl, note):
    before = [without(path) for path in (mpssl.README, mpssl.PAGE)]
    mpssl.write(LINES, note)
    short, ablation, contrasts = (
        part(mpssl.README, "mpssl"),
        part(mpssl.PAGE, "ablation"),
        part(mpssl.PAGE, "contrasts"),
    )
    assert list(rows(short)) == ["method", "---", *mpssl.MAIN]
    assert list(rows(ablation)) == ["method", "---", *mpssl.ROWS]
    assert (
        rows(short)["supervised"] == ["70.0 ± 24.8", *["–"] * (len(mpssl.COLUMNS) - 1)] == rows(ablation)["supervised"]
    )
    assert rows(contrasts)["mpssl - supervised"] == ["+10.0 [-14.8, +34.8]", "–", "–", "–"]
    assert [text.count(NOTE) for text in (short, ablation, contrasts)] == [int(bool(note))] * 3
    options = part(mpssl.PAGE, "options")
    assert "| `mpssl` | `weight` | `" in options and "| `transport` | `refine` | `True` |" in options
    assert part(mpssl.PAGE, "cost") == "Not measured yet.\n"
    assert [without(path) for path in (mpssl.README, mpssl.PAGE)] == before
    written = [path.read_bytes() for path in (mpssl.README, mpssl.PAGE)]
    mpssl.write(LINES, note)
    assert [path.read_bytes() for path in (mpssl.README, mpssl.PAGE)] == written


def test_costs_are_written_once_they_are_measured(mpssl):
    ratios = {"SCR": (1.0, 1.0), "naive": (3.456, 2.5), "shared": (2.346, 1.9)}
    measured = [
        {
            "network": "small-cnn",
            "precision": precision,
            "variant": name,
            "ratio": ratio,
            "memory": memory,
            "count": 2.29,
        }
        for precision in ("float32", "bf16")
        for name, (ratio, memory) in ratios.items()
    ]
    measured[-1]["exact"] = 3e-15
    origin = {"command": "python h.py", "environment": {"device": "cpu: x", "commit": "abc"}}
    mpssl.COSTS.write_text(json.dumps({"results": measured, **origin}))
    mpssl.write(LINES)
    text = part(mpssl.PAGE, "cost")
    assert text.splitlines()[0] == "| network | precision | naive | shared | memory, naive | memory, shared |"
    assert text.count("| 3.46 | 2.35 | 2.50 | 1.90 |") == 2
    assert rows(text)["in theory"] == ["", "2.29", "2.29", "", ""]
    assert "`python h.py` (cpu: x, commit abc)" in text and "3e-15" in text


def test_the_committed_pages_are_made_from_the_committed_results(mpssl, monkeypatch):
    results = ROOT / "benchmarks" / "results"
    monkeypatch.setattr(mpssl, "COSTS", results / "hypergradient.json")
    before = [path.read_text() for path in (mpssl.README, mpssl.PAGE)]
    mpssl.write([json.loads(text) for text in (results / "mpssl" / "results.jsonl").read_text().splitlines()])
    assert [path.read_text() for path in (mpssl.README, mpssl.PAGE)] == before


def test_so_is_the_readme_s_table_of_the_real_pool(comparison, monkeypatch, tmp_path):
    pool = importlib.import_module("pool")
    monkeypatch.setattr(pool, "README", Path(shutil.copy(ROOT / "README.md", tmp_path)))
    results = ROOT / "benchmarks" / "results" / "ssl" / "results.jsonl"
    pool.write([json.loads(text) for text in results.read_text().splitlines()])
    assert pool.README.read_text() == (ROOT / "README.md").read_text()
    assert [f"| {row} |" in pool.README.read_text() for row in pool.ROWS] == [True] * 5


@pytest.mark.parametrize("file, name", [("README", "mpssl"), ("PAGE", "ablation"), ("PAGE", "cost")])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_page_without_a_marker_is_named(mpssl, file, name, slash):
    path = getattr(mpssl, file)
    path.write_text(path.read_text().replace(f"<!-- {slash}{name} -->", ""))
    with pytest.raises(UserError, match=rf"{path.name} lacks the markers <!-- {name} --> and <!-- /{name} -->"):
        mpssl.write(LINES)


def test_without_a_marker_a_page_stays_as_it_was(comparison, tmp_path):
    for text in ("<!-- a -->\nold\n", "old\n<!-- /a -->\n", "<!-- /a -->\nold\n<!-- a -->\n"):
        (tmp_path / "page.md").write_text(text)
        with pytest.raises(UserError, match=r"page\.md lacks the markers"):
            comparison.between(tmp_path / "page.md", "a", "new")
        assert (tmp_path / "page.md").read_text() == text
