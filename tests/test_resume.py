"""Cut off anywhere and run again, a run ends in the same bytes as one that was left alone: for every method."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from semisynth.method import Batch
from semisynth.recipes import single
from semisynth.recipes.config import Config, method_names
from semisynth.recipes.materials import Materials


class CutOff(Exception):
    """What happens to a run that is killed."""


def weigh(model: nn.Module) -> dict[str, float]:
    return {"validation/weight": torch.stack([p.abs().sum() for p in model.parameters()]).sum().item()}


def fit(config: Config, out: Path, until: int = 10**9) -> dict[str, Tensor]:
    """The averaged weights; what surrounds the run is another each time. No step up to the checkpoint is run again."""
    torch.manual_seed(random.randrange(2**32))
    materials = Materials(config)

    def stream(step: int) -> Batch:
        assert step >= done
        if step == until:
            raise CutOff
        return materials.stream(step)

    out.mkdir(exist_ok=True)
    done = tiny.checkpoint(out)["step"] if (out / "checkpoint.pt").exists() else 0
    model = config.engine.fit(materials.method, stream, config.setting.steps, out, weigh)
    return model.state_dict()


def assert_resumes(config: Config, path: Path, cuts: tuple[int, ...]) -> None:
    whole = fit(config, path / "whole")
    for until in cuts:
        with pytest.raises(CutOff):
            fit(config, path / "cut", until)
    assert tiny.same(dict(whole), dict(fit(config, path / "cut")))
    assert tiny.log(path / "cut") == tiny.log(path / "whole")
    assert tiny.same(tiny.checkpoint(path / "cut"), tiny.checkpoint(path / "whole"))


@pytest.mark.parametrize("method", method_names())
def test_every_method_resumes_bitwise_at_any_step(method, generator, tmp_path):
    config = tiny.config(method, generator, steps=6, checkpoint_every=2, evaluate_every=3)
    assert_resumes(config, tmp_path, cuts=(1, 3, 4, 5))


@pytest.mark.parametrize("method", ["fixmatch", "rsmatch", "pretext"])
def test_images_of_both_kinds_resume_bitwise(method, generator, tmp_path):
    config = tiny.config(method, generator, unlabeled="both", steps=4, checkpoint_every=1)
    assert_resumes(config, tmp_path, cuts=(2, 3))


def test_tasks_weighed_by_frank_wolfe_resume_bitwise(tmp_path):
    config = tiny.config("pretext", options={"combine": "frank-wolfe"}, steps=4, checkpoint_every=1)
    assert_resumes(config, tmp_path, cuts=(2, 3))


CASES: dict[str, dict[str, Any]] = {
    "an update that did not run since": {"options": {"every": 4}},
    "gradients of an earlier update": {"options": {"every": 2, "shared": True}},
    "batch statistics": {"model": "small-cnn-bn"},
    "channels last": {"channels_last": True},
    "bf16": {"precision": "bf16", "clip": 0.5, "schedule": "constant"},
}


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_mpssl_resumes_bitwise_with(fields, generator, tmp_path):
    assert_resumes(tiny.config("mpssl", generator, **fields, steps=4, checkpoint_every=1), tmp_path, cuts=(2, 3))


def killed(command: list[str], out: Path, when: int) -> None:
    """Run until there is a checkpoint and a log of `when` lines, then SIGKILL."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not _reached(out, when):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "result.json").exists()


def _reached(out: Path, when: int) -> bool:
    log = out / "log.jsonl"
    return (out / "checkpoint.pt").exists() and len(log.read_bytes().splitlines()) >= when


def assert_survives(content: dict[str, Any], path: Path, kills: tuple[int, ...]) -> None:
    command = [sys.executable, "-m", "semisynth", "fit", *tiny.options(content), "--out", str(path / "cut")]
    for when in kills:
        killed(command, path / "cut", when)
    step = tiny.checkpoint(path / "cut")["step"]
    before = (path / "cut" / "log.jsonl").read_bytes().splitlines()[:step]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = single.fit(Config.of(content), path / "whole", show=False)
    found = json.loads((path / "cut" / "result.json").read_text())
    for key in ("test", "validation", "finished"):
        assert found.get(key) == whole.get(key)
    for name in ("config.json", "model.safetensors"):
        assert (path / "cut" / name).read_bytes() == (path / "whole" / name).read_bytes()
    assert tiny.log(path / "cut") == tiny.log(path / "whole")
    assert tiny.same(tiny.checkpoint(path / "cut"), tiny.checkpoint(path / "whole"))
    assert (path / "cut" / "log.jsonl").read_bytes().splitlines()[:step] == before  # times too: no step was run again
    assert not list((path / "cut").glob("*.part"))


@pytest.mark.parametrize("method", ["supervised", "fixmatch", "mpssl"])
def test_a_killed_process_goes_on_by_the_same_command(method, generator, tmp_path):
    assert_survives(tiny.content(method, generator, steps=60, checkpoint_every=7), tmp_path, kills=(10,))
