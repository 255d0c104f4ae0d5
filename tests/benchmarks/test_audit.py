"""The benchmark of the audit: one cell from end to end, and what its table says of many."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

from semisynth.data import parquet


@pytest.fixture(scope="module")
def audit(script):
    return script("audit")


def test_a_run_of_one_cell(audit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit, "GENERATORS", ("digits-vae",))
    arguments = ["audit.py", "--seeds", "0", "--shares", "0.4", "--json", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    audit.main()
    (line,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert (line["generator"], line["share"], line["seed"]) == ("digits-vae", 0.4, 0)
    assert abs(line["true"] - 0.4) < 0.001 and line["interval"][0] <= line["true"] <= line["interval"][1]
    assert line["auroc"] > 0.75 and line["auroc"] > line["baseline"] > 0.5
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["name"] == "audit" and printed["rows"][0]["covered"] == 1
    text = (tmp_path / "out" / "table.md").read_text()
    assert (
        "| digits-vae, 40 | 1 of 1 |" in text
        and "Made by `python benchmarks/audit.py --seeds 0 --shares 0.4 --json`." in text
    )
    assert audit.command(["--out=/a", "--json"]) == "python benchmarks/audit.py --json"


def line(share: float, estimate: float, low: float, high: float, auroc: float | None = 0.7) -> dict[str, Any]:
    found = {"generator": "g", "share": share, "true": share, "estimate": estimate, "interval": [low, high]}
    return {**found, "seconds": 2.0, "auroc": auroc, "baseline": auroc and auroc - 0.2}


def test_the_summary_counts_what_the_intervals_hold(audit):
    lines = [line(0.4, 0.3, 0.1, 0.5), line(0.4, 0.0, 0.0, 0.3, 0.9), *(line(0.0, e, e, 0.4, None) for e in (0, 0.5))]
    some, none = audit.summary(lines)
    assert (some["covered"], some["found"], some["n"], some["reached"]) == (1, 1, 2, False)
    assert (some["estimate"], some["low"], some["high"]) == (0.15, 0.05, 0.4)
    assert some["auroc"] == pytest.approx(0.8) and some["baseline"] == pytest.approx(0.6)
    assert (none["covered"], none["estimate"], none["auroc"], none["reached"]) == (1, 0.25, None, False)
    assert audit.summary([line(0.0, 0.0, 0.0, 0.4, None)])[0]["reached"]
    assert "| g, 40 | 1 of 2 | 1 of 2 | 15.0 | 5 to 40 | 0.800 | 0.600 | 2.0 |" in audit.table([some])
    assert "| g, 0 | 1 of 2 | 1 of 2 | 25.0 | 25 to 40 | – | – | 2.0 |" in audit.table([none])


def test_the_truth_is_joined_by_the_row(audit, tmp_path):
    parquet.write(tmp_path / "hidden.parquet", {"row": [2, 5, 7], "source": ["real", "g", "real"]})
    parquet.write(tmp_path / "ranking.parquet", {"rank": [1, 2, 3], "row": [7, 2, 5]})
    synthetic, ranks = audit.truth(tmp_path / "hidden.parquet", tmp_path / "ranking.parquet")
    assert np.array_equal(synthetic, [False, True, False]) and np.array_equal(ranks, [2, 3, 1])
