"""The log and its cuts, the times of a step, and what is shown on a terminal and in a file."""

from __future__ import annotations

import io
import json
import time

import pytest
import torch
from rich.console import Console

from semisynth import log
from semisynth.log import Bar, Log, Timer


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path, *steps):
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    return path


def test_lines_are_appended_one_by_one(tmp_path):
    path = tmp_path / "log.jsonl"
    found = Log(path, 0)
    assert path.read_text() == ""
    found.write({"step": 1, "loss": 0.5})
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n'
    found.write({"step": 2})
    assert [line["step"] for line in lines(path)] == [1, 2]


@pytest.mark.parametrize("step, kept", [(0, []), (2, [1, 2]), (3, [1, 2]), (9, [1, 2, 4])])
def test_lines_past_the_checkpoint_are_cut(tmp_path, step, kept):
    path = written(tmp_path / "log.jsonl", 1, 2, 4)
    Log(path, step).write({"step": 10})
    assert [line["step"] for line in lines(path)] == [*kept, 10]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize(
    "half", ['{"step": 3, "lo', "{", '{"step": 3, "loss": 0.', "{}", "[3]", '{"step": "a"}', "3", "[" * 100_000]
)
def test_a_half_written_last_line_is_cut(tmp_path, half):
    path = written(tmp_path / "log.jsonl", 1, 2)
    path.write_text(path.read_text() + half)
    Log(path, 9)
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Log(None, 0).write({"step": 1})
    assert not list(tmp_path.iterdir())


def test_the_timer_adds_up_each_part_and_starts_again():
    timer = Timer(torch.device("cpu"))
    for _ in range(2):
        with timer.part("slow"):
            time.sleep(0.02)
    with timer.part("quick"):
        pass
    taken = timer.take()
    assert 0.04 <= taken["slow"] < 1 and 0 <= taken["quick"] < 0.02 and len(taken) == 2
    assert timer.take() == {}


def shown(monkeypatch, terminal: bool) -> io.StringIO:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, color_system=None)
    monkeypatch.setattr(log, "console", console)
    return text


def test_in_a_file_each_note_is_a_line(monkeypatch):
    text = shown(monkeypatch, terminal=False)
    with Bar("fit toy", 100, 20, True) as bar:
        bar.step()
        bar.note(40, 7.5, {"validation/accuracy": 0.5})
        bar.note(50, 0.0, {})
    assert text.getvalue().splitlines() == [
        "fit toy: step 40/100, 7.5 steps/s, validation 0.500, 8 s left",
        "fit toy: step 50/100, 0.0 steps/s, 0 s left",
    ]


def test_on_a_terminal_a_bar_moves(monkeypatch):
    text = shown(monkeypatch, terminal=True)
    with Bar("fit toy", 100, 20, True) as bar:
        for _ in range(5):
            bar.step()
        bar.note(25, 7.5, {"validation/accuracy": 0.5})
    last = text.getvalue().splitlines()[-2]  # after it the cursor is shown again
    assert "fit toy" in last and "25/100" in last and "7.5 steps/s, validation 0.500" in last


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_that_is_not_asked_for_says_nothing(monkeypatch, terminal):
    text = shown(monkeypatch, terminal)
    with Bar("fit toy", 100, 0, False) as bar:
        bar.step()
        bar.note(1, 1.0, {})
    assert text.getvalue() == ""
