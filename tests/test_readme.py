"""What the README promises in Python is run as it stands there, but for two steps."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pictures
import pytest

from semisynth.recipes import single

README = Path(__file__).parent.parent / "README.md"
FOLDER, SEARCH = re.findall(r"^```python\n(.+?)^```$", README.read_text(), re.M | re.S)


@pytest.fixture(autouse=True)
def fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The methods that were trained, in an empty directory."""
    fit, methods = single.fit, []

    def short(config, *given, **options):
        methods.append(config.method)
        return fit(replace(config, setting=replace(config.setting, steps=2)), *given, **options)

    monkeypatch.setattr(single, "fit", short)
    monkeypatch.chdir(tmp_path)
    return methods


def test_from_a_folder_to_predictions(fitted, tmp_path, capsys):
    pictures.folder(tmp_path / "my_images", 8, splits=("train",))
    pictures.save(tmp_path / "new_images" / "a.png")
    exec(FOLDER.replace("reject=0.8", "reject=0.0"), {})
    file, label, confidence = capsys.readouterr().out.split()
    assert file.endswith("a.png") and label in ("cat", "dog") and 0.5 <= float(confidence) <= 1
    assert (tmp_path / "report.html").exists() and (tmp_path / "runs/mine/model-card.md").exists()
    assert fitted == ["mpssl"]


def test_a_grid_search(fitted):
    x, y = np.random.RandomState(0).rand(12, 8, 8), np.arange(12) % 2
    made = {"X": x, "y": y}
    exec(SEARCH, made)
    assert fitted == ["supervised"] * 3 + ["mpssl"] * 3 + [made["search"].best_params_["method"]]
    assert made["search"].predict(x).shape == (12,)
