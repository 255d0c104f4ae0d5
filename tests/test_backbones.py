"""Networks from elsewhere from end to end: fit, resume, evaluate, predict, and bilevel methods, in each way of tuning.

A run is loaded again after the folder that its network came from is gone.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import backbones
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
import zoo
from test_cli import FOREIGN, imported
from test_resume import assert_resumes

from semisynth import noise
from semisynth.api import Trained
from semisynth.cli import main
from semisynth.errors import UserError
from semisynth.estimator import SemiSynthClassifier
from semisynth.evaluate import classify
from semisynth.methods import MPSSL, Transport
from semisynth.models import foreign
from semisynth.recipes import restore, single
from semisynth.recipes.materials import Materials

pytest.importorskip("transformers")
pytest.importorskip("peft")
CPU = torch.device("cpu")
WAYS = ("full", "frozen", "lora")
RANK = {"full": {}, "frozen": {}, "lora": {"lora_rank": 2}}
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_run_is_measured_and_predicts_without_the_folder_it_came_from(kind: str, way: str, tmp_path: Path) -> None:
    folder, run = tmp_path / "net", tmp_path / "run"
    name = backbones.saved(folder, kind, classifier=True)
    config = tiny.config("supervised", model=name, tune_features=way, **RANK[way], steps=3, features_lr=1.0)
    result = single.fit(config, run, show=False)
    told = f"for model {name} the images are repeated over 3 channels"
    assert told in result["data"]["notes"]
    shutil.rmtree(folder)
    again, model, data = restore.trained(run, CPU)
    assert again == config
    assert classify(model, data.test, data.classes)["accuracy"] == result["test"]["accuracy"]
    assert main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    x = np.random.RandomState(0).rand(2, 16, 16).astype(np.float32)
    found = [image.probabilities["3"] for image in Trained(run).predict(x, device="cpu")]
    pixels = (torch.from_numpy(x)[:, None] * 255).round() / 255
    temperature = result["calibration"]["temperature"]
    expected = (model(pixels) / temperature).softmax(1)[:, 3].tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert single.fit(config, run, show=False) == result  # it is finished, and needs no network


@each_way
@pytest.mark.parametrize("kind", ["dinov2", "resnet"])
def test_training_resumes_bitwise(kind: str, way: str, tmp_path: Path) -> None:
    name = backbones.saved(tmp_path / "net", kind)
    fields: dict[str, Any] = {"model": name, "tune_features": way, **RANK[way], "steps": 4, "checkpoint_every": 1}
    fields |= {"features_lr": 0.3} if way != "frozen" else {}
    assert_resumes(tiny.config("fixmatch", **fields), tmp_path, cuts=(1, 3))


@each_way
def test_mpssl_resumes_bitwise(way: str, generator: str, tmp_path: Path) -> None:
    name = backbones.saved(tmp_path / "net", "vit")
    config = tiny.config("mpssl", generator, model=name, tune_features=way, **RANK[way], steps=3, checkpoint_every=1)
    assert_resumes(config, tmp_path, cuts=(2,))


@each_way
@pytest.mark.parametrize("kind", backbones.KINDS)
def test_mpssl_and_its_study_run_on_each(kind: str, way: str, generator: str, tmp_path: Path) -> None:
    name, run = backbones.saved(tmp_path / "net", kind), tmp_path / "run"
    config = tiny.config("mpssl", generator, model=name, tune_features=way, **RANK[way], steps=2)
    single.fit(config, run, show=False)
    assert (run / "insight.safetensors").exists()
    lines = tiny.log(run)
    moved = [line["mapper/validation_gradient"] for line in lines if "mapper/validation_gradient" in line]
    assert all(value == 0 for value in moved) if way == "frozen" else moved[0] > 0


@pytest.mark.parametrize("method, options", [("mpssl", {"gap": 0.0}), ("mgr", {}), ("scr", {}), ("transport", {})])
def test_frozen_features_are_no_error_for_a_method_that_regularises_them(
    method: str, options: dict[str, Any], generator: str, tmp_path: Path
) -> None:
    fields = {"unlabeled": "generator"} if method == "scr" else {}
    config = tiny.config(method, generator, options, init="foundation", tune_features="frozen", steps=2, **fields)
    single.fit(config, tmp_path / "run", show=False)


@pytest.mark.parametrize("way", ["full", "lora"])
def test_the_gradient_through_attention_is_that_of_finite_differences(way: str, generator: str, tmp_path: Path) -> None:
    """Of the mapper's loss one step ahead, by its own parameters, in float64."""
    name = backbones.saved(tmp_path, "vit")
    options = {"gap": 0.0, "inner_lr": 1.0, "weight": 3.0}
    config = tiny.config("mpssl", generator, options, model=name, tune_features=way, labels_per_class=1)
    materials = Materials(config)
    method, batch = materials.method.double(), materials.stream(0)
    assert isinstance(method, MPSSL)
    if way == "lora":
        for key, p in method.model.named_parameters():
            if ".lora_B." in key:
                torch.nn.init.normal_(p, std=0.3)
    small = zoo.Batch(batch.x[:4].double(), batch.y[:4], batch.u.double(), batch.index)
    weak = method.problem.weak
    for part in (method.problem, method.outer.problem):
        object.__setattr__(part, "strong", weak)  # smooth in the images
        object.__setattr__(part, "view", weak)
    parameters = [p for p in method.mapper.parameters() if p.requires_grad]

    def loss() -> torch.Tensor:
        with noise.seeded("a step"):
            return method.outer.losses(small).terms["validation"]

    directions = [torch.randn(p.shape, dtype=p.dtype) for p in parameters]
    gradient = torch.autograd.grad(loss(), parameters, allow_unused=True, materialize_grads=True)
    slope = sum((g * d).sum() for g, d in zip(gradient, directions, strict=True))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=sign * 1e-4)
        values.append(loss().detach())
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=-sign * 1e-4)
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-4, rtol=1e-4, atol=1e-10)
    assert abs(slope) > 1e-7


def test_an_estimator_of_a_network_from_elsewhere_is_saved_and_loaded(tmp_path: Path) -> None:
    name = backbones.saved(tmp_path / "net", "vit")
    x, y = np.random.RandomState(0).rand(24, 8, 8), np.arange(24) % 3
    options = {"model": name, "tune_features": "lora", "lora_rank": 2, "steps": 2, "batch": 6}
    found = SemiSynthClassifier("supervised", None, **options).fit(x, y)
    found.save(tmp_path / "saved")
    shutil.rmtree(tmp_path / "net")
    again = SemiSynthClassifier.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.predict_proba(x), found.predict_proba(x))
    again.save(tmp_path / "again")  # what was loaded is saved as whole
    written = [(tmp_path / folder / foreign.FILE).read_text() for folder in ("saved", "again")]
    assert written[0] == written[1]


def test_features_of_a_run_are_the_first_of_another(tmp_path: Path) -> None:
    name, run = backbones.saved(tmp_path / "net", "vit"), tmp_path / "run"
    single.fit(tiny.config("supervised", model=name, steps=2, lr=0.5), run, show=False)
    first = Materials(tiny.config("supervised", model=name, init=str(run))).method.model
    _, model, _, _ = restore.classifier(run, CPU)
    assert tiny.same(dict(first.features.state_dict()), dict(model.features.state_dict()))
    with pytest.raises(UserError, match=r"--init .*run is of another network, by its backbone\.json: .* differs"):
        Materials(tiny.config("supervised", model=backbones.own(tmp_path), init=str(run)))


def test_a_source_classifier_may_be_a_network_from_elsewhere(generator: str, tmp_path: Path) -> None:
    name, run = backbones.saved(tmp_path / "net", "convnext"), tmp_path / "source"
    fields = {"data": f"generator:{generator}", "labels_per_class": 0, "steps": 2}
    single.fit(tiny.config("supervised", model=name, **fields, tune_features="lora"), run, show=False)
    shutil.rmtree(tmp_path / "net")
    method = Materials(tiny.config("transport", generator, source=str(run))).method
    assert isinstance(method, Transport)
    _, model, _, _ = restore.classifier(run, CPU)
    x = torch.rand(2, 1, 16, 16)
    assert method.reader.source.module.classifier(x).equal(model(x))


def test_one_s_own_network_from_the_command_line(tmp_path: Path) -> None:
    model, run = backbones.own(tmp_path), tmp_path / "run"
    content = tiny.content("fixmatch", model=model, tune_features="frozen", steps=2)
    assert main(["fit", *tiny.options(content), "--out", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    card = (run / "model-card.md").read_text()
    assert "| features trained | frozen |" in card and "own.py:Net" in card.replace("\\", "")


def test_a_plain_fit_imports_none_of_the_libraries(tmp_path: Path) -> None:
    packages, told = imported("fit", *tiny.options(tiny.content("supervised", steps=1)), "--out", str(tmp_path / "run"))
    assert "is finished" in told and "torch" in packages and not packages & FOREIGN


def test_attention_is_differentiated_twice(tmp_path: Path) -> None:
    from semisynth.twice import twice

    q = torch.randn(1, 2, 3, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(
        twice(F.scaled_dot_product_attention, attention=True)(q, q, q).square().sum(), q, create_graph=True
    )
    assert torch.autograd.grad(slope.square().sum(), q)[0].abs().sum() > 0
