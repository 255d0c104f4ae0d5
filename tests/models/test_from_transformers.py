"""Networks that transformers saved: features are the library's own on the input that its configuration tells."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import backbones
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from semisynth import models, weights
from semisynth.errors import UserError
from semisynth.evaluate import classify
from semisynth.models import Tuning, foreign, processor
from semisynth.models import from_transformers as adapter
from semisynth.models.backbone import Input
from semisynth.recipes import restore, single

transformers = pytest.importorskip("transformers")
SHAPE = (1, 12, 12)


def images() -> Tensor:
    return torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))


def prepared(x: Tensor, mean: Any = backbones.MEAN, std: Any = backbones.STD) -> Tensor:
    """As the processor has it, but for rounding to whole pixel values."""
    size = (backbones.SIZE, backbones.SIZE)
    x = F.interpolate(x.repeat(1, 3, 1, 1), size, mode="bilinear", antialias=True, align_corners=False)
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def library(kind: str, name: str) -> Any:
    return getattr(transformers, kind).from_pretrained(name.removeprefix("hf:")).eval()


@pytest.mark.parametrize("kind", backbones.KINDS)
def test_features_are_the_pooled_output_of_the_library(kind: str, tmp_path: Path) -> None:
    name, x = backbones.saved(tmp_path, kind), images()
    model = foreign.build(name, SHAPE, 7, "none").eval()
    expected = library("AutoModel", name)(prepared(x)).pooler_output.flatten(1)
    torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(0).max() > 1e-4  # not the same for each image
    assert model(x).shape == (3, 7) and model.head.in_features == expected.shape[1]


@pytest.mark.parametrize("kind", ["vit", "convnext", "resnet"])
def test_of_a_saved_classifier_features_are_what_its_head_reads(kind: str, tmp_path: Path) -> None:
    name, x = backbones.saved(tmp_path, kind, classifier=True), images()
    model = foreign.build(name, SHAPE, 7, "none").eval()
    whole = library("AutoModelForImageClassification", name)
    head = whole.classifier
    torch.testing.assert_close(head(model.features(x)), whole(prepared(x)).logits, rtol=1e-4, atol=1e-5)
    assert not [key for key in model.state_dict() if "pooler.dense" in key]


def test_without_a_pooler_it_is_the_class_token_or_the_mean() -> None:
    tokens, places = torch.rand(2, 5, 4), torch.rand(2, 4, 3, 3)
    told = {"pooler_output": None, "last_hidden_state": tokens}
    assert adapter._pooled(SimpleNamespace(**told), token=True).equal(tokens[:, 0])
    assert adapter._pooled(SimpleNamespace(**told), token=False).equal(tokens.mean(1))
    found = adapter._pooled(SimpleNamespace(last_hidden_state=places), token=False)
    torch.testing.assert_close(found, places.flatten(2).mean(2))


@pytest.mark.parametrize("kind", backbones.KINDS)
def test_it_is_built_again_without_its_folder(kind: str, tmp_path: Path) -> None:
    folder, run = tmp_path / "net", tmp_path / "run"
    run.mkdir()
    name = backbones.saved(folder, kind, classifier=True)
    model = foreign.build(name, SHAPE, 7, "none").eval()
    foreign.write(model, run)
    weights.write_tensors(run / "model.safetensors", model.state_dict())
    shutil.rmtree(folder)
    before = torch.random.get_rng_state()
    found = models.saved(run, name, Tuning(), SHAPE, 7).eval()
    assert torch.random.get_rng_state().equal(before)
    assert tiny.same(dict(found.state_dict()), dict(model.state_dict())) and found(images()).equal(model(images()))
    assert json.dumps(found.features.record) == json.dumps(model.features.record)


def test_it_draws_nothing_from_what_others_draw_from(tmp_path: Path) -> None:
    name = backbones.saved(tmp_path, "vit", classifier=True)
    before = torch.random.get_rng_state()
    adapter.load(name, SHAPE)
    assert torch.random.get_rng_state().equal(before)


def test_an_input_is_the_same_after_json() -> None:
    for reads in (Input(), Input((4, 5), (0.1, 0.2), (0.3, 0.4))):
        plain = {"size": reads.size, "mean": reads.mean, "std": reads.std}
        assert Input.of(json.loads(json.dumps(plain))) == reads


def test_the_hub_is_asked_only_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(place: str, **options: object) -> object:
        asked.append(place)
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", fetch)
    with pytest.raises(UserError, match=r"model hub:owner/name cannot be read: no network\. .* or hub:ORG/NAME"):
        foreign.build("hub:owner/name", SHAPE, 7, "none")
    for place in ("name", "owner/name", "a/b/c", "/a/b"):
        with pytest.raises(UserError, match="there is no such folder; a network of the hub is hub:ORG/NAME"):
            foreign.build(f"hf:{place}", SHAPE, 7, "none")
    for place in ("name", "a/b/c", "/a/b"):
        with pytest.raises(UserError, match="give hub:ORG/NAME"):
            foreign.build(f"hub:{place}", SHAPE, 7, "none")
    with pytest.raises(UserError, match=r"the folder has no config.json of transformers"):
        foreign.build(f"hf:{tmp_path}", SHAPE, 7, "none")
    assert asked == ["owner/name"]


@pytest.mark.parametrize(
    "told, message",
    [
        (None, "has no preprocessor_config.json, which tells how it reads images"),
        ({"size": 16}, "image_mean in its preprocessor_config.json is None: it must be 3 numbers"),
        ({**backbones.NORMAL, "image_std": [1, 2]}, "image_std .* must be 3 numbers"),
        (
            {**backbones.PREPROCESSOR, "size": 24},
            "cannot read images of 3x24x24: .* of its own configuration",
        ),
        (backbones.NORMAL, r"reads patches of 8x8, the images are 4x12: give --size"),
    ],
)
def test_what_the_configuration_leaves_open_is_asked_for(told: Any, message: str, tmp_path: Path) -> None:
    name = backbones.saved(tmp_path, "vit", preprocessor=told)
    with pytest.raises(UserError, match=message):
        foreign.build(name, (1, 4, 12), 7, "none")


def test_what_is_no_whole_image_model_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = backbones.saved(tmp_path / "vit", "vit")
    with pytest.raises(UserError, match="comes with its weights, leave it out"):
        foreign.build(name, SHAPE, 7, "some.safetensors")
    file = tmp_path / "vit" / "model.safetensors"
    tensors = weights.read_tensors(file)
    kept = {key: value for key, value in tensors.items() if "layernorm.weight" not in key}
    weights.write_tensors(file, kept)
    with pytest.raises(UserError, match="lacks the weights of "):
        foreign.build(name, SHAPE, 7, "none")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot be read: .* Give a whole folder"):
        foreign.build(name, SHAPE, 7, "none")
    words = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.BertModel(words).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="reads input_ids, not images: give an image model"):
        foreign.build(f"hf:{tmp_path / 'bert'}", SHAPE, 7, "none")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"model .*vit needs the library transformers: .*'semisynth\[transformers\]'"):
        foreign.build(name, SHAPE, 7, "none")


def test_its_bars_and_reports_are_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = transformers.utils.logging
    name = backbones.saved(tmp_path, "vit", classifier=True)
    capfd.readouterr()
    before = (log.get_verbosity(), log.is_progress_bar_enabled())
    foreign.build(name, SHAPE, 7, "none")
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_trained_and_loaded_again_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    name, run = backbones.saved(tmp_path / "net", "vit"), tmp_path / "run"
    network = transformers.AutoModel.from_pretrained(tmp_path / "net").to(dtype)
    network.save_pretrained(tmp_path / "net")
    result = single.fit(tiny.config("supervised", model=name, steps=2), run, show=False)
    _, model, data = restore.trained(run, torch.device("cpu"))
    assert {value.dtype for value in model.features.parameters()} == {torch.float32}
    assert classify(model, data.test, data.classes)["accuracy"] == result["test"]["accuracy"]
    assert "dtype" not in (run / foreign.FILE).read_text()


def configured(folder: Path, **told: Any) -> None:
    """Add to the network's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **told}))


def test_code_in_a_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # which the library asks
    name = backbones.saved(tmp_path, "vit")
    code = "raise RuntimeError('was run')"
    (tmp_path / "theirs.py").write_text(code)
    configured(tmp_path, model_type="theirs", auto_map={"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"})
    with pytest.raises(UserError, match="needs code of its own, which is not run: give a network that is in"):
        foreign.build(name, SHAPE, 7, "none")


def test_adapters_beside_a_network_are_not_passed_over(tmp_path: Path) -> None:
    name = backbones.saved(tmp_path, "vit")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has adapters beside it: join them to its weights with merge_and_unload\(\)"):
        foreign.build(name, SHAPE, 7, "none")


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    name = backbones.saved(tmp_path, "vit")
    configured(tmp_path, intermediate_size=24)
    told = r"the weights '.*' are \(.*16.*\), and by its config.json \(.*24.*\): restore it"
    with pytest.raises(UserError, match=told):
        foreign.build(name, SHAPE, 7, "none")


def test_weights_in_a_pickle_of_more_than_tensors_are_not_read(tmp_path: Path) -> None:
    name = backbones.saved(tmp_path, "vit")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"cls_token": Path("a")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match="weights in a pickle of Python objects, which could run any code: not read"
    ) as told:
        foreign.build(name, SHAPE, 7, "none")
    assert "weights_only" not in str(told.value)


def test_of_images_and_texts_the_half_of_images_is_asked_for(tmp_path: Path) -> None:
    small = {**backbones.SMALL, "num_hidden_layers": 1}
    vision = {**small, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "both")
    with pytest.raises(UserError, match=r"not images: .* CLIPVisionModel\.from_pretrained\(FOLDER\)\.save_pretrained"):
        foreign.build(f"hf:{tmp_path / 'both'}", SHAPE, 7, "none")
    half = tmp_path / "half"
    transformers.CLIPVisionModel.from_pretrained(tmp_path / "both").save_pretrained(half)
    (half / "preprocessor_config.json").write_text(json.dumps(backbones.PREPROCESSOR))
    assert foreign.build(f"hf:{half}", SHAPE, 7, "none").head.in_features == 8


def test_a_revision_of_the_hub_is_recorded_and_makes_no_other_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbones.saved(tmp_path / "net", "vit")
    read, revisions = transformers.AutoModel.from_pretrained, iter(("one", "two"))

    def fetch(place: str, **options: Any) -> Any:
        assert place == "owner/name"
        network, found = read(tmp_path / "net", **options)
        network.config._commit_hash = next(revisions)
        return network, found

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", fetch)
    monkeypatch.setattr(transformers.utils, "cached_file", lambda *_, **__: tmp_path / "net" / processor.FILE)
    first, second = (foreign.build("hub:owner/name", SHAPE, 7, "none") for _ in range(2))
    foreign.write(first, tmp_path)
    assert weights.read_json(tmp_path / foreign.FILE)["revision"] == "one"
    foreign.require(second, tmp_path, "--out")
    assert foreign.identity(first) == foreign.identity(second)


@pytest.mark.parametrize(
    "kind, classifier, told", [("vit", True, "its class token"), ("resnet", True, "pooler_output")]
)
def test_what_features_are_is_told(kind: str, classifier: bool, told: str, tmp_path: Path) -> None:
    name = backbones.saved(tmp_path, kind, classifier=classifier)
    model = foreign.build(name, SHAPE, 7, "none")
    assert f"the {model.head.in_features} features of model {name} are {told}" in foreign.notes(model, name, "none")


def test_a_place_at_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbones.saved(tmp_path / "net", "vit")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert foreign.build("hf:~/net", SHAPE, 7, "none").head.in_features == 8
