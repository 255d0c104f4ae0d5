"""The benchmark of the hypergradient on tiny sizes: it runs, its variants are exact, and its counts are right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
            assert line["exact"] < 1e-10 and line["memory"] > 1 and line["ratio"] > 1
        assert lines["float32", "shared"]["error"] < 0.02
        assert lines[precision, "shared"]["memory"] < lines[precision, "naive"]["memory"]
    counts = {variant: lines["float32", variant]["count"] for variant in ("SCR", "naive", "shared", "amortised")}
    assert counts == {"SCR": 1.0, "naive": 3.29, "shared": 2.29, "amortised": 1.32}
    for package in ("torchopt", "higher"):
        assert (("float32", package) in lines) != (f"{package}: not installed" in done.stdout)
