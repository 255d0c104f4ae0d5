from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import zoo
from sklearn.datasets import load_digits
from torch import Tensor

from semisynth import distributed, generators, noise
from semisynth.data import datasets
from semisynth.data.datasets import Dataset, Images
from semisynth.data.glyphs import render
from semisynth.errors import UserError

SIZES = {"digits": (997, 300, 500), "glyphs": (22320, 620, 1240), "letters": (18720, 520, 1040)}


def parts(data: Dataset) -> list[Images]:
    return [data.pool, data.validation, data.test]


def rows(x: Tensor) -> Tensor:
    """The images as sorted rows, for comparison as multisets."""
    return x.flatten(1).unique(dim=0)


@pytest.mark.parametrize("name", SIZES)
def test_shapes_types_sizes_and_classes(name):
    data = datasets.load(name)
    assert (data.name, data.shape, data.flip) == (name, (1, 16, 16), False)
    assert tuple(len(part) for part in parts(data)) == SIZES[name]
    for part in parts(data):
        assert part.x.shape == (len(part), 1, 16, 16)
        assert part.x.dtype == torch.uint8
        assert part.y.dtype == torch.int64
        assert part.y.unique().tolist() == list(range(len(data.classes)))
        assert part.x.max() == 255
        assert part.x.min() == 0


@pytest.mark.parametrize("name", SIZES)
def test_no_image_is_in_two_splits(name):
    data = datasets.load(name)
    assert len(rows(torch.cat([part.x for part in parts(data)]))) == sum(SIZES[name])


@pytest.mark.parametrize("name", SIZES)
def test_splits_are_stratified_within_one_image_per_class(name):
    data = datasets.load(name)
    counts = torch.stack([part.y.bincount() for part in parts(data)]).double()
    quota = counts.sum(0) * counts.sum(1, keepdim=True) / counts.sum()
    assert (counts - quota)[1:].abs().max() < 1.5  # validation is drawn from what the test left
    assert (counts - quota)[2].abs().max() < 1


def test_digits_are_the_real_digits_resized():
    raw = load_digits()
    data = datasets.load("digits")
    x = torch.cat([part.x for part in parts(data)])
    y = torch.cat([part.y for part in parts(data)])
    assert data.classes == tuple("0123456789")
    # Pixel (2i + 1, 2j + 1) lies a quarter of the way from (i, j) to (i + 1, j + 1).
    grid = raw.images * (255 / 16)
    down = 0.75 * grid[:, :-1] + 0.25 * grid[:, 1:]
    inner = np.rint(0.75 * down[:, :, :-1] + 0.25 * down[:, :, 1:])
    expected = {(image.tobytes(), label) for image, label in zip(inner.astype(np.uint8), raw.target, strict=True)}
    got = {(image.tobytes(), label) for image, label in zip(x[:, 0, 1:-1:2, 1:-1:2].numpy(), y.tolist(), strict=True)}
    assert got == expected


def test_digits_are_the_same_on_every_machine():
    content = hashlib.sha256()
    for part in parts(datasets.load("digits")):
        content.update(part.x.numpy().tobytes() + bytes(part.y.tolist()))
    assert content.hexdigest()[:16] == "9ae458ee734d0b3f"


def test_digits_of_some_writers_and_those_of_the_others_are_all_digits():
    whole, some, others = (datasets.load(name) for name in ("digits", "digits-pool", "digits-others"))
    assert [len(part) for part in parts(some)] == [657, 150, 350] and [len(part) for part in parts(others)] == [
        640,
        0,
        0,
    ]
    assert some.classes == others.classes == whole.classes and not some.flip and not others.flip
    one, other, every = (torch.cat([part.x for part in parts(data)]) for data in (some, others, whole))
    assert len(rows(one)) + len(rows(other)) == len(rows(every)) == len(rows(torch.cat([one, other])))
    for part in parts(some):
        assert (part.y.bincount() - len(part) / 10).abs().max() < 4


def test_they_are_divided_between_two_forms():
    """On each form stand the ten digits in order, three times but for a gap, and then these."""
    drawn = "".join(map(str, load_digits().target))
    places = [found.start() for found in re.finditer("0955650989841773", drawn)]
    assert len(places) == 14 and all(90 < b - a < 135 for a, b in itertools.pairwise(places))
    assert places[9] - 30 == datasets.OTHERS and drawn[datasets.OTHERS :].startswith("0123456789" * 3)


def test_glyphs_are_the_rendering_and_letters_are_glyphs_without_digits():
    glyphs, letters = datasets.load("glyphs"), datasets.load("letters")
    assert "".join(glyphs.classes) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert letters.classes == glyphs.classes[10:]
    x, y = render(390)
    assert torch.equal(torch.cat([glyphs.test.x, glyphs.validation.x, glyphs.pool.x]), x)
    assert torch.equal(torch.cat([glyphs.test.y, glyphs.validation.y, glyphs.pool.y]), y)
    for part, whole in zip(parts(letters), parts(glyphs), strict=True):
        assert torch.equal(part.x, whole.x[whole.y >= 10])
        assert torch.equal(part.y + 10, whole.y[whole.y >= 10])


# ---- the labeled samples of a generator -----------------------------------------------------------------------------


def test_samples_are_what_the_generator_makes_of_each_class(generator):
    data, made = datasets.load(f"generator:{generator}"), generators.load(generator)
    assert (data.name, data.shape, data.flip) == (f"generator:{generator}", (1, 16, 16), False)
    assert data.classes == tuple("0123456789")
    assert [len(part) for part in parts(data)] == [3600, 100, 200]
    x, y = (torch.cat([getattr(part, name) for part in (data.test, data.validation, data.pool)]) for name in "xy")
    assert x.dtype == torch.uint8 and y.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 390
    latents = torch.randn(3900, *made.latent_shape, generator=torch.Generator().manual_seed(noise.derive("samples")))
    for i in (0, 7, 199, 200, 299, 300, 3899):  # one by one, and so in another batch
        image = 255 * made(latents[i : i + 1], torch.tensor([i % 10]))[0]
        assert (image - x[i]).abs().max() < 0.501
    assert len(rows(x)) > 3000  # those of a generator that hardly learned are much alike


def test_samples_are_the_same_whenever_and_wherever_they_are_made(generator, monkeypatch):
    one = datasets.load(f"generator:{generator}")
    datasets.built.cache_clear()
    torch.manual_seed(99)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with noise.seeded("another"):
        other = datasets.load(f"generator:{generator}")
    assert one is not other
    for part, again in zip(parts(one), parts(other), strict=True):
        assert torch.equal(part.x, again.x) and torch.equal(part.y, again.y)


def test_samples_of_a_generator_without_classes_have_no_labels(monkeypatch):
    monkeypatch.setattr(generators, "load", lambda name: zoo.generator("unconditional"))
    with pytest.raises(
        UserError, match="--data generator:plain: that generator has no classes, so its samples have no"
    ):
        datasets.load("generator:plain")


def test_an_unknown_generator_is_told_with_the_nearest_one():
    with pytest.raises(UserError, match=r"unknown generator .* 'glyphes': did you mean 'glyphs'"):
        datasets.load("generator:glyphes")


def test_subset_keeps_the_order_of_the_index():
    images = Images(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.arange(5) * 10)
    part = images.subset(torch.tensor([4, 1]))
    assert part.x.flatten().tolist() == [4, 1]
    assert part.y.tolist() == [40, 10]
    assert len(part) == 2


def test_a_description_of_a_built_in_set_tells_its_pixels_and_labels_by_a_hash():
    described = datasets.load("digits").describe()
    sizes = dict(zip(("train", "validation", "test"), SIZES["digits"], strict=True))
    assert described == {
        "source": "digits",
        "hash": described["hash"],
        "size": [16, 16],
        "channels": 1,
        "fit": None,
        "images": sizes,
        "notes": [],
    }
    data = datasets.load("digits")
    swapped = replace(data, pool=Images(data.pool.x, data.pool.y.flip(0)))
    assert len(described["hash"]) == 32 and swapped.describe()["hash"] != described["hash"]


def test_a_set_is_built_once_per_process():
    assert datasets.load("digits") is datasets.load("digits")


def test_unknown_name_is_told_with_the_nearest_one():
    with pytest.raises(
        UserError,
        match=r"unknown data set \(and there is no such path\) 'digit': did you mean 'digits'\?.* digits, glyphs",
    ):
        datasets.load("digit")


def test_importing_the_module_loads_no_optional_library():
    code = "import sys, semisynth.data.datasets; print({'sklearn', 'matplotlib', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
