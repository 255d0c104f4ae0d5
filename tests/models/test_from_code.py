"""Anyone's own network: its head is found, or its features are what it returns; and what cannot be told is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import backbones
import pytest
import tiny
import torch
from torch import nn

from semisynth import models, weights
from semisynth.errors import UserError
from semisynth.models import Tuning, foreign, from_code
from semisynth.recipes import restore, single

SHAPE = (1, 16, 16)
CPU = torch.device("cpu")


def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    file, _, factory = name.rpartition(":")
    return from_code._made(file, factory, name).network


def test_the_last_linear_layer_is_replaced_by_a_fresh_head(tmp_path: Path) -> None:
    name = backbones.own(tmp_path)
    torch.manual_seed(0)
    model, net, x = foreign.build(name, SHAPE, 7, "none").eval(), made(name).eval(), torch.rand(3, *SHAPE)
    assert model.head.in_features == 12 and model(x).shape == (3, 7)
    torch.testing.assert_close(net.last(model.features(x)), net(x), rtol=0, atol=0)
    assert not [key for key in model.state_dict() if ".last." in key] and "features.network.middle.weight" in dict(
        model.named_parameters()
    )


def test_without_a_head_features_are_what_it_returns(tmp_path: Path) -> None:
    name = backbones.own(tmp_path, "features")
    torch.manual_seed(0)
    model, net, x = foreign.build(name, SHAPE, 7, "none"), made(name), torch.rand(3, *SHAPE)
    assert model.head.in_features == 8 and model.features(x).equal(net(x))


def test_gray_images_are_repeated_for_a_network_of_colours(tmp_path: Path) -> None:
    name, x = backbones.own(tmp_path, "colours"), torch.rand(3, *SHAPE)
    torch.manual_seed(0)
    model, net = foreign.build(name, SHAPE, 7, "none").eval(), made(name).eval()
    torch.testing.assert_close(net.last(model.features(x)), net(x.expand(-1, 3, -1, -1)), rtol=0, atol=0)


def test_an_importable_module_is_found_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somebody"
    package.mkdir()
    (package / "nets.py").write_text(backbones.OWN)
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    assert foreign.build("module:somebody.nets:Net", SHAPE, 7, "none").head.in_features == 12
    assert sys.path == before


def test_weights_of_its_own_are_read_from_a_file(tmp_path: Path) -> None:
    name, file = backbones.own(tmp_path), tmp_path / "net.safetensors"
    net = made(name, seed=5)
    weights.write_tensors(file, net.state_dict())
    model = foreign.build(name, SHAPE, 7, str(file))
    assert tiny.same(dict(net.body.state_dict()), dict(model.features.network.body.state_dict()))
    weights.write_tensors(file, net.body.state_dict())
    with pytest.raises(UserError, match=r"net\.safetensors does not fit this network: .*Missing"):
        foreign.build(name, SHAPE, 7, str(file))


@pytest.mark.parametrize(
    "factory, told",
    [
        ("probabilities", "returns probabilities: have it return the logits"),
        ("logarithms", "returns probabilities: have it return the logits"),
        ("tokens", r"must return logits or features, a tensor \(images, width\)"),
        ("twice", "its last linear layer '1' is no head .* called more than once"),
        ("draws", "answers the same image differently"),
        ("number", r"own\.py:number gives a int: it must give a torch\.nn\.Module"),
        ("broken", r"own\.py:broken fails \(RuntimeError: no such thing\): mend it"),
        ("absent", r"fails \(AttributeError"),
        ("", r"give module:PACKAGE.MODULE:FACTORY, or FILE.py:FACTORY"),
    ],
)
def test_what_is_no_classifier_is_explained(factory: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        foreign.build(backbones.own(tmp_path, factory), SHAPE, 7, "none")


def test_names_files_and_images_that_cannot_be_are_explained(tmp_path: Path) -> None:
    name = backbones.own(tmp_path)
    with pytest.raises(UserError, match=r"there is no file .*none\.py"):
        foreign.build(f"{tmp_path}/none.py:Net", SHAPE, 7, "none")
    with pytest.raises(UserError, match=r"fails \(ModuleNotFoundError"):
        foreign.build("module:no.such.thing:Net", SHAPE, 7, "none")
    with pytest.raises(UserError, match=r"cannot read images of 1x2x2: .* Give another --size"):
        foreign.build(name, (1, 2, 2), 7, "none")
    with pytest.raises(UserError, match=r"give none, a FILE.safetensors, or the directory of a run"):
        foreign.build(name, SHAPE, 7, "nowhere")
    with pytest.raises(UserError, match="--init pretrained is for timm:NAME"):
        foreign.build(name, SHAPE, 7, "pretrained")


def test_a_run_needs_the_code_and_the_shape_that_it_was_made_with(tmp_path: Path) -> None:
    run = tmp_path / "run"
    single.fit(tiny.config("supervised", model=backbones.own(tmp_path), steps=2), run, show=False)
    _, model, _, _ = restore.classifier(run, CPU)
    assert model(torch.rand(2, *SHAPE)).shape == (2, 10)
    (tmp_path / "own.py").unlink()
    with pytest.raises(UserError, match=r"own\.py is not there, or not as it was"):
        restore.classifier(run, CPU)
    (run / foreign.FILE).write_text("{}")
    with pytest.raises(UserError, match=r"backbone\.json: model .* cannot be built from it \(KeyError"):
        restore.classifier(run, CPU)
    (run / foreign.FILE).unlink()
    with pytest.raises(UserError, match=r"has no backbone\.json, which tells what its network is: restore it"):
        restore.classifier(run, CPU)


def test_two_names_of_one_tensor_are_both_written(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    weights.write_tensors(tmp_path / "a.safetensors", {"one": layer.weight, "other": layer.weight})
    found = weights.read_tensors(tmp_path / "a.safetensors")
    assert found["one"].equal(layer.weight) and found["other"].equal(layer.weight)


def test_restoring_draws_nothing_from_what_others_draw_from(tmp_path: Path) -> None:
    run, name = tmp_path / "run", backbones.own(tmp_path)
    run.mkdir()
    model = foreign.build(name, SHAPE, 7, "none")
    foreign.write(model, run)
    weights.write_tensors(run / "model.safetensors", model.state_dict())
    before = torch.random.get_rng_state()
    found = models.saved(run, name, Tuning(), SHAPE, 7)
    assert torch.random.get_rng_state().equal(before)
    assert tiny.same(dict(found.state_dict()), dict(model.state_dict()))
