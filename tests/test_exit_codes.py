"""Each exit code that is documented, and that `--json` prints one document and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pictures
import pytest
import tiny

from semisynth import doctor
from semisynth.cli import COMMANDS, main
from semisynth.recipes import single


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `good`, one with a broken file, and a run on the good one."""
    root = tmp_path_factory.mktemp("codes")
    pictures.folder(root / "good", 8, splits=("",))
    pictures.folder(root / "bad", 4, splits=("",))
    (root / "bad" / "cat" / "broken.png").write_text("broken")
    content = tiny.config("supervised", data=str(root / "good"), steps=1, size=8)
    single.fit(content, root / "run", show=False)
    return root


JSON = {
    "evaluate": ["evaluate", "run"],
    "evaluate others": ["evaluate", "run", "--data", "bad"],
    "predict": ["predict", "run", "bad", "--out", "p.csv"],
    "data": ["data", "check", "good", "--out", "check.json"],
    "data with findings": ["data", "check", "bad", "--out", "check.json"],
    "quality": ["quality", "digits-others", "--reference", "digits-pool"],
    "probe": ["probe", "run", "--data", "good", "--out", "probed"],
    "doctor": ["doctor"],
    "doctor that failed": ["doctor"],
}


@pytest.mark.parametrize("name", JSON)
def test_json_is_one_document_and_the_code_says_whether_there_are_findings(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    if name.startswith("doctor"):  # that it is so for the real one, its own tests see
        checks = [doctor.Check(check, name == "doctor", "Told.", 0.1) for check in doctor.CHECKS]
        monkeypatch.setattr(doctor, "self_test", lambda: checks)
    assert main([*JSON[name], "--json"]) == (1 if "findings" in name or "failed" in name else 0)
    told = capsys.readouterr()
    assert isinstance(json.loads(told.out), dict) and told.out.count("\n") == 1 and told.err == ""


def test_these_are_all_that_have_json(capsys):
    offered = set()
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        offered |= {command} if "--json" in capsys.readouterr().out else set()
    assert offered == {name.split()[0] for name in JSON}


def test_a_mistake_prints_no_document(place, capsys):
    for arguments in (["evaluate", "nowhere"], ["predict", str(place / "run"), "nowhere", "--out", "p"], ["data", "x"]):
        assert main([*arguments, "--json"]) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.startswith("semisynth: error: ")


def test_help_tells_the_codes(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {code:10}" in text for code in ("0", "1", "2", "130"))


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["--version"]])
def test_an_output_that_is_closed_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "semisynth", *arguments]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
