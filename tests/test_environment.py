"""What is written of the machine and the code beside every figure."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from semisynth import environment


def test_it_says_what_a_figure_depends_on():
    found = environment.describe(torch.device("cpu"))
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["device"].startswith("cpu: ") and len(found["device"]) > 5
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and sys.platform in found["platform"].lower()
    assert found["semisynth"] == version("semisynth") and found["commit"] == environment.commit()


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    checkout = (Path(environment.__file__).parents[1] / ".git").exists()
    found = environment.commit()
    assert re.fullmatch(r"[0-9a-f]{7,}\+?", found) if checkout else found is None
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "semisynth" / "environment.py"))
    assert environment.commit() is None
    (tmp_path / ".git").mkdir()
    assert environment.commit() is None
