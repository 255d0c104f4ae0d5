"""The source classifier: whose classes it speaks of, what it reads over a training, and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import zoo
from safetensors.torch import save_file
from torch import Tensor

from semisynth import generators, weights
from semisynth.adapter import Adapter
from semisynth.errors import UserError
from semisynth.generators import Permuted, source
from semisynth.generators.gan import ConditionalGenerator
from semisynth.generators.source import Reader, Source
from semisynth.models import small_cnn

D = 4  # foundation classes, which `zoo.Reader` reads off an image's values
SHAPE = (1, 16, 16)


# ---- the order of the classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_names_classes_by_the_generator_s_shuffled_numbers(seed: int) -> None:
    order = Permuted(zoo.generator(), seed).order
    x = zoo.normal(5, D, 1.0, 0)
    found = Source(zoo.Reader(D), order, Adapter((D, 1, 1), (D, 1, 1)))(x[:, :, None, None])
    assert found.tolist() == [[row[order[k]] for k in range(D)] for row in x.tolist()]


@pytest.mark.parametrize("name, share", [("glyphs", 0.95), ("letters", 0.9)])
def test_the_shipped_ones_read_what_the_generator_was_asked_for(name: str, share: float) -> None:
    generator = Permuted(generators.load(name), 3)
    read = source.load(None, name, generator, SHAPE, SHAPE).eval()
    y = torch.arange(generator.classes).repeat(4)
    with torch.no_grad():
        found = read(generator(torch.randn(len(y), *generator.latent_shape), y)).argmax(1)
    assert (found == y).float().mean() > share


# ---- the reading ----------------------------------------------------------------------------------------------------


def commit(reader: Reader, new: dict[str, Tensor]) -> None:
    for name, value in new.items():
        reader.get_buffer(name).copy_(value)


def images(n: int, seed: int) -> Tensor:
    """Images that `zoo.Reader` reads as random logits."""
    return zoo.normal(n, D, 2.0, seed)[:, :, None, None]


BATCHES = [[0, 1, 1, 0], [1, 1, 1, 1], [0, 2, 1, 0], [2, 2, 0, 2], [1, 0, 2, 2]]  # class 2 comes late, 3 never


def test_transport_is_the_mean_over_batches_of_the_mean_posterior() -> None:
    reader = Reader(zoo.Reader(D), 4, D).double()
    means: list[list[list[float]]] = [[] for _ in range(4)]
    for seed, labels in enumerate(BATCHES):
        x = images(4, seed)
        new = reader(x, torch.tensor(labels))
        posteriors = [zoo.softmax(row) for row in x[:, :, 0, 0].tolist()]
        for c in set(labels):
            own = [p for p, label in zip(posteriors, labels, strict=True) if label == c]
            means[c].append([sum(column) / len(own) for column in zip(*own, strict=True)])
        expected = [
            [sum(column) / len(found) for column in zip(*found, strict=True)] if found else [1 / D] * D
            for found in means
        ]
        torch.testing.assert_close(new["transport"], torch.tensor(expected, dtype=torch.float64))
        assert new["count"].tolist() == [len(found) for found in means]
        commit(reader, new)
    assert [len(found) for found in means] == [4, 4, 3, 0]


def test_reading_writes_nothing_by_itself_and_has_no_gradient() -> None:
    reader = Reader(zoo.Reader(D), 4, D).double()
    before = zoo.copies(reader)
    new = reader(images(4, 0).requires_grad_(), torch.tensor(BATCHES[0]))
    assert zoo.same(before, zoo.copies(reader)) and set(before) == set(new) == {"transport", "count"}
    assert not any(value.requires_grad for value in new.values())


def test_ranks_read_what_one_process_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a class that only one of them sees."""

    def read(rank: int, world: int) -> dict[str, Tensor]:
        reader = Reader(zoo.Reader(D), 4, D).double()
        for seed, labels in enumerate(BATCHES):
            rows = slice(rank * 4 // world, (rank + 1) * 4 // world)
            commit(reader, reader(images(4, seed)[rows], torch.tensor(labels)[rows]))
        return zoo.copies(reader)

    whole = read(0, 1)
    for part in zoo.on_ranks(monkeypatch, 2, lambda rank: read(rank, 2)):
        torch.testing.assert_close(part, whole, atol=1e-15, rtol=1e-12)


# ---- where it comes from --------------------------------------------------------------------------------------------


def run(
    path: Path,
    classes: int = 3,
    shape: tuple[int, int, int] = SHAPE,
    task: str = "classify",
    data: str = "generator:mine",
) -> str:
    """The directory of a run of that kind."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model": "small-cnn", "data": data}))
    (path / "result.json").write_text(json.dumps({"task": task, "classes": classes, "shape": shape}))
    save_file(small_cnn(shape[0], classes).state_dict(), path / "model.safetensors")
    return str(path)


def wants(classes: int = 3) -> Permuted:
    return Permuted(ConditionalGenerator(SHAPE, classes, latent=4, width=8), 0)


def test_a_run_directory_is_loaded(tmp_path: Path) -> None:
    path, x = run(tmp_path / "run"), torch.rand(4, *SHAPE)
    classifier = small_cnn(1, 3)
    classifier.load_state_dict(weights.read_tensors(Path(path) / "model.safetensors"))
    loaded = source.load(path, "mine", wants(), SHAPE, SHAPE)
    assert loaded(x).equal(classifier(x)[:, wants().order])


REMEDY = "make one with: semisynth fit --method supervised --data generator:{} --out DIR, and give --source DIR."


def test_a_generator_of_one_s_own_has_none_that_ships(generator: str) -> None:
    with pytest.raises(UserError) as told:
        source.load(None, generator, wants(10), SHAPE, SHAPE)
    assert str(told.value) == f"no source classifier ships for generator '{generator}': {REMEDY.format(generator)}"


def test_the_remedy_makes_one(generator: str) -> None:
    """`conftest.generator` made it by that command."""
    made = Path(generator).parent / "source"
    assert json.loads((made / "config.json").read_text())["data"] == f"generator:{generator}"
    assert source.load(str(made), generator, wants(10), SHAPE, SHAPE)(torch.rand(2, *SHAPE)).shape == (2, 10)


def test_a_directory_of_the_name_of_a_shipped_generator_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "glyphs").mkdir()
    monkeypatch.chdir(tmp_path)
    read = source.load(None, "glyphs", Permuted(generators.load("glyphs"), 0), SHAPE, SHAPE)
    assert read(torch.rand(1, *SHAPE)).ndim == 2


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"classes": 4}, "a classify run of 4 classes"),
        ({"task": "generate"}, "a generate run of 3 classes"),
    ],
)
def test_a_source_of_another_kind_is_refused(fields: dict[str, object], told: str, tmp_path: Path) -> None:
    path = run(tmp_path / "run", **fields)
    with pytest.raises(UserError) as error:
        source.load(path, "mine", wants(), SHAPE, SHAPE)
    assert str(error.value) == f"--source {path} is {told}; generator 'mine' has 3: {REMEDY.format('mine')}"


@pytest.mark.parametrize("data", ["glyphs", "mine", "generator:another"])
def test_a_source_of_other_samples_is_refused(data: str, tmp_path: Path) -> None:
    path = run(tmp_path / "run", data=data)
    with pytest.raises(UserError) as error:
        source.load(path, "mine", wants(), SHAPE, SHAPE)
    told = f"--source {path} was trained on --data {data}, not on this generator: {REMEDY.format('mine')}"
    assert str(error.value) == told


def test_one_of_other_images_is_read_by_the_names_of_its_classes(tmp_path: Path) -> None:
    path, x, names = run(tmp_path / "run", data="photos"), torch.rand(4, *SHAPE), ["cat", "dog", "emu"]
    result = json.loads((tmp_path / "run" / "result.json").read_text()) | {"class_names": ["dog", "emu", "cat"]}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    found = source.load(path, "mine", wants(), SHAPE, SHAPE, names)
    own = found.classifier(x)[:, [2, 0, 1]]  # as the generator numbers them
    assert found(x).equal(own[:, wants().order]) and found.told.endswith(
        "are taken for those of the generator by their names"
    )
    with pytest.raises(UserError, match="was trained on --data photos, not on this generator"):
        source.load(path, "mine", wants(), SHAPE, SHAPE, ["cat", "dog", "eel"])


def test_one_of_another_shape_has_images_adapted_to_that(tmp_path: Path) -> None:
    path, x = run(tmp_path / "run", shape=(3, 8, 8)), torch.rand(2, *SHAPE)
    found = source.load(path, "mine", wants(), SHAPE, SHAPE)
    assert found(x).equal(found.classifier(Adapter(SHAPE, (3, 8, 8))(x))[:, wants().order])


def test_for_a_generator_from_elsewhere_images_are_written_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "is_foreign", lambda name: True)
    with pytest.raises(UserError) as told:
        source.load(None, "sd", wants(10), (3, 32, 64), SHAPE)
    assert str(told.value) == (
        "no source classifier ships for generator 'sd': make one with: semisynth generate --generator sd --count 3900 "
        "--out IMAGES; semisynth fit --method supervised --data IMAGES/images.parquet --size 64 --out DIR; and give "
        "--source DIR."
    )


def test_a_generator_may_be_named_by_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run(tmp_path / "run", data=f"generator:{tmp_path}/mine")
    monkeypatch.chdir(tmp_path)
    assert source.load(path, "mine", wants(), SHAPE, SHAPE)(torch.rand(1, *SHAPE)).shape == (1, 3)


def test_a_generator_without_classes_has_nothing_to_read() -> None:
    with pytest.raises(UserError, match="no classes that a source classifier could read"):
        Reader(zoo.Reader(D), 4, 0)


def test_what_is_no_run_is_told_by_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/config\.json does not exist"):
        source.load(str(tmp_path / "nowhere"), "mine", wants(), SHAPE, SHAPE)
    path = Path(run(tmp_path / "run"))
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        source.load(str(path), "mine", wants(), SHAPE, SHAPE)
    (path / "config.json").write_text('{"data": "generator:mine"}')
    with pytest.raises(UserError, match="unknown model ''"):
        source.load(str(path), "mine", wants(), SHAPE, SHAPE)


def test_images_of_another_shape_are_adapted_before_they_are_read(tmp_path: Path) -> None:
    path, x, photo = run(tmp_path / "run"), torch.rand(2, 3, 32, 24), (3, 32, 24)
    read, plain = (source.load(path, "mine", wants(), SHAPE, shape).eval() for shape in (photo, SHAPE))
    assert read(x).equal(plain(Adapter(photo, SHAPE)(x)))
