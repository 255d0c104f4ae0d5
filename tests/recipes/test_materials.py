"""What a configuration names, built: the draw of the labels, the method's parts, where unlabeled images come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pictures
import pytest
import tiny
import torch
from safetensors.torch import load_file

from semisynth import distributed, generators, weights
from semisynth.data import datasets
from semisynth.data import own as datasets_own
from semisynth.data.stored import Stored
from semisynth.data.stream import to_float
from semisynth.errors import UserError
from semisynth.generators.gan import ConditionalGenerator
from semisynth.method import Update
from semisynth.recipes.config import Config, method_class, method_names
from semisynth.recipes.materials import Materials
from semisynth.weights import SHIPPED


def rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


def test_labels_are_drawn_from_the_pool_and_the_rest_is_unlabeled():
    found, pool = Materials(tiny.config("fixmatch", labels_per_class=3)), datasets.load("digits").pool
    assert found.labeled.y.bincount().tolist() == [3] * 10
    assert len(found.labeled) + len(found.rest) == len(pool)
    assert rows(found.labeled.x) | rows(found.rest.x) == rows(pool.x)
    assert len(rows(found.labeled.x) & rows(found.rest.x)) <= len(pool) - len(rows(pool.x))
    batch = found.stream(0)
    assert rows(batch.x) <= rows(to_float(found.labeled.x))
    assert torch.equal(batch.u, to_float(found.rest.x[batch.index]))
    assert (len(batch.x), len(batch.u), batch.progress) == (8, 8, 0.0)


def test_no_number_of_labels_means_all_of_them():
    found, pool = Materials(tiny.config("fixmatch", labels_per_class=0)), datasets.load("digits").pool
    assert torch.equal(found.labeled.y, pool.y) and torch.equal(found.rest.x, pool.x)


def test_labels_weights_batches_and_classes_come_from_the_seed_alone(generator):
    def content(seed):
        torch.manual_seed(int(torch.randint(99, ())))
        found = Materials(tiny.config("mpssl", generator, seed=seed))
        return [found.labeled.y, found.labeled.x, found.method.state_dict(), found.stream(3).x, found.generator.order]

    one, again, other = content(0), content(0), content(1)
    assert tiny.same(one, again)
    assert not any(map(tiny.same, one[1:], other[1:]))


def test_the_generator_has_its_classes_shuffled(generator):
    found = Materials(tiny.config("mpssl", generator))
    z, y = torch.randn(10, *found.generator.latent_shape), torch.arange(10)
    plain = generators.load(generator)
    torch.testing.assert_close(found.generator(z, y), plain(z, found.generator.order[y]))
    assert found.method.generator.module is found.generator


@pytest.mark.parametrize("method", ["pssl", "gda", "transport"])
def test_the_source_classifier_speaks_of_the_shuffled_classes(method, generator):
    found = Materials(tiny.config(method, generator))
    source = (found.method if method == "pssl" else found.method.reader).source.module
    assert torch.equal(source.order, found.generator.order) and not source.training
    kept = load_file(Path(generator).parent / "source" / "model.safetensors")
    assert tiny.same(
        dict(source.classifier.state_dict()), {name: kept[name] for name in source.classifier.state_dict()}
    )


def test_the_source_of_a_shipped_generator_ships_too():
    found = Materials(tiny.config("gda", "letters")).method.reader.source.module
    kept = load_file(SHIPPED / "letters-source" / "model.safetensors")
    assert torch.equal(found.classifier.head.weight, kept["head.weight"])
    with pytest.raises(UserError, match="letters-generator': make one with: semisynth fit --method supervised --data"):
        Materials(tiny.config("gda", str(SHIPPED / "letters-generator")))


def test_features_start_from_the_foundation_and_the_head_anew():
    found, fresh = (Materials(tiny.config("supervised", init=init)).method.model for init in ("foundation", "none"))
    shipped = load_file(SHIPPED / "glyphs-small-cnn" / "model.safetensors")
    for name, value in found.features.state_dict().items():
        assert torch.equal(value, shipped[f"features.{name}"])
    assert found.head.weight.shape == (10, 128) and not tiny.same(found.state_dict(), fresh.state_dict())


@pytest.mark.parametrize(
    "method, fields, generated",
    [
        ("fixmatch", {}, False),
        ("fixmatch", {"generator": True}, True),
        ("fixmatch", {"generator": True, "unlabeled": "generator"}, True),
        ("supervised", {"unlabeled": "none"}, None),
        ("mpssl", {"generator": True}, None),
        ("pretext", {}, False),
        ("pretext", {"generator": True}, True),
    ],
)
def test_unlabeled_images_come_from_where_the_setting_says(method, fields, generated, generator):
    named = {"generator": generator} if "generator" in fields else {}
    batch = Materials(Config.of({**tiny.content(method), **fields, **named})).stream(0)
    assert len(batch.u) == (0 if generated is None else 8)
    assert generated is None or bool((batch.index < 0).all()) == generated
    assert generated is None or bool(((batch.u >= 0) & (batch.u <= 1)).all())


def test_a_generator_of_another_size_is_adapted_and_that_is_told(tmp_path):
    small = ConditionalGenerator((1, 8, 8), 3, latent=4, width=8)
    weights.write_json(tmp_path / "config.json", {"method": {"name": "gan", "latent": 4, "width": 8}})
    weights.write_json(tmp_path / "result.json", {"shape": [1, 8, 8], "classes": 3})
    weights.write_tensors(tmp_path / "model.safetensors", small.state_dict())
    found = Materials(tiny.config("mpssl", str(tmp_path)))
    assert found.told == (f"the images of generator '{tmp_path}' are resized from 8x8 to 16x16",)
    z, y = torch.randn(3, 4), torch.arange(3)
    expected = generators.Adapter((1, 8, 8), (1, 16, 16))(small.eval()(z, found.generator.order[y]))
    torch.testing.assert_close(found.generator(z, y), expected)


# ---- one's own images -----------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    pictures.folder(tmp_path / "set", 6, classes="ab", size=(12, 10))
    for i in range(3):
        pictures.save(tmp_path / "set" / "unlabeled" / f"{i}.png", i)
    return str(tmp_path / "set")


@pytest.mark.parametrize("reading, shape", [({}, (3, 16, 16)), ({"size": 20, "channels": "gray"}, (1, 20, 20))])
def test_images_get_the_size_of_the_generator_unless_they_have_one(reading, shape, own, generator):
    found = Materials(tiny.config("pssl", generator, data=own, **reading))
    assert found.data.shape == shape and generators.shape(found.generator) == shape
    adapted = "repeated over 3 channels" if not reading else "resized from 16x16 to 20x20"
    assert found.told[-1] == f"the images of generator '{generator}' are {adapted}"
    x = torch.rand(4, *shape)
    reader = found.method.source.module
    small = generators.Adapter(shape, (1, 16, 16))(x)
    torch.testing.assert_close(reader(x), reader.classifier(small)[:, reader.order])


def test_unlabeled_are_the_rest_of_the_pool_and_what_has_no_label(own):
    found = Materials(tiny.config("fixmatch", data=own, holdout=0.0))
    assert (len(found.labeled), len(found.rest)) == (4, 8 + 3) and found.rest.y[-3:].tolist() == [-1] * 3
    unlabeled = rows(found.data.unlabeled.x)
    assert rows(found.rest.x) == unlabeled | (rows(found.data.pool.x) - rows(found.labeled.x))
    whole = Materials(tiny.config("fixmatch", data=own, holdout=0.0, labels_per_class=0))
    assert (len(whole.labeled), len(whole.rest)) == (12, 12 + 3)


def test_images_in_a_file_make_the_same_batches(own, monkeypatch):
    memory = Materials(tiny.config("fixmatch", data=own))
    monkeypatch.setattr(datasets_own, "IN_MEMORY", 10)
    file = Materials(tiny.config("fixmatch", data=own))
    assert isinstance(file.labeled.x, Stored)
    for step in range(4):
        one, other = memory.stream(step), file.stream(step)
        assert tiny.same([one.x, one.y, one.u, one.index], [other.x, other.y, other.u, other.index])


def test_features_of_gray_images_are_not_for_colours(own):
    with pytest.raises(
        UserError, match=r"--init foundation has features of 1 channel, the images have 3: .* --channels gray"
    ):
        Materials(tiny.config("supervised", data=own, init="foundation"))


@pytest.mark.parametrize("method", method_names())
def test_a_method_is_given_nothing_but_the_drawn_labels_and_the_pool(method, generator):
    """A method knows the data through its batches alone, so its outer problem too sees the drawn labels only."""
    found = Materials(tiny.config(method, generator))
    pool, held_back = (rows(to_float(images.x)) for images in (found.data.pool, found.data.test))
    held_back |= rows(to_float(found.data.validation.x))
    for step in range(5):
        batch = found.stream(step)
        assert rows(batch.x) <= rows(to_float(found.labeled.x)) and rows(batch.u) <= pool - held_back
    shapes = {tuple(value.shape[1:]) for value in found.method.state_dict().values() if value.ndim == 4}
    assert found.data.shape not in shapes


@pytest.mark.parametrize("method, fields", [("fixmatch", {"unlabeled": "pool"}), ("supervised", {})])
def test_a_generator_that_nothing_reads_is_refused(method, fields, generator):
    with pytest.raises(UserError, match=f"method '{method}' makes no use of --generator here"):
        Materials(Config.of({**tiny.content(method), **fields, "generator": generator}))


def test_a_pool_without_unlabeled_images_is_refused(monkeypatch):
    found = Materials(tiny.config("fixmatch"))
    few = replace(found.data, pool=found.labeled)
    monkeypatch.setattr(datasets, "load", lambda *_: few)
    with pytest.raises(UserError, match="every image of the pool is labeled"):
        Materials(tiny.config("fixmatch", labels_per_class=2))
    with pytest.raises(UserError, match="every image of the pool is labeled"):
        Materials(tiny.config("fixmatch", "glyphs", labels_per_class=2, unlabeled="both"))


READERS = [name for name in method_names() if method_class(name).reads_u]


@pytest.mark.parametrize("method", READERS)
def test_half_of_the_unlabeled_images_of_both_are_of_each_kind(method, generator):
    found = Materials(tiny.config(method, generator, unlabeled="both"))
    pool = Materials(tiny.config(method, unlabeled="pool", unlabeled_batch=4))
    made = Materials(tiny.config("fixmatch", generator, unlabeled="generator", unlabeled_batch=4))
    for step in range(3):
        batch = found.stream(step)
        assert batch.index.view(-1, 2)[:, 1].tolist() == [-1] * 4 and (batch.index[::2] >= 0).all()
        assert torch.equal(batch.u[::2], pool.stream(step).u) and torch.equal(batch.index[::2], pool.stream(step).index)
        assert torch.equal(batch.u[1::2], made.stream(step).u)


@pytest.mark.parametrize("method", READERS)
def test_methods_remember_nothing_of_synthetic_images(method, generator):
    """What a buffer keeps for each image of the pool is written for those of the batch alone."""
    found = Materials(
        tiny.config(method, generator, {"threshold": 0.0} if method == "flexmatch" else {}, unlabeled="both")
    )
    seen = set()
    for step in range(4):
        batch = found.stream(step)
        seen |= {*batch.index[::2].tolist()}
        with torch.no_grad():
            for update in found.method.updates().values():
                memory = update.loss(batch).memory if isinstance(update, Update) else {}
                for name, value in memory.items():
                    found.method.get_buffer(name).copy_(value)
    kept = {name: value for name, value in found.method.named_buffers() if value.shape[-1:] == (len(found.rest),)}
    assert {*kept} == {"flexmatch": {"label"}, "rsmatch": {"suspicion", "entered"}}.get(method, set())
    for name in kept.keys() - {"entered"}:
        assert {*(kept[name] != -1).nonzero()[:, 0].tolist()} == seen


@pytest.mark.parametrize(
    "size, world, told", [(9, 1, "choose a multiple of 2"), (6, 2, "over 2 processes: choose a multiple of 4")]
)
def test_both_takes_even_batches(size, world, told, generator, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: world)
    with pytest.raises(UserError, match=f"unlabeled_batch is {size}, of which --unlabeled both takes half .*{told}"):
        Materials(tiny.config("fixmatch", generator, unlabeled="both", unlabeled_batch=size))


def test_both_needs_a_generator():
    with pytest.raises(UserError, match="--unlabeled both needs --generator"):
        Materials(tiny.config("fixmatch", unlabeled="both"))
    with pytest.raises(UserError, match="'supervised' reads no unlabeled images"):
        Materials(tiny.config("supervised", "glyphs", unlabeled="both"))


def test_without_labels_every_image_of_the_pool_is_unlabeled():
    found, pool = Materials(tiny.config("pretext")), datasets.load("digits").pool
    assert torch.equal(found.rest.x, pool.x) and len(found.labeled) == len(found.stream(0).x) == 0
    for field, value in (("labels_per_class", 2), ("batch", 8)):
        with pytest.raises(UserError, match=f"method 'pretext' does not read {field}: leave it out."):
            Materials(Config.of(tiny.content("pretext") | {field: value}))


@pytest.mark.parametrize("method", sorted(set(method_names()) - {"pssl", "gda", "transport"}))
def test_a_source_that_the_method_does_not_read_is_refused(method, generator):
    content = tiny.content(method, generator) | {"source": str(Path(generator).parent / "source")}
    with pytest.raises(UserError, match=f"method '{method}' does not read source: leave it out"):
        Materials(Config.of(content))


@pytest.mark.parametrize(
    "field, value", [("lr", 5.0), ("weight_decay", 0.0), ("model", "wrn-16-2"), ("init", "foundation")]
)
def test_an_option_that_the_method_does_not_read_is_refused(field, value):
    with pytest.raises(UserError, match=f"method 'gan' does not read {field}"):
        Materials(tiny.config("gan", **{field: value}))


def test_features_of_a_run_that_is_not_finished_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model": "small-cnn"}')
    with pytest.raises(UserError, match=r"is not finished: the same fit goes on where it stopped"):
        Materials(tiny.config("supervised", init=str(tmp_path)))
