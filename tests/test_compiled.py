"""Compiled networks train as eager ones do; what cannot be compiled is told before anything is written."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import tiny
import torch

from semisynth import compiled
from semisynth.errors import UserError
from semisynth.method import Update
from semisynth.recipes import single
from semisynth.recipes.config import method_names
from semisynth.recipes.materials import Materials

# What torch's compiler warns of in its own code.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (".*is deprecated", "The .grad attribute", ".*should not be instantiated")
]


@pytest.fixture(autouse=True)
def empty_cache():
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch):
    """Those that were compiled, through a backend that differentiates as the real one does and needs no compiler."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(compiled, "BACKEND", backend)
    return seen


def second_order(materials):
    return any(isinstance(u, Update) and u.second_order for u in materials.method.updates().values())


class CutOff(Exception):
    """What happens to a run that is killed."""


def train(config, out=None, until=10**9):
    """Everything that the fit left, and the method."""
    materials = Materials(config)

    def stream(step):
        if step == until:
            raise CutOff
        return materials.stream(step)

    ema = config.engine.fit(materials.method, stream, config.setting.steps, out)
    method = materials.method
    return {**method.state_dict(), **{f"ema.{k}": v for k, v in ema.state_dict().items()}}, method


def assert_near(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("name", method_names())
def test_every_method_trains_compiled_as_eager_or_says_that_it_cannot(name, generator, graphs, tmp_path):
    config = tiny.config(name, generator, steps=2)
    if second_order(Materials(config)):
        with pytest.raises(UserError, match=r"differentiates the network twice.*leave --compile out"):
            single.fit(replace(config, engine=replace(config.engine, compile=True)), tmp_path / "run", show=False)
        assert not list(tmp_path.iterdir())
        return
    eager, _ = train(config)
    before = len(graphs)
    found, method = train(replace(config, engine=replace(config.engine, compile=True)))
    assert len(graphs) > before + 1  # one is the trial
    assert_near(found, eager, 1e-5)
    assert not any("forward" in vars(module) for module in method.modules())


def test_a_graph_is_made_once_and_not_again_as_the_training_goes_on(generator, graphs):
    config = tiny.config("mpssl", generator, {"look_ahead": False}, steps=4, compile=True)
    materials, counts = Materials(config), []

    def stream(step):
        counts.append(len(graphs))
        return materials.stream(step)

    config.engine.fit(materials.method, stream, config.setting.steps)
    assert counts[-1] == len(graphs) > 1


def test_batch_statistics_are_those_of_eager(graphs):
    fields = {"model": "small-cnn-bn", "steps": 3}
    assert_near(
        train(tiny.config("fixmatch", **fields, compile=True))[0], train(tiny.config("fixmatch", **fields))[0], 1e-5
    )


def test_the_networks_and_their_direct_parts_are_compiled_and_a_foreign_one_is_not(generator, graphs):
    method = Materials(tiny.config("gda", generator)).method
    foreign = [*method.generator.module.modules(), *method.reader.source.module.modules()]
    with compiled.networks(method):
        found = [module for module in (*method.modules(), *foreign) if "forward" in vars(module)]
    assert found == [method.model, method.model.features, method.model.head, method.reader]


def test_each_shape_has_its_own_code(graphs):
    method = Materials(tiny.config("supervised")).method
    with compiled.networks(method):
        for n in (2, 3, 4, 5):
            method.model(torch.rand(n, 1, 16, 16))
    found = [
        [tuple(node.meta["example_value"].shape) for node in graph.graph.nodes if node.name == "l_x_"]
        for graph in graphs
    ]
    assert found == [[(n, 1, 16, 16)] for n in (2, 3, 4, 5)]


def test_networks_are_given_back_when_a_fit_fails(graphs):
    materials = Materials(tiny.config("supervised", compile=True))

    def broken(step):
        raise KeyError

    with pytest.raises(KeyError):
        materials.config.engine.fit(materials.method, broken, 2)
    assert not any("forward" in vars(module) for module in materials.method.modules())


def test_where_nothing_can_be_compiled_the_user_is_told(monkeypatch, tmp_path):
    def broken(graph, inputs):
        raise RuntimeError("no compiler found\n\nand much more")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with pytest.raises(UserError, match=r"no compiler found\). Install a C\+\+ compiler") as caught:
        single.fit(tiny.config("fixmatch", compile=True), tmp_path / "run", show=False)
    assert "much more" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_code_trains_to_nearly_the_same_weights_and_resumes_bitwise(tmp_path):
    config = tiny.config("fixmatch", steps=3, checkpoint_every=1, compile=True)
    found, _ = train(config)
    assert_near(found, train(tiny.config("fixmatch", steps=3))[0], 1e-4)
    with pytest.raises(CutOff):
        train(config, tmp_path, until=2)
    assert tiny.checkpoint(tmp_path)["step"] == 2
    torch._dynamo.reset()  # as in another process
    assert tiny.same(found, train(config, tmp_path)[0])
