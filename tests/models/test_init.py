"""Classifiers by name, and trained features for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from semisynth import models
from semisynth.errors import UserError
from semisynth.models.wrn import Block
from semisynth.weights import SHIPPED


@pytest.mark.parametrize("name", models.NAMES)
def test_every_name_is_a_classifier(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name, 3, 7)
        assert model(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    kinds = {type(m) for m in model.modules()} & {nn.GroupNorm, nn.BatchNorm2d}
    assert kinds == ({nn.BatchNorm2d} if name.endswith("-bn") else {nn.GroupNorm})


def test_a_name_says_depth_and_factor() -> None:
    model = models.build("wrn-22-3", 1, 7)
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    assert len(blocks) == 9 and model.head.in_features == 64 * 3
    assert models.build("wrn-10-1-bn", 1, 7).head.in_features == 64


@pytest.mark.parametrize(
    "name, told",
    [
        ("smal-cnn", "did you mean 'small-cnn'"),
        ("resnet", "Choose from: small-cnn, small-cnn-bn, wrn-16-2"),
        ("wrn-17-2", "'wrn-17-2': the depth of a WRN is 6 n"),
        ("wrn-4-2", "depth"),
        ("wrn-16-0-bn", "factor at least 1"),
        ("wrn-16-2-gn", "unknown model"),
        ("", "unknown model"),
    ],
)
def test_another_name_is_explained(name: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        models.build(name, 1, 2)
    assert told in str(error.value)


def test_foundation_is_what_ships_or_a_run_of_the_same_network(tmp_path: Path) -> None:
    assert models.foundation("foundation", "small-cnn") == SHIPPED / "glyphs-small-cnn" / "model.safetensors"
    with pytest.raises(UserError, match=r"--init foundation: no trained features for 'wrn-16-2'.*--model wrn-16-2"):
        models.foundation("foundation", "wrn-16-2")
    with pytest.raises(UserError, match=f"--init {tmp_path}"):
        models.foundation(str(tmp_path), "small-cnn")
    (tmp_path / "config.json").write_text(json.dumps({"model": "wrn-16-2"}))
    assert models.foundation(str(tmp_path), "wrn-16-2") == tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="holds a 'wrn-16-2': give --model wrn-16-2"):
        models.foundation(str(tmp_path), "small-cnn")


@pytest.mark.parametrize("name", ["models.foreign", "recipes.cells", "engine", "generators", "data.stream"])
def test_every_part_can_be_imported_first(name: str) -> None:
    """Models read data and generators, and these the models: a worker begins anywhere."""
    command = [sys.executable, "-c", f"import semisynth.{name}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
