"""The decoding benchmark on a few images: it measures what it says, and decodes nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def decode(script):
    return script("decode")


def test_a_few_images(decode, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["decode.py", "--images", "200", "--repeats", "2", "--folder", str(tmp_path)])
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path))  # is set again
    kept = {}
    monkeypatch.setattr(decode.timing, "conclude", lambda name, given, device, results: kept.update({name: results}))
    monkeypatch.setattr(decode, "peak", lambda root, name, fit: {"tenth": 100.0, "whole": 103.0}[name] + fit)
    decode.main()
    rate, resumption, memory = kept["decode"]
    assert rate["images"] == 200 and rate["processes"] == 1 and rate["ratio"] > 0 and rate["target"] == 0.8
    assert resumption["killed"] and resumption["twice"] == 0
    assert 100 <= resumption["before"] <= 200 and resumption["before"] + resumption["after"] == 200
    assert memory["peaks"] == [(100 + fit, 103 + fit) for fit in range(5)] and memory["target"] == 0.05
    assert (memory["tenth"], memory["whole"], memory["growth"]) == (102.0, 105.0, 0.0294)
    assert "0 decoded twice" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_what_is_decoded_twice_is_counted(decode, tmp_path, monkeypatch):
    def child(code, path, side, at):
        if at:
            (tmp_path / "cache" / "it").mkdir(parents=True)
            chunk = {"first": 0, "count": 60, "hash": 0, "done": {}, "unreadable": {}}
            (tmp_path / "cache" / "it" / "journal.jsonl").write_text(json.dumps(chunk))
        return subprocess.CompletedProcess([], -9 if at else 0, "45")

    monkeypatch.setattr(decode, "child", child)
    monkeypatch.setattr(decode.time, "sleep", lambda seconds: None)
    assert decode.resumption(tmp_path, 100) == {"killed": True, "before": 60, "after": 45, "twice": 5}


def test_seconds_are_told_apart_by_process(decode):
    clock, own, children = decode.measured(lambda: sum(range(200_000)))
    assert clock > 0 and own >= 0 and children == 0


def test_peak_memory_is_that_of_another_process(decode, tmp_path):
    decode.make(tmp_path, 400, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMISYNTH_CACHE", str(tmp_path / "cache"))
        decode.child(decode.LOAD, tmp_path / "whole.csv", 64, 0)
        with pytest.raises(AssertionError, match="no_such"):
            decode.child("import no_such")
        ours = np.ones(2**31, np.uint8)  # which the peak of a process that we start says nothing of
        assert 50 < decode.peak(tmp_path, "whole", 0) < ours.nbytes / 1e6
