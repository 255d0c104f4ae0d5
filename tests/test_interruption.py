"""Ctrl-C, as a terminal sends it, to each kind of long work: no half file, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pictures
import pytest
import tiny
from safetensors.torch import load_file
from test_predict import table

from semisynth import interruption
from semisynth.cli import main
from semisynth.data import chunks
from semisynth.engine import Engine
from semisynth.method import Batch, Losses
from semisynth.recipes import single

SECONDS = 600  # in which a command begins, and in which it ends, under any load
# The command, where each call of a function takes a moment longer, so that it is still at work when it is told to end.
SLOWLY = """
import importlib, sys, time
from semisynth import cli
where, name, *arguments = sys.argv[1:]
place = importlib.import_module(where)
*outer, name = name.split(".")
for part in outer:
    place = getattr(place, part)
usual = getattr(place, name)
setattr(place, name, lambda *given, **more: (time.sleep(0.05), usual(*given, **more))[1])
sys.exit(cli.main(arguments))
"""


def interrupt(slow: str, arguments: Sequence[str], begun: Callable[[], bool]) -> str:
    """Send Ctrl-C to a command and its workers once it has begun; returns what it says on stderr."""
    command = [sys.executable, "-c", SLOWLY, *slow.split(":"), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + SECONDS
    while not begun() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, told = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (130, "") and "Traceback" not in told, told
    return told.splitlines()[-1]


def test_a_fit_goes_on_after_the_very_step(tmp_path):
    content = tiny.content("fixmatch", steps=30, log_every=2, checkpoint_every=0)
    arguments = ["fit", *tiny.options(content), "--out", str(tmp_path / "run")]
    log = tmp_path / "run" / "log.jsonl"
    told = interrupt("semisynth.engine:_Step.__call__", arguments, lambda: log.exists() and log.stat().st_size > 0)
    step = tiny.checkpoint(tmp_path / "run")["step"]
    assert 2 <= step < 30 and told == f"semisynth: interrupted; the same command goes on after step {step}."
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "config.json",
        "data.json",
        "log.jsonl",
        "checkpoint.pt",
    }
    assert main(arguments) == 0 and main([*arguments[:-1], str(tmp_path / "whole")]) == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert tiny.same(one, other)


def test_decoding_goes_on_without_decoding_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path / "cache"))
    data = pictures.folder(tmp_path / "set", 30, splits=("train",))
    content = tiny.content("supervised", steps=1, data=str(data))
    arguments = ["fit", *tiny.options(content), "--out", str(tmp_path / "run")]

    def journals() -> list[Path]:
        return [file for file in (tmp_path / "cache").glob("*/journal.jsonl") if file.stat().st_size]

    interrupt("semisynth.data.chunks:converted", arguments, lambda: bool(journals()))
    [journal] = journals()
    kept = sum(chunk.count for chunk in chunks.journaled(journal, 30))
    assert 0 < kept < 60 and not (tmp_path / "run").exists()
    assert not {"images.u8", "meta.json"} & {file.name for file in journal.parent.iterdir()}
    decode, counts = chunks.decode, []
    monkeypatch.setattr(chunks, "decode", lambda items, *rest: (counts.append(len(items)), decode(items, *rest))[1])
    assert main(arguments) == 0 and sum(counts) == 60 - kept


def test_predictions_are_kept_beside_and_made_anew(tmp_path):
    run = tmp_path / "run"
    single.fit(tiny.config("supervised", steps=1), run, show=False)
    images = pictures.folder(tmp_path / "new", 40, splits=("",))
    arguments = ["predict", str(run), str(images), "--out", str(tmp_path / "p.csv"), "--batch", "1"]
    beside = tmp_path / "p.csv.part"
    told = interrupt("semisynth.predictor:prepare", arguments, beside.exists)
    assert told == f"semisynth: interrupted; what was predicted until then is in {beside}."
    assert not (tmp_path / "p.csv").exists() and len(table(beside)) < 80
    assert main(arguments) == 0 and len(table(tmp_path / "p.csv")) == 80 and not beside.exists()


def test_a_search_keeps_its_finished_cells(tmp_path):
    out, content = tmp_path / "search", tiny.content("supervised", steps=2, init="none")
    arguments = ["tune", *tiny.options(content), "--configurations", "4", "--seeds", "0-1", "--out", str(out)]
    first = out / "cells" / "00" / "0" / "result.json"
    told = interrupt("semisynth.recipes.cells:_error", arguments, first.exists)
    assert told == "semisynth: interrupted; the same command goes on from what is done."
    finished = {file: file.stat().st_mtime_ns for file in out.glob("cells/*/*/result.json")}
    assert 0 < len(finished) < 8 and json.loads((out / "tune.json").read_text())["winner"] is None
    assert main(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert len(list(out.glob("cells/*/*/result.json"))) == 8 and (out / "best.json").exists()


# ---- what asks and what does not ------------------------------------------------------------------------------------


def test_a_second_one_ends_at_once_and_the_handler_is_given_back(capfd):
    with interruption.awaited() as asked:
        assert not asked.is_set()
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set() and "Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with interruption.awaited():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def handler_within() -> object:
    with interruption.awaited():
        return signal.getsignal(signal.SIGINT)


def test_the_handler_of_somebody_else_stays(monkeypatch):
    for theirs in (signal.SIG_IGN, lambda *_: None):
        signal.signal(signal.SIGINT, theirs)
        try:
            assert handler_within() is theirs
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(interruption.distributed, "world", lambda: 2)
    assert handler_within() is signal.default_int_handler


def test_a_thread_can_train():
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(handler_within()))
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_without_a_directory_it_ends_all_the_same():
    def loss(toy: tiny.Toy, batch: Batch) -> Losses:
        if batch.step == 3:
            signal.raise_signal(signal.SIGINT)
        return toy.square(batch)

    with pytest.raises(KeyboardInterrupt, match="goes on after step 4"):
        Engine(device="cpu").fit(tiny.Toy(main=loss), tiny.batch, 10)
