"""Quality of data sets from the command line: against what is computed by hand, held-out images, and mistakes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from semisynth import quality
from semisynth.cli import main
from semisynth.data import datasets
from semisynth.errors import UserError
from semisynth.recipes import quality as recipe
from semisynth.recipes import restore, single


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quality") / "run"
    single.fit(tiny.config("supervised", steps=3), out, show=False)
    return out


def test_measures_are_those_of_the_runs_features(run: Path, tmp_path: Path, capsys: Any) -> None:
    data = datasets.load("digits-pool")
    np.savez(tmp_path / "made.npz", images=data.validation.x[:, 0].numpy(), labels=data.validation.y.numpy())
    command = ["quality", str(tmp_path / "made.npz"), "--reference", "digits-pool", "--features", str(run)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    _, model, _, _ = restore.classifier(run, torch.device("cpu"))
    count = 150
    assert found["images"] == count
    sets = {"real": data.pool, "held": data.test, "made": data.validation}
    features = {}
    for name, images in sets.items():
        some = images.subset(torch.linspace(0, len(images) - 1, count).long())
        features[name] = model.features(some.x[:].float() / 255).detach()
    expected = asdict(quality.measure(features["real"], features["made"]))
    assert found["measures"][str(tmp_path / "made.npz")] == pytest.approx(expected, rel=1e-4)
    expected = asdict(quality.measure(features["real"], features["held"]))
    assert found["measures"][recipe.HELD_OUT] == pytest.approx(expected, rel=1e-4)
    assert found["class_accuracy"] == pytest.approx(
        (model(data.validation.x[:].float() / 255).argmax(1) == data.validation.y).double().mean().item()
    )
    assert main(command) == 0
    assert f"{recipe.HELD_OUT}: fid " in capsys.readouterr().out


def test_a_generator_by_foundation_features_has_no_class_accuracy() -> None:
    found = recipe.measure("generator:digits-gan", "digits-pool")
    assert found["class_accuracy"] is None and found["images"] == 350
    assert found["measures"]["generator:digits-gan"]["fid"] > found["measures"][recipe.HELD_OUT]["fid"] > 0


def test_images_of_another_kind_are_refused(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(256, size=(20, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "colour.npz", images=pixels, labels=np.arange(20) % 2)
    with pytest.raises(UserError, match="3 x 16 x 16, and digits-pool of 1 x 16 x 16"):
        recipe.measure(str(tmp_path / "colour.npz"), "digits-pool")
