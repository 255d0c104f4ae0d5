"""The benchmark of the hypergradient on tiny sizes: it runs, its variants are exact, and its counts are right."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hypergradient.py"


@pytest.mark.parametrize("network", ["small-cnn", "small-cnn-bn"])
def test_every_variant_is_exact_and_counted(network, tmp_path):
    sizes = ["--networks", network, "--batch", "8", "--repeats", "1", "--json", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *sizes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout.splitlines()[-1])
    assert content == json.loads((tmp_path / "out.json").read_text()) and content["name"] == "hypergradient"
    assert (tmp_path / "out.md").read_text().count(f"| {network} |") == len(content["results"])
    lines = {(line["precision"], line["variant"]): line for line in content["results"]}
    for precision in ("float32", "bf16"):
        for variant in ("naive", "unshared", "shared", "amortised"):
            line = lines[precision, variant]
            assert line["exact"] < 1e-10 and line["memory"] > 1 and line["ratio"] > 0
        assert lines["float32", "shared"]["error"] < 0.02
        assert lines[precision, "shared"]["memory"] < lines[precision, "naive"]["memory"]
    counts = {variant: lines["float32", variant]["count"] for variant in ("SCR", "naive", "shared", "amortised")}
    assert counts == {"SCR": 1.0, "naive": 3.29, "shared": 2.29, "amortised": 1.32}
    for package in ("torchopt", "higher"):
        assert (("float32", package) in lines) != (f"{package}: not installed" in done.stdout)


def test_a_period_of_steps_counts_as_that_many(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    benchmark, cpu = importlib.import_module("hypergradient"), torch.device("cpu")
    monkeypatch.setattr(benchmark, "period", lambda *_: lambda: None)
    monkeypatch.setattr(benchmark.timing, "timed", lambda *_: 8.0)
    monkeypatch.setattr(benchmark.timing, "peak", lambda *_: 2**20)
    given = SimpleNamespace(batch=4, repeats=3)
    lines = benchmark.measure("small-cnn", "float32", dict.fromkeys(benchmark.VARIANTS), given, cpu)
    found = {line["variant"]: (line["ratio"], line["interval"], line["ms"], line["blocks"]) for line in lines}
    amortised = found.pop("amortised")
    assert benchmark.PERIOD == 4 and amortised == (0.25, [0.25, 0.25], 2000.0, 3)
    assert all(value == (1.0, [1.0, 1.0], 8000.0, 3) for value in found.values())
