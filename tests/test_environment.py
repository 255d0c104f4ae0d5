"""What a figure depends on besides its configuration."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from semisynth import environment


def test_it_says_versions_device_and_commit() -> None:
    found = environment.describe(torch.device("cpu"))
    assert found["torch"] == torch.__version__ and found["device"].startswith("cpu: ")
    assert found["threads"] == torch.get_num_threads() and found["commit"] == environment.commit()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", found["python"]) and found["platform"] and found["semisynth"]


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    read = environment.commit.__wrapped__  # without the cache
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "semisynth" / "environment.py"))
    assert read() is None
    git("init", "--quiet")
    assert read() is None  # no commit yet
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "--quiet", "--message", "a")
    assert read() == git("rev-parse", "--short", "HEAD")
    (tmp_path / "a").write_text("b")
    assert read() == git("rev-parse", "--short", "HEAD") + "+"


def test_the_commit_is_that_of_when_the_process_first_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    first = environment.commit()
    monkeypatch.setattr(environment, "__file__", "/nowhere/else/environment.py")
    assert environment.commit() == first
