"""Networks of timm: features are the library's own, on the input that its data configuration tells.

timm imports torchvision, which has no build beside torch's CPU wheels; where both are there, all of this runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from semisynth import models, weights
from semisynth.errors import UserError
from semisynth.models import Tuning, foreign

SHAPE = (1, 12, 12)
NAMES = ["resnet10t", "vit_tiny_patch16_224"]


def timm() -> Any:
    return pytest.importorskip("timm", reason="timm needs torchvision, which is not there", exc_type=ImportError)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_library(name: str) -> None:
    library = timm()
    model = foreign.build(f"timm:{name}", SHAPE, 7, "none").eval()
    told = library.data.resolve_data_config({}, model=model.features.network)
    network = library.create_model(name, num_classes=0).eval()
    network.load_state_dict(model.features.network.state_dict())
    x = torch.rand(2, *SHAPE)
    read = F.interpolate(x.repeat(1, 3, 1, 1), told["input_size"][1:], mode="bilinear", antialias=True)
    mean, std = (torch.tensor(told[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(model.features(x), network((read - mean) / std), rtol=1e-4, atol=1e-4)
    assert model(x).shape == (2, 7)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_file_with_a_head_are_read(name: str, tmp_path: Path) -> None:
    file, whole = tmp_path / "all.safetensors", timm().create_model(name, num_classes=5)
    weights.write_tensors(file, whole.state_dict())
    model = foreign.build(f"timm:{name}", SHAPE, 7, str(file))
    found = model.features.network.state_dict()
    assert tiny.same(dict(found), {key: value for key, value in whole.state_dict().items() if key in found})


def test_an_unknown_name_is_explained() -> None:
    timm()
    with pytest.raises(UserError, match="model timm:resnet10x is unknown to timm"):
        foreign.build("timm:resnet10x", SHAPE, 7, "none")


class Network(nn.Module):
    """What the stand-in for timm makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2)
        self.pretrained_cfg = {"classifier": "fc"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A library of one network with timm's calls, in its place; what it was asked for."""
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> Network:
        asked.append({"name": name, **options})
        if options["pretrained"]:
            raise OSError("no network")
        return Network()

    library: Any = ModuleType("timm")
    library.is_model, library.create_model = lambda name: name == "small", create_model
    library.list_models = lambda pattern: ["small"]
    told = {"input_size": (3, 16, 8), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    library.data = SimpleNamespace(resolve_data_config=lambda given, model: told)
    monkeypatch.setitem(sys.modules, "timm", library)
    return asked


def test_input_and_record_are_of_the_data_configuration(stand_in: list[dict[str, Any]], tmp_path: Path) -> None:
    model = foreign.build("timm:small", SHAPE, 7, "none").eval()
    x = torch.rand(2, *SHAPE)
    read = F.interpolate(x.repeat(1, 3, 1, 1), (16, 8), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(model.features(x), model.features.network((read - mean) / std), rtol=1e-4, atol=1e-5)
    assert stand_in == [{"name": "small", "pretrained": False, "num_classes": 0}]
    foreign.write(model, tmp_path)
    weights.write_tensors(tmp_path / "model.safetensors", model.state_dict())
    again = models.saved(tmp_path, "timm:small", Tuning(), SHAPE, 7).eval()
    assert again(x).equal(model(x)) and json.dumps(again.features.record) == json.dumps(model.features.record)
    assert "random weights: --init pretrained" in " ".join(foreign.notes(model, "timm:small", "none"))


def test_only_pretrained_fetches_and_a_file_is_read_without_its_head(
    stand_in: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"timm:small cannot be had: no network\. Give its weights by --init FILE"):
        foreign.build("timm:small", SHAPE, 7, "pretrained")
    assert [call["pretrained"] for call in stand_in] == [True]
    file, network = tmp_path / "net.safetensors", Network()
    weights.write_tensors(file, {**network.state_dict(), "fc.weight": torch.rand(5, 6), "fc.bias": torch.rand(5)})
    model = foreign.build("timm:small", SHAPE, 7, str(file))
    assert tiny.same(dict(model.features.network.state_dict()), dict(network.state_dict()))
    weights.write_tensors(file, {"conv.weight": network.conv.weight})
    with pytest.raises(UserError, match=r"net\.safetensors does not fit this network"):
        foreign.build("timm:small", SHAPE, 7, str(file))
    with pytest.raises(UserError, match="model timm:smal is unknown to timm: there are small"):
        foreign.build("timm:smal", SHAPE, 7, "none")


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model timm:small needs the library timm: pip install 'semisynth\[timm\]'"):
        foreign.build("timm:small", SHAPE, 7, "none")
