"""How features are trained: in full, not at all, or by low-rank adapters; and at a rate of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import backbones
import pytest
import tiny
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from semisynth import models
from semisynth.augment.policies import Strong, Weak
from semisynth.engine import Engine
from semisynth.errors import UserError
from semisynth.method import Batch
from semisynth.methods import Supervised
from semisynth.models import Classifier, Tuning, foreign

SHAPE = (1, 16, 16)
SGD = Engine(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", ema=0.0, device="cpu")


def network(name: str, folder: Path) -> Classifier:
    """A classifier of three classes."""
    if name == "own":
        return foreign.build(backbones.own(folder), SHAPE, 3, "none")
    if name in backbones.CONFIGS:
        return foreign.build(backbones.saved(folder, name), SHAPE, 3, "none")
    return models.build(name, 1, 3)


def batch(step: int) -> Batch:
    x = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(step))
    return Batch(x, torch.arange(6) % 3, x[:0], torch.arange(0), step, step / 10)


def trained(model: Classifier, engine: Engine, steps: int = 1) -> dict[str, Tensor]:
    """The state after some steps of supervised training."""
    engine.fit(Supervised(model, Weak(False), Strong(False), view="weak"), batch, steps)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


NETWORKS = ["small-cnn-bn", "own", *backbones.KINDS]


@pytest.mark.parametrize("name", NETWORKS)
def test_of_frozen_features_nothing_moves(name: str, tmp_path: Path) -> None:
    if name in backbones.CONFIGS:
        pytest.importorskip("transformers")
    model = network(name, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Tuning("frozen").apply(model, SHAPE)
    after = trained(model, SGD, steps=2)
    moved = {key for key in before if not after[key].equal(before[key])}
    assert moved == {"head.weight", "head.bias"}  # no statistics of a batch norm either
    assert model.training and not any(part.training for part in model.features.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_of_adapted_features_adapters_alone_move(name: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model, x = network(name, tmp_path).eval(), batch(0).x
    plain = model(x)
    Tuning("lora", 2).apply(model, SHAPE)
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)  # they add nothing at first
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = trained(model, SGD, steps=3)
    moved = {key for key in before if not after[key].equal(before[key])}
    adapters = {key for key in before if ".lora_A." in key or ".lora_B." in key}
    assert adapters and moved <= {*adapters, "head.weight", "head.bias"}
    assert {"head.weight", "head.bias"} < moved and any(".lora_A." in key for key in moved)
    assert {key for key, p in model.named_parameters() if p.requires_grad} == {*adapters, "head.weight", "head.bias"}
    assert {min(before[key].shape[:2]) for key in adapters} <= {1, 2}


def test_an_adapter_is_the_product_of_two_matrices(tmp_path: Path) -> None:
    """x W' + x A' B', by the paper's equation 3 with a scale of one, at every linear layer but the head."""
    pytest.importorskip("peft")
    model = network("own", tmp_path)
    middle = model.features.network.middle
    weight, bias = (p.detach().clone() for p in (middle.weight, middle.bias))
    Tuning("lora", 5).apply(model, SHAPE)
    adapted = model.features.network.middle
    a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    nn.init.normal_(b)
    x = torch.rand(4, 32)
    torch.testing.assert_close(adapted(x), F.linear(x, weight + b @ a, bias))
    assert a.shape == (5, 32) and b.shape == (12, 5)
    found = {key.split(".lora_")[0] for key in model.state_dict() if ".lora_" in key}
    assert found == {"features.network.middle"}


def test_convolutions_are_adapted_where_there_is_no_linear_layer() -> None:
    pytest.importorskip("peft")
    model = models.build("small-cnn", 1, 3)
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    Tuning("lora").apply(model, SHAPE)
    assert {key.split(".lora_")[0] for key in model.state_dict() if ".lora_" in key} == convolutions
    with pytest.raises(UserError, match="no linear layer and no convolution"):
        Tuning("lora").apply(Classifier(nn.Flatten(), 256, 3), SHAPE)


def test_a_rank_and_a_library_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="lora_rank is 0: give a number from 1"):
        Tuning("lora", 0).apply(models.build("small-cnn", 1, 3), SHAPE)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"--tune-features lora needs the library peft: .*'semisynth\[peft\]'"):
        Tuning("lora").apply(models.build("small-cnn", 1, 3), SHAPE)


@pytest.mark.parametrize("name", ["small-cnn", "vit"])
@pytest.mark.parametrize("factor", [0.1, 3.0])
def test_one_step_moves_features_by_their_own_rate(name: str, factor: float, tmp_path: Path) -> None:
    if name == "vit":
        pytest.importorskip("transformers")
    moves = []
    for rate in (1.0, factor):
        torch.manual_seed(0)
        model = network(name, tmp_path).double()
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        engine = Engine(**{**vars(SGD), "features_lr": rate})
        double = Batch(batch(0).x.double(), batch(0).y, batch(0).u.double(), batch(0).index)
        engine.fit(Supervised(model, Weak(False), Strong(False), view="weak"), lambda _, b=double: b, 1)
        moves.append({key: value.detach() - before[key] for key, value in model.named_parameters()})
    one, other = moves
    for key, moved in one.items():
        expected = moved * (factor if key.startswith("features.") else 1)
        torch.testing.assert_close(other[key], expected, rtol=1e-9, atol=1e-14)
    assert max(float(moved.abs().max()) for key, moved in one.items() if key.startswith("features.")) > 1e-6


def test_without_a_rate_of_its_own_there_is_one_group() -> None:
    method = Supervised(zoo.network("cnn-group-relu"), Weak(False), Strong(False))
    (plain,) = SGD.optimizers(method.updates()).values()
    assert [len(group["params"]) for group in plain.param_groups] == [len(list(method.model.parameters()))]
    (apart,) = Engine(lr=0.1, features_lr=0.5).optimizers(method.updates()).values()
    assert [(len(group["params"]), group["initial_lr"]) for group in apart.param_groups] == [
        (2, 0.1),
        (len(list(method.model.features.parameters())), 0.05),
    ]


@pytest.mark.parametrize(
    "method, fields, told",
    [
        ("supervised", {"lora_rank": 4}, "lora_rank is read by --tune-features lora alone"),
        ("supervised", {"tune_features": "some"}, "'tune_features'"),
        ("supervised", {"features_lr": -1.0}, "features_lr is -1"),
        (
            "supervised",
            {"tune_features": "frozen", "features_lr": 0.1},
            "does not read features_lr: .* are not trained",
        ),
        ("linearprobe", {"tune_features": "frozen"}, "does not read tune_features: .* are not trained"),
        ("linearprobe", {"features_lr": 0.1}, "does not read features_lr"),
        ("gan", {"tune_features": "frozen"}, "method 'gan' does not read tune_features"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(method: str, fields: dict[str, object], told: str) -> None:
    from semisynth.recipes.materials import Materials

    with pytest.raises(UserError, match=told):
        Materials(tiny.config(method, **fields))
