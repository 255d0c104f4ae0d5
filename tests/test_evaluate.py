from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from semisynth import evaluate
from semisynth.data.datasets import Images
from semisynth.errors import UserError
from semisynth.evaluate import calibration_error, classify, wilson

CLASSES = ("a", "b", "c")


def images(y: list[int], predicted: list[int]) -> Images:
    """Images whose first pixel says what `Reader` will predict."""
    x = torch.zeros(len(y), 1, 2, 2, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.tensor(predicted) * 100
    return Images(x, torch.tensor(y))


class Reader(nn.Module):
    """Predicts by the first pixel, with logit `sharp`; notes the batches and modes it sees."""

    def __init__(self, sharp: float = 2.0) -> None:
        super().__init__()
        self.sharp, self.batches, self.modes = sharp, [], []
        self.inner, self.fixed = nn.Dropout(0.9), nn.Dropout(0.9).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x)
        self.modes.append((self.training, self.inner.training, torch.is_grad_enabled()))
        index = (x[:, 0, 0, 0] * 255 / 100).round().long()
        return self.sharp * torch.eye(3)[index]


def test_the_numbers_are_those_counted_by_hand() -> None:
    found = classify(Reader(), images([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0]), CLASSES)
    assert found["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert found["images"] == 6 and found["accuracy"] == pytest.approx(4 / 6)
    assert found["interval"] == wilson(4, 6)
    right, wrong = math.log(1 + 2 * math.exp(-2)), math.log(math.exp(2) + 2)
    assert found["loss"] == pytest.approx((4 * right + 2 * wrong) / 6)
    confidence = math.exp(2) / (math.exp(2) + 2)
    assert found["calibration_error"] == pytest.approx(abs(4 / 6 - confidence))
    assert found["per_class"]["a"] == {
        "images": 3,
        "accuracy": pytest.approx(2 / 3),
        "interval": wilson(2, 3),
        "precision": pytest.approx(2 / 3),
        "precision_interval": wilson(2, 3),
    }
    assert list(found["per_class"]) == list(CLASSES)
    assert found["per_class"]["b"]["precision"] == pytest.approx(2 / 3) and found["per_class"]["b"]["accuracy"] == 1


def test_large_images_are_evaluated_few_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "PIXELS", 8)
    reader, y = Reader(), [0, 0, 0, 1, 1]
    found = classify(reader, images(y, y), CLASSES, batch=3)
    assert [len(x) for x in reader.batches] == [2, 2, 1] and found["accuracy"] == 1
    monkeypatch.setattr(evaluate, "PIXELS", 3)
    assert classify(reader, images(y, y), CLASSES)["confusion"] == found["confusion"]
    assert len(reader.batches[-1]) == 1


def test_a_class_without_images_or_predictions_is_none_and_the_result_is_json() -> None:
    found = classify(Reader(), images([0, 1], [0, 0]), CLASSES)
    assert found["per_class"]["c"] == {
        "images": 0,
        "accuracy": None,
        "interval": [0, 1],
        "precision": None,
        "precision_interval": [0, 1],
    }
    assert found["per_class"]["b"]["accuracy"] == 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_batches_are_floats_in_the_unit_interval_and_do_not_change_the_result() -> None:
    data = images([0, 1, 2, 0, 1], [0, 1, 2, 1, 1])
    data.x[0, 0, 1, 1] = 255
    model = Reader()
    assert classify(model, data, CLASSES, batch=2) == classify(Reader(), data, CLASSES)
    assert [len(x) for x in model.batches] == [2, 2, 1]
    assert model.batches[0].dtype == torch.float32 and model.batches[0].max() == 1


def test_the_model_is_in_eval_mode_without_gradients_and_each_module_gets_its_mode_back() -> None:
    model = Reader()
    classify(model, images([0], [0]), CLASSES)
    assert model.modes == [(False, False, False)]
    assert (model.training, model.inner.training, model.fixed.training) == (True, True, False)


def test_the_modes_come_back_after_an_error() -> None:
    model = Reader(sharp="nonsense")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        classify(model, images([0], [0]), CLASSES)
    assert model.training and model.inner.training and not model.fixed.training


def test_a_plain_function_is_a_model() -> None:
    assert classify(lambda x: torch.eye(3)[[0] * len(x)], images([0, 1], [0, 0]), CLASSES)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_agrees_with_published_values(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx([low, high], abs=1e-6)


def test_calibration_error_agrees_with_a_loop_over_the_bins() -> None:
    confidence = torch.rand(400, dtype=torch.float64)
    right = torch.rand(400) < 0.6
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap = right[inside].double().mean() - confidence[inside].mean()
            expected += abs(gap.item()) * inside.sum().item() / 400
    assert calibration_error(confidence, right) == pytest.approx(expected)
    assert calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([True, False])) == 0


@pytest.mark.parametrize(
    ("model", "count", "message"),
    [
        (Reader(), 0, "no images"),
        (lambda x: torch.zeros(len(x), 4), 2, r"3 classes: build the model with classes=3"),
        (lambda x: torch.full((len(x), 3), torch.nan), 2, "not finite for 2 of 2 images"),
    ],
)
def test_what_cannot_be_evaluated_is_said(model: nn.Module, count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        classify(model, images([0] * count, [0] * count), CLASSES)
