"""The comparison on contaminated pools: which pool each fit reads, and what is written of them."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from semisynth import contamination, weights

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "rs-ssl"


@pytest.fixture
def rs_ssl(monkeypatch, tmp_path):
    """The script, which writes into copies."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("rs_ssl")
    for name, path in {"README": "README.md", "PAGE": "docs/contaminated.md"}.items():
        monkeypatch.setattr(module, name, Path(shutil.copy(ROOT / path, tmp_path)))
    return module


def tuned(work: Path, *rows: str) -> None:
    for row in rows:
        (work / "none" / "tune" / row).mkdir(parents=True)
        weights.write_json(work / "none" / "tune" / row / "best.json", {"lr": 0.05, "method": {"name": row}})


def small(rs_ssl: Any, grid: dict[Any, Any]) -> Any:
    return rs_ssl.Contaminated("rs-ssl", grid, {"none": 1}, (), borrowed=rs_ssl.COMPARISON.borrowed, tuning_labels=4)


def test_each_seed_and_share_has_its_pool(rs_ssl, tmp_path, monkeypatch):
    comparison = small(rs_ssl, {("none", 4, 0.2): ("100-101", ("rsmatch", "rsmatch-no-queue"))})
    assert comparison.pools() == [(0.4, 0), (0.4, 1), (0.2, 100), (0.2, 101)]
    tuned(tmp_path, "rsmatch")
    cells = comparison.cells(tmp_path)
    assert [cell.config.setting.data for cell in cells] == [
        str(tmp_path / "pools" / "0.2" / seed / "pool.parquet") for seed in ("100", "100", "101", "101")
    ]
    assert [cell.config.options["queue"] for cell in cells] == [True, False] * 2
    assert cells[1].path == tmp_path / "none/bench/share-0.2/rsmatch-no-queue/4/100"
    searched = comparison.search("none", "fixmatch", tmp_path).of(0)
    assert [Path(cell.config.setting.data).parent.name for cell in searched] == ["0", "1"]
    assert {Path(cell.config.setting.data).parents[1].name for cell in searched} == {"0.4"}
    made = []
    monkeypatch.setattr(rs_ssl, "mix", lambda options, out: made.append((options, out)))
    comparison.prepare(tmp_path)
    assert [(o.share, o.seed, o.labeled, o.through) for o, _ in made] == [
        (0.4, 0, 4, "8x8:17"),
        (0.4, 1, 4, "8x8:17"),
        (0.2, 100, 4, "8x8:17"),
        (0.2, 101, 4, "8x8:17"),
    ]
    assert [out for _, out in made] == [rs_ssl.pool(tmp_path, o.share, o.seed) for o, _ in made]


def test_detectors_are_averaged_over_what_is_finished(rs_ssl, tmp_path, monkeypatch):
    comparison = small(rs_ssl, {("none", 4, 0.4): ("100-102", ("rsmatch",))})
    monkeypatch.setattr(type(comparison), "results", tmp_path)
    tuned(tmp_path, "rsmatch")
    for seed, auroc in ((100, 0.7), (101, 0.8)):
        run, pool = tmp_path / f"none/bench/share-0.4/rsmatch/4/{seed}", tmp_path / f"pools/0.4/{seed}"
        run.mkdir(parents=True), pool.mkdir(parents=True)
        weights.write_json(run / "result.json", {})
        found = {"auroc": auroc, "calibration_error": 0.1, "share": {"true": 0.4, "estimated": 0.3}}
        purity = {"0": [None, 0.5, None, None, 0.5], "1": [None, None, None, None, None if seed == 100 else 1.0]}
        weights.write_json(run / contamination.NAME, {**found, "purity": purity})
        weights.write_json(pool / "mix.json", {"auroc": {"all": 0.6}})
    comparison.conclude(tmp_path)
    (line,) = json.loads((tmp_path / "detectors.json").read_text())["results"]
    assert (line["init"], line["labels"], line["share"], line["seeds"]) == ("none", 4, 0.4, 2)
    assert line["detector"] == pytest.approx(0.75) and line["queue purity"] == pytest.approx((0.5 + 0.75) / 2)
    assert (line["histogram"], line["estimated share"]) == (pytest.approx(0.6), pytest.approx(0.3))


def test_the_real_images_alone_are_those_of_share_0(rs_ssl):
    def line(method: str, share: float, seed: int, accuracy: float) -> dict[str, Any]:
        place = {"init": "none", "labels_per_class": 4, "share": share}
        return {**place, "method": method, "seed": seed, "accuracy": accuracy}

    lines = [line("fixmatch", 0.0, 100, 0.9), line("fixmatch", 0.0, 101, 0.8), line("fixmatch", 0.4, 100, 0.5)]
    lines += [line("rsmatch", 0.4, 100, 0.8), line("rsmatch", 0.4, 101, 0.7), line("fixmatch", 0.4, 101, 0.5)]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rs_ssl.contrasts(lines).splitlines()]
    at = rows[0].index("none, 4 per class, 40% synthetic")
    found = {row[0]: row[at] for row in rows}
    assert found["rsmatch - fixmatch"].startswith("+25.0") and found["rsmatch - flexmatch"] == "–"
    assert found["rsmatch - fixmatch on the real images alone"] == "-10.0 [-10.0, -10.0]"


def test_the_committed_pages_are_made_from_the_committed_results(rs_ssl):
    rs_ssl.write([json.loads(text) for text in (RESULTS / "results.jsonl").read_text().splitlines()])
    assert rs_ssl.README.read_text() == (ROOT / "README.md").read_text()
    assert rs_ssl.PAGE.read_text() == (ROOT / "docs" / "contaminated.md").read_text()
