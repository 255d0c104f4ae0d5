"""Networks of any make: what can be trained is, as it was and nothing else; the rest is refused at once."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import backbones
import numpy as np
import pytest
import tiny
import torch
from torch import nn

from semisynth import models, weights
from semisynth.errors import UserError
from semisynth.estimator import SemiSynthClassifier
from semisynth.evaluate import classify
from semisynth.models import Tuning, foreign
from semisynth.recipes import restore, single
from semisynth.recipes.materials import Materials

SHAPE = (1, 16, 16)
CPU = torch.device("cpu")
ODD = '''
import threading

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.middle, self.last = nn.Linear(8, 12), nn.Linear(12, 5)

    def features(self, x):
        return self.middle(self.body(x)).relu()

    def forward(self, x):
        return self.last(self.features(x))


class Named(Net):
    def forward(self, x):
        return self.last(input=self.features(x))


class TwoNames(Net):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Sequential(nn.Identity(), self.last)

    def forward(self, x):
        return self.classifier(self.features(x))


class Hidden(Net):
    def __init__(self):
        super().__init__()
        self.more = [self.last]

    def forward(self, x):
        return self.more[0](self.features(x))


class Halved(Net):
    def forward(self, x):
        return self.features(x).half()


class Whole(Net):
    def forward(self, x):
        return (100 * self.features(x)).long()


class Double(Net):
    def forward(self, x):
        return self.features(x.double())


class Nan(Net):
    def forward(self, x):
        return self.features(x) * float("nan")


class NanHead(Net):
    def features(self, x):
        return super().features(x) * float("nan")


class Squeezed(Net):
    def forward(self, x):
        return self.features(x).squeeze()


class Told(Net):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.LazyLinear(3)


class NoGradient(Net):
    def forward(self, x):
        with torch.no_grad():
            return self.features(x)


class Aside(Net):
    """A layer is called for what is only looked at."""

    def features(self, x):
        found = self.body(x)
        self.mean = self.middle(found).mean().detach()
        return self.last(found.repeat(1, 2)[:, :12]) + self.mean

    def forward(self, x):
        return self.features(x)


class Twice(Net):
    """One layer under two names, of which the second is called."""

    def __init__(self):
        super().__init__()
        self.other = self.middle

    def features(self, x):
        return self.other(self.body(x)).relu()


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(12, 12)
        self.most = nn.Linear(12, 12)
        self.most.weight = self.more.weight

    def features(self, x):
        return self.most(self.more(super().features(x)))


class Encoder(Net):
    """With attention, which in eval mode goes around the layers in it where it can."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def features(self, x):
        return self.middle(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def lazy():
    body = [nn.LazyConv2d(8, 3, 2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.LazyLinear(12), nn.ReLU(), nn.LazyLinear(5))


def half():
    return Net().half()


def script():
    return torch.jit.trace(Net(), torch.rand(2, 1, 16, 16))
'''


def odd(folder: Path, factory: str) -> str:
    (folder / "odd.py").write_text(ODD)
    return f"{folder / 'odd.py'}:{factory}"


def built(folder: Path, factory: str, init: str = "none") -> models.Classifier:
    return foreign.build(odd(folder, factory), SHAPE, 7, init)


@pytest.mark.parametrize(
    "factory, width", [("Named", 12), ("TwoNames", 12), ("half", 12), ("Halved", 12), ("lazy", 12)]
)
def test_it_becomes_features_of_float32_and_a_head(factory: str, width: int, tmp_path: Path) -> None:
    model = built(tmp_path, factory)
    found = model.features(torch.rand(3, *SHAPE))
    assert found.shape == (3, width) and found.dtype == torch.float32 and model.head.in_features == width
    assert not [key for key in model.features.state_dict() if "last" in key and factory != "Halved"]


@pytest.mark.parametrize(
    "factory, told",
    [
        ("Whole", r"gives \(2, 12\) of torch\.int64 for two images: its features must be floats"),
        ("Double", r"cannot read images of 1x16x16: .* It must compute in float32"),
        ("Nan", "gives nan or infinite features"),
        ("NanHead", "gives nan or infinite features"),
        ("Squeezed", r"gives \(12,\) for one image: it must give \(1, 12\)"),
        ("Told", "keeps 'network._extra_state' in its state, which is no tensor"),
        ("Locked", r"cannot be copied.*: .*lock.*\. Keep in it what copy\.deepcopy takes"),
        ("Unused", "never calls its lazy layer of 'network.more.weight'"),
        ("Hidden", "without its last linear layer 'last' it does not return what went into that"),
        ("script", "has a ScriptModule in it|is no head|fails"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_directory_is_made(factory: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        single.fit(tiny.config("supervised", model=odd(tmp_path, factory), steps=1), tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", ["full", "frozen", "lora"])
@pytest.mark.parametrize("factory", ["lazy", "half", "TwoNames", "Encoder", "Twice"])
def test_it_is_trained_and_loaded_again(factory: str, way: str, tmp_path: Path) -> None:
    if way == "lora":
        pytest.importorskip("peft")
    config = tiny.config("supervised", model=odd(tmp_path, factory), tune_features=way, steps=2)
    result = single.fit(config, tmp_path / "run", show=False)
    _, model, data = restore.trained(tmp_path / "run", CPU)
    assert classify(model, data.test, data.classes)["accuracy"] == result["test"]["accuracy"]


@pytest.mark.parametrize("factory", ["Encoder", "Twice"])
def test_every_adapter_moves(factory: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = built(tmp_path, factory)
    Tuning("lora", 2).apply(model, SHAPE)
    given = {key: p for key, p in model.features.named_parameters() if p.requires_grad}
    for key, p in given.items():
        if ".lora_B." in key:
            nn.init.normal_(p)
    found = torch.autograd.grad(model.features(torch.rand(2, *SHAPE)).square().sum(), [*given.values()])
    assert all(g.abs().sum() > 0 for g in found)
    places = {key.split(".lora_")[0] for key in given}
    assert len(places) == (5 if factory == "Encoder" else 1) and not any("out_proj" in place for place in places)


def test_adapters_that_would_not_be_trained_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(
        UserError, match=r"lora: the features fail with adapters: .* Give --tune-features frozen or full"
    ):
        Tuning("lora", 2).apply(built(tmp_path, "NoGradient"), SHAPE)


def test_an_adapter_of_a_layer_that_is_only_looked_at_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(UserError, match=r"lora: the adapter 'network\.middle\.lora_A.*' would not be trained"):
        Tuning("lora", 2).apply(built(tmp_path, "Aside"), SHAPE)


class Spied(nn.Conv2d):
    """A convolution that is asked for what an adapter in its place has not."""

    spied = 1


class Spying(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Spied(1, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv.spied * self.conv(x).mean((2, 3))  # type: ignore[no-any-return]


def test_layers_that_are_asked_for_more_than_an_adapter_has_are_told() -> None:
    pytest.importorskip("peft")
    with pytest.raises(UserError, match=r"lora: the features fail with adapters: .*spied.* Give --tune-features"):
        Tuning("lora", 2).apply(models.Classifier(Spying(), 4, 3), SHAPE)


def test_one_name_of_tied_weights_is_enough(tmp_path: Path) -> None:
    net, file = built(tmp_path, "Tied").features.network, tmp_path / "net.safetensors"
    tensors = {**net.state_dict(), "last.weight": torch.rand(5, 12), "last.bias": torch.rand(5)}
    weights.write_tensors(file, {key: value for key, value in tensors.items() if key != "most.weight"})
    found = built(tmp_path, "Tied", str(file)).features.network
    assert found.most.weight.equal(net.more.weight) and found.most.weight is found.more.weight
    weights.write_tensors(
        file, {key: value for key, value in tensors.items() if key not in ("more.weight", "most.weight")}
    )
    with pytest.raises(UserError, match=r"does not fit this network: .*Missing"):
        built(tmp_path, "Tied", str(file))


def test_code_that_changed_is_not_run_for_a_run_of_other_code(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "helper.py").write_text("WIDTH = 12\n")
    file = tmp_path / "net.py"
    code = "from helper import WIDTH\nfrom torch import nn\n\n\ndef Net():\n    return nn.Sequential(nn.Flatten(), "
    file.write_text(code + "nn.Linear(256, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))\n")
    single.fit(tiny.config("supervised", model=f"{file}:Net", steps=1), run, show=False)
    (tmp_path / "helper.py").write_text("WIDTH = 12  # or more\n")
    with pytest.raises(UserError, match=r"helper\.py is not there, or not as it was .* restore that file"):
        restore.classifier(run, CPU)
    (tmp_path / "helper.py").write_text("WIDTH = 12\n")
    restore.classifier(run, CPU)
    file.write_text(code + "nn.Linear(256, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))\n")
    with pytest.raises(UserError, match=r"net\.py is not there, or not as it was"):
        restore.classifier(run, CPU)


def test_a_run_is_loaded_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd(tmp_path, "Net")
    monkeypatch.chdir(tmp_path)
    single.fit(tiny.config("supervised", model="odd.py:Net", steps=1), tmp_path / "run", show=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "odd.py").write_text("raise RuntimeError('of somebody else')")
    monkeypatch.chdir(tmp_path / "other")
    assert restore.classifier(tmp_path / "run", CPU)[1](torch.rand(2, *SHAPE)).shape == (2, 10)


def test_an_unfinished_run_goes_on_with_the_same_network_alone(tmp_path: Path) -> None:
    run, name = tmp_path / "run", odd(tmp_path, "Net")
    config = tiny.config("supervised", model=name, steps=2)
    single.fit(config, run, show=False)
    (run / "result.json").unlink()
    before = (run / foreign.FILE).read_text()
    (tmp_path / "odd.py").write_text(ODD.replace("nn.GELU()", "nn.Tanh()"))
    with pytest.raises(
        UserError, match=r"--out .*run is of another network, by its backbone\.json: code\.odd\.py differs"
    ):
        single.fit(config, run, show=False)
    assert (run / foreign.FILE).read_text() == before
    (tmp_path / "odd.py").write_text(ODD)
    single.fit(config, run, show=False)


def test_an_unfinished_run_goes_on_with_the_same_normalisation_alone(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder, run = tmp_path / "net", tmp_path / "run"
    config = tiny.config("supervised", model=backbones.saved(folder, "vit"), steps=2)
    single.fit(config, run, show=False)
    (run / "result.json").unlink()
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**backbones.PREPROCESSOR, "image_mean": [0.1, 0.5, 0.6]}))
    with pytest.raises(UserError, match=r"backbone\.json: input\.mean differs"):
        single.fit(config, run, show=False)
    file.write_text(json.dumps(backbones.PREPROCESSOR))
    single.fit(config, run, show=False)


@pytest.mark.parametrize("way", ["full", "lora"])
def test_an_estimator_of_one_s_own_network_is_pickled_and_copied(way: str, tmp_path: Path) -> None:
    if way == "lora":
        pytest.importorskip("peft")
    x, y = np.random.RandomState(0).rand(24, 16, 16), np.arange(24) % 3
    options = {"model": odd(tmp_path, "Net"), "tune_features": way, "steps": 2, "batch": 6}
    found = SemiSynthClassifier("supervised", None, **options).fit(x, y)
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        np.testing.assert_array_equal(again.predict_proba(x), found.predict_proba(x))
    content = pickle.dumps(found)
    (tmp_path / "odd.py").write_text(ODD + "\n")
    with pytest.raises(UserError, match=r"odd\.py is not there, or not as it was"):
        pickle.loads(content)


@pytest.mark.parametrize("model", ["small-cnn", "vit"])
def test_features_of_an_adapted_run_are_the_first_of_another(model: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    if model == "vit":
        pytest.importorskip("transformers")
        model = backbones.saved(tmp_path / "net", "vit")
    run, x = tmp_path / "run", torch.rand(3, *SHAPE)
    fields = {"model": model, "tune_features": "lora", "lora_rank": 2}
    single.fit(tiny.config("supervised", **fields, steps=3, lr=0.5), run, show=False)
    _, adapted, _, _ = restore.classifier(run, CPU)
    tensors = adapted.features.state_dict()
    assert max(float(value.abs().max()) for key, value in tensors.items() if ".lora_B." in key) > 0
    first = Materials(tiny.config("supervised", model=model, init=str(run))).method.model.eval()
    assert not [key for key in first.state_dict() if "lora" in key]
    torch.testing.assert_close(first.features(x), adapted.features(x), rtol=1e-4, atol=1e-5)


def test_a_run_of_the_same_network_by_another_name_gives_first_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, name = tmp_path / "run", odd(tmp_path, "Net")
    single.fit(tiny.config("supervised", model=name, steps=1), run, show=False)
    shutil.copytree(run, tmp_path / "broken")
    (tmp_path / "broken" / "backbone.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    Materials(tiny.config("supervised", model="odd.py:Net", init=str(run)))
    with pytest.raises(UserError, match=r"is of another network"):
        Materials(tiny.config("supervised", model="odd.py:Net", init=str(tmp_path / "broken")))


def test_what_was_found_is_told(tmp_path: Path) -> None:
    found = Materials(tiny.config("supervised", model=odd(tmp_path, "Net"))).told
    assert any(line.startswith("the last layer 'last' of model") and "its 12 features" in line for line in found)


@pytest.mark.parametrize("method", ["scr", "mgr", "fixmatch"])
def test_frozen_features_that_a_consistency_cannot_teach_are_told(method: str, generator: str) -> None:
    fields = {"unlabeled": "generator"} if method == "scr" else {}
    config = tiny.config(method, generator, init="foundation", tune_features="frozen", **fields)
    told = f"the features are frozen: the consistency of {method} teaches nothing"
    assert (told in Materials(config).told) == (method != "fixmatch")


@pytest.mark.parametrize(
    "init, told",
    [
        (
            "pretrained",
            "--init pretrained is for networks from elsewhere: for model small-cnn give foundation or a run",
        ),
        ("net.safetensors", "is for networks from elsewhere"),
    ],
)
def test_first_weights_of_others_are_not_for_our_own(init: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Materials(tiny.config("supervised", init=init))


def test_a_file_of_weights_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--init none.safetensors: there is no such file: give the weights of model"):
        built(tmp_path, "Net", "none.safetensors")
