"""The benchmark of samplers, tiny: memory stays where steps are computed again, and grows where they are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from semisynth.generators import diffusion, sampler

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("diffusers")
    made = script("sampler")
    monkeypatch.setattr(made, "SHAPE", (3, 16, 16))
    return made


@pytest.mark.parametrize("name", ["dit", "edm"])
def test_what_is_kept_of_a_step_is_measured(name: str, benchmark, monkeypatch, tmp_path, capsys) -> None:
    out = tmp_path / "out.json"
    sizes = ["--steps", "1", "4", "--synthetic", "8", "--repeats", "1", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr("sys.argv", ["sampler.py", "--generators", name, *sizes, "--out", str(out)])
    before = diffusion.again, sampler.again
    benchmark.main()
    assert (diffusion.again, sampler.again) == before
    one, four = json.loads(out.read_text())["results"]
    assert (one["k"], four["k"], one["pass"], four["pass"]) == (1, 4, None, 1.0)
    assert (one["passes"], four["passes"]) == ((1, 7) if name == "edm" else (1, 4))
    assert four["growth"] < 1.1 < 1.3 < four["kept_mib"] / four["memory_mib"]
    assert benchmark.table([one, four]) in capsys.readouterr().out


def test_time_is_told_by_the_passes(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 1 s besides 2 s for each pass, and 3 s more for each of the last ones."""
    monkeypatch.setattr(benchmark, "step", lambda generator, *_: lambda: generator)
    monkeypatch.setattr(benchmark.timing, "timed", lambda run, _: {1: 3.0, 4: 9.0, 16: 69.0}[run()])
    monkeypatch.setattr(benchmark.timing, "peak", lambda run, _: run() * 2**20)
    given = benchmark.argparse.Namespace(steps=[1, 4, 16], repeats=3)
    found = benchmark.measured("dit", lambda k: k, given, torch.device("cpu"))
    assert [(line["ms"], line["pass"], line["growth"]) for line in found] == [
        (3000.0, None, 1.0),
        (9000.0, 1.0, 4.0),
        (69000.0, 2.2, 16.0),
    ]


def test_the_page_has_the_committed_results(benchmark: ModuleType) -> None:
    content = json.loads((RESULTS / "sampler.json").read_text())
    page = (ROOT / "docs" / "generators.md").read_text()
    assert page.partition("<!-- sampler -->\n")[2].partition("\n<!-- /sampler -->")[0] == benchmark.told(content)


def test_a_page_is_written_if_asked(benchmark, monkeypatch, tmp_path) -> None:
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text("before\n<!-- sampler -->\nold\n<!-- /sampler -->\nafter\n")
    monkeypatch.setattr(benchmark, "measured", lambda name, *_: [dict.fromkeys(benchmark.KEYS, name)])
    monkeypatch.setattr("sys.argv", ["sampler.py", "--generators", "edm", "--out", str(out), "--page", str(page)])
    benchmark.main()
    assert "| edm |" in page.read_text() and "old" not in page.read_text() and page.read_text().endswith("after\n")
