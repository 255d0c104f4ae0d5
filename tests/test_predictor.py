"""Answers against the classifier asked image by image, how far ahead is read, and other labeled images by class."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import made_up
import numpy as np
import pytest
import torch
from PIL import Image

from semisynth import calibration
from semisynth.data import datasets, decode, given
from semisynth.data.items import Pixels
from semisynth.errors import Diverged, UserError
from semisynth.evaluate import logits
from semisynth.evaluate import measure as measured
from semisynth.predictor import Predictor, answers, measure, measure_again
from semisynth.recipes import restore

CLASSES = ("cat", "label", "dog")
SPLITS = ("pool", "test")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return made_up.classifier(tmp_path_factory.mktemp("predictor") / "run", CLASSES)


def paint(file: Path, seed: int, size: tuple[int, int] = (8, 8)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    Image.fromarray(pixels // (1 + seed % 3)).save(file)
    return file


def asked(predictor: Predictor, content: bytes) -> list[float]:
    """The logits of one image by itself."""
    x = decode.prepare(decode.open_image(content, "it"), predictor.preparation)
    with torch.no_grad():
        found: list[float] = predictor.model(torch.from_numpy(x.copy())[None].float() / 255)[0].tolist()
    return found


def test_each_image_gets_its_own_answer_in_order_whatever_the_batch(run, tmp_path):
    files = [paint(tmp_path / f"{i}.png", i, size=(8 + i, 9)) for i in range(5)]
    files.insert(2, tmp_path / "text.png")
    files[2].write_text("no image")
    predictor, images = Predictor.of(run, "cpu"), [given.images(str(file))[0] for file in files]
    for batch in (1, 2, 64):
        found = list(answers(predictor, images, len(images), batch))
        assert [each.name for each in found] == [str(file) for file in files]
        assert found[2].logits is None and "text.png is no image" in found[2].reason
        for file, each in zip(files, found, strict=True):
            if each.logits is not None:
                assert each.logits.dtype == torch.float64 and each.reason == ""
                assert each.logits.tolist() == pytest.approx(asked(predictor, file.read_bytes()), abs=1e-4)


def test_no_more_than_a_batch_is_read_ahead(run):
    taken = []

    def images():
        for i in range(7):
            taken.append(i)
            yield Pixels(f"{i}", "", np.full((8, 8), 30 * i, np.uint8))

    seen = [len(taken) for _ in answers(Predictor.of(run, "cpu"), images(), 7, batch=3)]
    assert seen == [3, 3, 3, 6, 6, 6, 7]


def test_probabilities_are_those_at_the_temperature_of_the_run(run):
    predictor = Predictor.of(run, "cpu")
    z = torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64)
    total = sum(math.exp(value / 2) for value in z.tolist())
    assert predictor.probabilities(z).tolist() == pytest.approx([math.exp(v / 2) / total for v in z.tolist()])
    assert (predictor.temperature, predictor.classes) == (2.0, CLASSES)
    assert predictor.preparation == decode.Preparation((8, 8), 1, "crop") and not predictor.model.training


def test_images_for_a_built_in_set_are_cropped_to_its_size_and_an_older_run_has_temperature_1(tmp_path):
    told = {"data": None, "class_names": None, "calibration": None}
    older = Predictor.of(made_up.classifier(tmp_path / "run", "0123456789", **told), "cpu")
    assert older.preparation == decode.Preparation((16, 16), 1, "crop")
    assert older.temperature == 1 and older.classes == tuple("0123456789")


@pytest.mark.parametrize(
    "size, channels",
    [(None, 1), ([16], 1), (["a", 1], 1), (3, 1), ([8, 8], 2), ([0, 8], 1), ([8, 10**9], 1), ([8, math.inf], 1)],
)
def test_a_damaged_size_is_told(size, channels, tmp_path):
    told = {"data": {"size": size, "channels": channels, "fit": None}}
    with pytest.raises(UserError, match=r"result\.json is not as fit wrote it"):
        Predictor.of(made_up.classifier(tmp_path / "run", CLASSES, **told), "cpu")


def test_a_label_is_the_most_probable_class_unless_that_is_too_doubtful(run):
    predictor = Predictor.of(run, "cpu")
    z = torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64)
    p = predictor.probabilities(z).tolist()
    assert predictor.decide(z) == predictor.decide(z, p[1]) == ("label", p[1], p)
    assert predictor.decide(z, p[1] + 1e-9) == (None, p[1], p)


def test_a_run_is_measured_again_with_and_without_its_temperature(run, monkeypatch):
    data, asked_of = datasets.load("digits"), Predictor.of(run, "cpu").model
    data = replace(data, **{s: getattr(data, s).subset((getattr(data, s).y < 3).nonzero()[:, 0]) for s in SPLITS})
    monkeypatch.setattr(restore, "trained", lambda *_: (None, asked_of, replace(data, classes=CLASSES)))
    for name, split in (("test", "test"), ("train", "pool")):
        images = getattr(data, split)
        found = measure_again(run, name, "cpu")
        z = logits(asked_of, images, CLASSES)
        calibrated = {"temperature": 2.0, **calibration.reliability(z / 2, images.y)}
        assert found == {**measured(z, images.y, CLASSES), "calibrated": calibrated}
        assert found["calibrated"]["loss"] != found["loss"]


def test_logits_that_are_not_finite_are_no_answer(run):
    predictor = Predictor.of(run, "cpu")
    torch.nn.init.constant_(predictor.model.head.bias, math.inf)
    with pytest.raises(Diverged, match="not finite"):
        predictor.logits(np.zeros((1, 1, 8, 8), np.uint8))


# ---- other labeled images --------------------------------------------------------------------------------------------


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """Nine images of two of the classes, whose order here is another one, and one that cannot be read."""
    for i in range(9):
        paint(tmp_path / "data" / ("dog" if i % 3 else "cat") / f"{i}.png", i)
    (tmp_path / "data" / "dog" / "broken.png").write_bytes(b"")
    return tmp_path / "data"


def test_other_images_are_measured_by_the_names_of_their_classes(run, labeled, capsys):
    found = measure(run, str(labeled), device="cpu", batch=4)
    predictor = Predictor.of(run, "cpu")
    files = sorted(file for file in labeled.glob("*/*.png") if file.stat().st_size)
    z = torch.tensor([asked(predictor, file.read_bytes()) for file in files], dtype=torch.float64)
    y = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    expected = measured(z, y, CLASSES)
    assert found["confusion"] == expected["confusion"] and found["images"] == 9
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    loss = sum(-math.log((row / 2).softmax(0)[label].item()) for row, label in zip(z, y.tolist(), strict=True)) / 9
    assert found["calibrated"]["loss"] == pytest.approx(loss, abs=1e-4) and found["calibrated"]["temperature"] == 2
    assert found["unreadable"] == [{"file": "dog/broken.png", "reason": found["unreadable"][0]["reason"]}]
    assert found["per_class"]["label"]["images"] == 0 and list(found["per_class"]) == list(CLASSES)
    assert "left out: dog/broken.png is empty" in capsys.readouterr().err
    measure(run, str(labeled), device="cpu", show=False)
    assert capsys.readouterr().err == ""


def test_one_split_alone_is_measured(run, labeled):
    os.rename(labeled, labeled.parent / "train")
    labeled.mkdir()
    os.rename(labeled.parent / "train", labeled / "train")
    for i in (20, 21):
        paint(labeled / "test" / "label" / f"{i}.png", i)
        paint(labeled / "train" / "label" / f"{i}.png", i)
    counts = [measure(run, str(labeled), split=s, device="cpu", show=False)["images"] for s in ("train", "test", None)]
    assert counts == [11, 2, 13]


def test_a_class_that_the_run_does_not_know_is_told(run, labeled):
    paint(labeled / "cow" / "1.png", 1)
    with pytest.raises(UserError, match="has the class 'cow', which the run does not know: it knows cat, label, dog"):
        measure(run, str(labeled), device="cpu")


def test_a_set_of_which_nothing_can_be_read_is_told(run, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_text("no")
    with pytest.raises(UserError, match=r"none of 2 images can be read\. cat/a\.png is no image"):
        measure(run, str(tmp_path), device="cpu", show=False)
