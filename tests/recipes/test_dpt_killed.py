"""DPT that is killed again and again ends in the same bytes, and makes nothing again that was finished."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from semisynth import weights
from semisynth.recipes import dpt as recipe

# The command with shards of 8 images and checkpoints at every fifth step; it prints each stage that it comes to.
COMMAND = """
import sys
from semisynth.cli import main
from semisynth.recipes import dpt
dpt.SHARD = 8
of, named = dpt.Config.of, dpt.Work._named
dpt.Config.of = lambda content, *source: of({"checkpoint_every": 5, **content}, *source)
dpt.Work._named = lambda work, name, *rest: (print(name, flush=True), named(work, name, *rest))[1]
sys.exit(main(["dpt", *sys.argv[1:], "--out", "out"]))
"""
STAGES = ("classifier", "labels", "diffusion", "images", "quality", "data", "classifier")
DONE = {
    "classifier": "result.json",
    "diffusion": "result.json",
    "labels": "data.parquet",
    "data": "data.parquet",
    "quality": "quality.json",
}


def begun(place: Path, options: str) -> subprocess.Popen[str]:
    place.mkdir(exist_ok=True)
    command = [sys.executable, "-c", COMMAND, "--data", "digits-pool", "--labels-per-class", "3", *options.split()]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def whole(place: Path, options: str) -> list[float]:
    """Run to the end; returns how long each stage took."""
    process, times = begun(place, options), []
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() in STAGES:
            times.append(time.monotonic())
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert len(times) == len(STAGES)
    return [after - before for before, after in pairwise([*times, time.monotonic()])]


def killed(place: Path, options: str, stage: int, delay: float) -> str:
    """SIGKILL so many seconds after the command has come to this stage; returns at which one it was then."""
    process, seen = begun(place, options), [""]
    assert process.stdout is not None
    while len(seen) <= stage + 1 and (line := process.stdout.readline()):
        seen.append(line.strip())
    time.sleep(delay)
    process.kill()
    rest, told = process.communicate()
    assert process.returncode in (-9, 0), told
    seen += [name for name in rest.split("\n") if name in STAGES]
    return f"{len(seen) - 2} {seen[-1]}" if process.returncode else "end"


def finished(place: Path) -> Iterator[Path]:
    """The files of all that is finished: runs with their result, data sets, each shard of images."""
    for stage in place.glob("out/*-*"):
        name = DONE.get(stage.name.partition("-")[0])
        if name is None:
            yield from stage.glob("*.parquet")
        elif (stage / name).exists():
            yield from (file for file in stage.iterdir() if file.suffix != ".part")


def stamps(place: Path) -> dict[Path, tuple[int, int]]:
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in finished(place)}


def contents(place: Path) -> dict[str, bytes]:
    kept = {".safetensors", ".parquet"}
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.suffix in kept}


def assert_survives(place: Path, options: str, kills: Sequence[int]) -> list[str]:
    """kills: the stages in which it is killed, in order, at random moments; returns those in which it was."""
    source, hits = random.Random(0), []
    took = whole(place / "whole", options)
    for stage in kills:
        before = stamps(place / "cut")
        # Of what goes on where it stopped, several kills reach not further than its end.
        delay = source.uniform(0, took[stage] / (1 if STAGES[stage] in ("labels", "data") else kills.count(stage)))
        hits.append(killed(place / "cut", options, stage, delay))
        assert before.items() <= stamps(place / "cut").items()
    before = stamps(place / "cut")
    whole(place / "cut", options)
    assert before.items() <= stamps(place / "cut").items()
    assert contents(place / "cut") == contents(place / "whole")
    told = [weights.read_json(place / name / "out" / "dpt.json") for name in ("cut", "whole")]
    assert told[0] == told[1] and not list(place.rglob("*.part"))
    return hits


def test_a_killed_command_goes_on_from_what_is_finished(tmp_path: Path) -> None:
    options = "--steps 12 --diffusion-steps 12 --images-per-class 4 --sampler-steps 2"
    assert len(assert_survives(tmp_path, options, kills=(2, 3))) == 2


class Killed(BaseException):
    """What happens between two instructions."""


def test_an_end_before_any_file_has_its_name_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once at each file, which is written but not yet renamed: moments that a killed process seldom hits."""
    monkeypatch.setattr(recipe, "SHARD", 8)
    small = recipe.DPT("digits-pool", 3, steps=2, diffusion_steps=2, images_per_class=1, sampler_steps=1)
    recipe.dpt(small, tmp_path / "whole" / "out")
    replace, reached = os.replace, set()

    def cut(beside: Path, path: Path) -> None:
        if path not in reached:
            reached.add(path)
            raise Killed
        replace(beside, path)

    monkeypatch.setattr(os, "replace", cut)
    done = False
    while not done:
        before = stamps(tmp_path / "cut")
        with contextlib.suppress(Killed):
            done = bool(recipe.dpt(small, tmp_path / "cut" / "out"))
        assert before.items() <= stamps(tmp_path / "cut").items()
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    there = {file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*.*") if file.is_file()}
    assert {path.relative_to(tmp_path / "cut") for path in reached if tmp_path in path.parents} == there
