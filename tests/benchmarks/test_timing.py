"""The speed benchmarks on tiny sizes: they run, and their ratios are those of the times they report."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def test_the_ratio_is_the_median_over_pairs_and_lies_in_its_interval(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    timing = importlib.import_module("timing")
    assert timing.ratio([2.0, 6.0, 9.0], [1.0, 2.0, 3.0]) == {"ratio": 3.0, "interval": [2.0, 3.0], "blocks": 3}
    assert timing.ratio([1.0], [4.0]) == {"ratio": 0.25, "interval": [0.25, 0.25], "blocks": 1}


def content(script, out, *arguments):
    """The JSON object of a run of this benchmark."""
    command = [sys.executable, str(SCRIPTS / script), *arguments, "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads(out.read_text())
    assert found["environment"]["threads"] == 1 and found["command"].endswith(str(out))
    return found


def assert_centred(line):
    low, high = line["interval"]
    assert 0 < low <= line["ratio"] <= high


def test_step(tmp_path):
    sizes = ["--batch", "4", "--unlabeled-batch", "6", "--size", "8", "--channels", "1", "--seconds", "0.01"]
    found = content("step.py", tmp_path / "out.json", *sizes, "--repeats", "4", "--networks", "small-cnn", "wrn-10-1")
    assert found["name"] == "step" and [line["network"] for line in found["results"]] == ["small-cnn", "wrn-10-1"]
    for line in found["results"]:
        assert_centred(line)
        assert line["blocks"] == 4 and line["steps_of_a_block"] >= 1 and line["target"] == 1.1
        assert (line["images"], line["shape"]) == ([4, 6], [1, 8, 8])
        assert 0.2 < line["ratio"] / (line["engine_ms"] / line["bare_ms"]) < 5


def test_step_of_rsmatch_over_fixmatch(tmp_path):
    sizes = ["--batch", "4", "--unlabeled-batch", "6", "--size", "8", "--channels", "1", "--seconds", "0.01"]
    found = content("step.py", tmp_path / "out.json", *sizes, "--repeats", "3", "--networks", "small-cnn", "--rsmatch")
    line = found["results"][0]
    assert_centred(line)
    assert line["sides"] == ["rsmatch", "fixmatch"] and line["target"] == 1.2 and line["blocks"] == 3


def test_augment(tmp_path):
    found = content("augment.py", tmp_path / "out.json", "--repeats", "3", "--batch", "64", "--seconds", "0.02")
    assert found["name"] == "augment" and [line["shape"] for line in found["results"]] == [[3, 32, 32], [1, 16, 16]]
    for line in found["results"]:
        assert_centred(line)
        assert 0.2 < line["ratio"] / (line["ours"] / line["pillow"]) < 5
        assert line["ours"] > 0 and line["pillow"] > 0
