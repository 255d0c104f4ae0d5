"""What `semisynth doctor` tells, and that each step of its self-test fails when what it tests is broken."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from semisynth import doctor, predictor
from semisynth.cli import main
from semisynth.recipes import single
from semisynth.state import State


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("cache") / "deep"
    place.mkdir()
    (place / "images").write_bytes(b"12345")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMISYNTH_CACHE", str(place))
        report = doctor.examine()
        assert os.environ["SEMISYNTH_CACHE"] == str(place) and [file.name for file in place.iterdir()] == ["images"]
    return report


def test_all_steps_pass_and_are_told_in_a_sentence(found):
    assert found["passed"] and [check["name"] for check in found["self_test"]] == ["cache", "fit", "resume", "predict"]
    assert all(check["passed"] and check["told"].endswith(".") for check in found["self_test"])
    assert "4 steps of mpssl on 18 PNG images" in found["self_test"][1]["told"]


def test_versions_devices_and_the_cache_are_told(found):
    versions = found["versions"]
    assert versions["torch"] == torch.__version__ and {"semisynth", "python", "scikit-learn", "pillow"} <= set(versions)
    assert all(versions.values()) and "cpu" in found["devices"] and found["threads"] == torch.get_num_threads()
    assert found["cache"]["bytes"] == 5
    text = doctor.told(found)
    assert f"  torch {torch.__version__}\n" in text and "  passed resume, " in text and "0.0 MiB" in text


def test_what_is_missing_is_told_with_the_way_to_get_it(found, monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL", (("no-such-part", "nothing", "pip install it"),))
    monkeypatch.setattr(doctor, "self_test", list)
    told = doctor.examine()
    assert told["optional"] == [{"name": "no-such-part", "version": None, "for": "nothing", "get": "pip install it"}]
    assert "  no-such-part is missing: pip install it, for nothing\n" in doctor.told(told) and not told["passed"]


def test_the_exit_code_says_whether_all_passed(found, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert main(["doctor", "--json"]) == 0 and json.loads(capsys.readouterr().out) == found
    monkeypatch.setattr(doctor, "examine", lambda: {**found, "passed": False})
    assert main(["doctor"]) == 1 and "self-test" in capsys.readouterr().out


def broken_cache(patch: pytest.MonkeyPatch, path: Path) -> None:
    (path / "file").write_text("")
    patch.setenv("SEMISYNTH_CACHE", str(path / "file" / "cache"))


def broken_fit(patch: pytest.MonkeyPatch, path: Path) -> None:
    patch.setattr(single, "fit", lambda *_, **__: 1 / 0)


def broken_resume(patch: pytest.MonkeyPatch, path: Path) -> None:
    load = State.load

    def forgets(state: State, file: Path) -> None:
        load(state, file)
        state.step += 1

    patch.setattr(State, "load", forgets)


def broken_predict(patch: pytest.MonkeyPatch, path: Path) -> None:
    patch.setattr(predictor.Predictor, "probabilities", lambda _, z: z)


BROKEN = {
    "cache": (broken_cache, "cannot be written .*: set SEMISYNTH_CACHE"),
    "fit": (broken_fit, "ZeroDivisionError: "),
    "resume": (broken_resume, "has other weights than the one left alone"),
    "predict": (broken_predict, "the probabilities of an image sum to"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_fails_and_ends_the_test(name, tmp_path, monkeypatch):
    breaks, message = BROKEN[name]
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path))
    breaks(monkeypatch, tmp_path)
    *passed, failed = doctor.self_test()
    assert [check.name for check in passed] == list(doctor.CHECKS)[: len(passed)]
    assert all(check.passed for check in passed)
    assert failed.name == name and not failed.passed
    assert re.search(message, failed.told), failed.told
