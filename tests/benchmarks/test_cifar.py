"""The CIFAR-10 benchmark on a few images: runs that go on where they stopped, and figures that are those of the log."""

from __future__ import annotations

import json
import sys

import pictures
import pytest
import torch
from torch import nn

from semisynth import weights
from semisynth.augment import Strong, Weak
from semisynth.engine import Engine
from semisynth.errors import UserError
from semisynth.methods import FixMatch
from semisynth.models import build

SMALL = ("--batch", "2", "--unlabeled-batch", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def cifar(script):
    return script("cifar")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures.folder(tmp_path_factory.mktemp("images"), per_class=12, size=(32, 32))


@pytest.fixture
def run(cifar, folder, tmp_path, monkeypatch, capsys):
    """Runs the script with these arguments, and returns the object that it prints last."""

    def call(*arguments):
        places = ("--data", str(folder), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--json")
        monkeypatch.setattr(sys, "argv", ["cifar.py", *places, *SMALL, *arguments])
        cifar.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_ten_steps_of_the_papers_settings(cifar, run, tmp_path, monkeypatch):
    found = run("--labels", "4", "--steps", "10")
    assert [line["method"] for line in found["results"]] == ["fixmatch", "freematch"]
    text = (tmp_path / "out" / "table.md").read_text()
    written = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert written == found["results"]
    for line in written:
        run_of = tmp_path / "work" / line["method"] / "4" / "100"
        config = weights.read_json(run_of / "config.json")
        told = ("lr", "momentum", "weight_decay", "ema", "model", "precision", "channels_last", "mirror", "unlabeled")
        assert [config[key] for key in told] == [0.03, 0.9, 5e-4, 0.999, "wrn-28-2-bn", "bf16", True, "yes", "pool"]
        assert (line["labels"], line["labels_per_class"], line["seed"], line["steps"]) == (4, 2, 100, 10)
        assert line["images"] == {"train": 22, "validation": 2, "test": 24}
        log = [json.loads(text) for text in (run_of / "log.jsonl").read_text().splitlines()]
        assert [step for step, *_ in line["curve"]] == [5, 10]
        assert line["curve"][-1] == [10, log[-1]["seconds"], line["validation_accuracy"]]
        assert line["steps_per_second"] == round(cifar.rate(log), 4)
        assert line["flop_per_step"] == written[0]["flop_per_step"] > 1e9
        share = line["flop_per_step"] * line["steps_per_second"] / line["peak_flop_per_second"]
        assert line["utilization"] == pytest.approx(share, abs=2e-4) and share > 0
        accuracy = weights.read_json(run_of / "result.json")["test"]["accuracy"]
        assert line["accuracy"] == accuracy and f" {100 * accuracy:.2f} |" in text
        assert line["device"] in text and str(line["commit"]) in text
    assert weights.read_json(tmp_path / "work/freematch/4/100/config.json")["method"]["fairness"] == 0.001
    assert found["command"] in text and str(tmp_path) not in text
    monkeypatch.setattr(Engine, "fit", None)  # what is finished is not trained again
    assert run("--labels", "4", "--steps", "10") == found


def test_a_run_of_so_many_minutes_keeps_its_steps(cifar, run, monkeypatch):
    tiny = ("--labels", "2", "--methods", "fixmatch", "--model", "wrn-10-1", "--minutes")
    paces = []
    monkeypatch.setattr(cifar, "pace", lambda *given, true=cifar.pace: paces.append(true(*given)) or 5.0)
    found = run(*tiny, "0.05")
    assert found["results"][0]["steps"] == 15 and len(paces) == 1 and paces[0] > 0
    assert found["command"].endswith(
        "--labels 2 --minutes 0.05 --batch 2 --unlabeled-batch 4 --model wrn-10-1 --device cpu"
    )
    monkeypatch.setattr(Engine, "fit", None)
    assert run(*tiny, "0.05")["results"] == found["results"] and len(paces) == 1


def test_runs_that_cannot_be_made_are_told_after_the_others_are_written(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("--methods", "fixmatch", "--model", "wrn-10-1", "--steps", "10", "--labels", "40", "4")
    assert ended.value.code == 2 and "1 cell failed" in capsys.readouterr().err
    written = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in written] == [4] and "| fixmatch | 4 |" in (tmp_path / "out/table.md").read_text()


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("--labels", "5"), "--labels 5: give a multiple of 2"),
        (("--labels", "0"), "--labels 0: give a multiple of 2"),
        (("--steps", "9"), "--steps is 9: give at least 10"),
        (("--minutes", "0"), "--minutes is 0.0: give more than 0"),
        (("--labels", "40", "--steps", "10"), "2 cells failed"),
    ],
)
def test_what_cannot_be_run_is_told(run, capsys, arguments, told):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_images_for_test_are_asked_for(cifar, folder, tmp_path):
    data = cifar.datasets.load(str(folder), cifar.READING)
    given = cifar.options().parse_args(["--data", "it", "--labels", "4"])
    cifar.check(given, data)
    none = cifar.replace(data, test=data.test.subset(torch.arange(0)))
    with pytest.raises(UserError, match="it has no images for test"):
        cifar.check(given, none)


def test_the_speed_is_the_median_of_blocks_without_start_and_evaluations(cifar):
    at = [(2, 9.0), (4, 10.0), (6, 11.0), (8, 12.0), (10, 22.0), (12, 22.5)]  # 2, 2, 2, 0.2 and 4 a second
    log = [{"step": step, "seconds": seconds} for step, seconds in at]
    assert cifar.rate(log) == 2.0 and cifar.rate(log[3:]) == 2.1
    log[3]["validation/accuracy"] = 0.5
    assert cifar.rate(log) == 2.0 and cifar.rate(log[3:]) == 4.0


def test_flop_are_those_counted_by_hand(cifar):
    n, m, inner = 3, 5, 7
    convolution, further, head = (nn.Conv2d(2, 4, 3), nn.Conv2d(4, inner, 1), nn.Linear(inner, 6))
    model = nn.Sequential(convolution, further, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    first, rest = 2 * (2 * 9) * 4 * 6 * 6, 2 * 4 * inner * 6 * 6 + 2 * inner * 6
    # The backward pass computes as much by the weights, and as much by the inputs but for the images.
    by_hand = m * (first + rest) + (n + m) * (2 * first + 3 * rest)
    method = FixMatch(model, Weak(True), Strong(True))
    assert cifar.flop(method, (2, 8, 8), n, m) == by_hand
    assert next(model.parameters()).device.type == "cpu"


def test_flop_of_the_paper_s_step(cifar):
    method = FixMatch(build("wrn-28-2-bn", 3, 10), Weak(True), Strong(True))
    assert cifar.flop(method, (3, 32, 32), 64, 448) == pytest.approx(0.85e12, rel=0.001)


def test_the_peak_is_of_the_quickest_product(cifar, monkeypatch):
    module = sys.modules[cifar.peak.__module__]
    seconds = {512: 1e-3, 1024: 1.5e-3, 2048: 0.5}
    sides = []
    monkeypatch.setattr(module, "timed", lambda a: sides.append((len(a), a.dtype)) or seconds[len(a)])
    assert cifar.peak(torch.device("cpu")) == 2 * 1024**3 / 1.5e-3
    assert dict.fromkeys(sides) == dict.fromkeys((side, torch.bfloat16) for side in seconds)


LINE = {
    "method": "fixmatch",
    "labels": 40,
    "seed": 100,
    "steps": 1000,
    "seconds": 90.0,
    "steps_per_second": 12.345,
    "flop_per_step": 8.5e11,
    "flop_per_second": 1.05e13,
    "peak_flop_per_second": 7e14,
    "utilization": 0.015,
    "validation_accuracy": 0.5,
    "accuracy": 0.4321,
    "test_interval": [0.42, 0.44],
    "curve": [[400, 30.0, 0.25], [800, 66.0, 0.375], [1000, 90.0, 0.5]],
    "model": "wrn-28-2-bn",
    "batch": [64, 448],
    **dict.fromkeys(("precision", "channels_last", "compile", "images", "data", "torch", "device"), True),
    "commit": "abc",
}


def test_the_table_tells_speed_and_how_the_accuracy_rose(cifar):
    text = cifar.table([LINE, {**LINE, "seed": 101, "commit": "abd"}], "python it.py")
    row = "| 100 | 1000 | 1.5 | 12.3 | 0.85 | 10.5 | 700 | 1.5 | 50.00 | 43.21 | [42.00, 44.00] |"
    curve = [*["–"] * 3, *["25.0 (0.5 min)"] * 4, *["37.5 (1.1 min)"] * 2, "50.0 (1.5 min)"]
    assert f"| fixmatch | 40 {row}" in text and f"| fixmatch | 40 | 101 | {' | '.join(curve)} |" in text
    assert "- command: `python it.py`\n" in text and "- commit: abc, abd\n" in text


def test_the_command_names_no_place_of_this_machine(cifar):
    parser = cifar.options()
    places = ["--data", "/a", "--work", "/b", "--out", "/c", "--json"]
    given = parser.parse_args([*places, "--no-channels-last", "--compile", "--labels", "20"])
    assert cifar.command(parser, given) == (
        "python benchmarks/cifar.py --data FOLDER --labels 20 --no-channels-last --compile"
    )
