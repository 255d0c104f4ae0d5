"""DPT's CIFAR-10 script on a few images: both classifiers, the images between them, and a second call."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pictures
import pytest

from semisynth import weights


def test_a_few_steps_of_everything(script, tmp_path, monkeypatch, capsys) -> None:
    module = script("cifar_dpt")
    folder = pictures.folder(tmp_path / "images", per_class=12, size=(32, 32))
    places = ["--data", str(folder), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--json"]
    small = ["--model", "small-cnn", "--network", "tiny", "--steps", "2", "--diffusion-steps", "2", "--batch", "2"]
    small += ["--diffusion-batch", "2", "--unlabeled-batch", "4", "--device", "cpu", "--labels-per-class", "2"]
    monkeypatch.setattr(sys, "argv", ["cifar_dpt.py", *places, *small, "--images-per-class", "0,4"])

    def call() -> list[dict]:
        module.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])["results"]

    lines = call()
    assert [line["method"] for line in lines] == ["freematch-real", "dpt-k0-careful", "dpt-k4-careful"]
    assert 0 <= lines[2]["accuracy"] <= 1 and lines[2]["fid of synthetic"] > 0 and lines[2]["pseudo_labels"] >= 0
    stage = next((tmp_path / "work").glob("diffusion-*"))
    config = weights.read_json(stage / "config.json")
    assert (config["precision"], config["batch"], config["method"]["model_lr"]) == ("bf16", 2, 1e-3)
    config = weights.read_json(next((tmp_path / "work").glob("classifier-*")) / "config.json")
    assert (config["channels_last"], config["unlabeled_batch"], config["method"]["name"]) == (True, 4, "freematch")
    written = [json.loads(text) for text in (Path(tmp_path) / "out" / "results.jsonl").read_text().splitlines()]
    assert written == lines and "dpt-k4-careful" in (tmp_path / "out" / "table.md").read_text()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "work").rglob("*.safetensors")}
    assert call() == lines
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "work").rglob("*.safetensors")} == before


def test_a_mistake_is_told(script, tmp_path, monkeypatch) -> None:
    module = script("cifar_dpt")
    monkeypatch.setattr(sys, "argv", ["cifar_dpt.py", "--data", str(tmp_path / "none"), "--device", "cpu"])
    with pytest.raises(SystemExit, match=r"cifar_dpt: error: .*none"):
        module.main()
