"""The temperature against a naive search, its bounds, the diagram against loops, and what a run keeps of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from semisynth import calibration
from semisynth.calibration import HIGH, LOW, Fit, conclude, fit, reliability
from semisynth.data.datasets import Images
from semisynth.errors import UserError
from semisynth.evaluate import BINS, classify


def drawn(n: int, truth: float, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits whose softmax at the temperature `truth` is the distribution that the labels are drawn from."""
    source = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, classes, generator=source, dtype=torch.float64)
    return z * truth, torch.multinomial(z.softmax(-1), 1, generator=source)[:, 0]


def naive_loss(z: Tensor, y: Tensor, t: float) -> float:
    total = 0.0
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        total -= math.log(math.exp(row[label] / t) / sum(math.exp(value / t) for value in row))
    return total / len(y)


def naive_fit(z: Tensor, y: Tensor) -> float:
    """Golden-section search of the logarithm of the temperature."""
    low, high, ratio = math.log(LOW), math.log(HIGH), (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        one, other = high - ratio * (high - low), low + ratio * (high - low)
        if naive_loss(z, y, math.exp(one)) < naive_loss(z, y, math.exp(other)):
            high = other
        else:
            low = one
    return math.exp((low + high) / 2)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("n", [60, 200])
def test_the_temperature_is_that_of_a_naive_search(truth, n):
    z, y = drawn(n, truth)
    found = fit(z, y)
    assert found.temperature == pytest.approx(naive_fit(z, y), rel=1e-5)
    assert (found.images, found.bounded) == (n, False) and fit(z, y) == found


@pytest.mark.parametrize("truth", [0.4, 2.5])
def test_the_temperature_that_logits_were_drawn_at_is_found_again(truth):
    assert fit(*drawn(20_000, truth)).temperature == pytest.approx(truth, rel=0.03)


def test_a_constant_added_to_the_logits_of_an_image_changes_nothing():
    z, y = drawn(50, 2.0)
    assert fit(z + 700 * torch.randn(50, 1), y).temperature == pytest.approx(fit(z, y).temperature, rel=1e-9)


def test_no_images_leave_the_confidence_as_it_is():
    assert fit(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)) == Fit(1.0, 0, bounded=True)


@pytest.mark.parametrize("n", [1, 10, 40])
def test_images_that_are_all_right_sharpen_only_as_far_as_their_number_bears_out(n):
    y = torch.arange(n) % 3
    found = fit(torch.eye(3)[y] + 0.1 * torch.rand(n, 3), y)
    z = torch.eye(3)[y]
    sharp = fit(z, y)
    confidence = math.exp(1 / sharp.temperature) / (math.exp(1 / sharp.temperature) + 2)
    assert confidence == pytest.approx((n + 1) / (n + 2)) and sharp.bounded and found.bounded


def test_few_images_do_not_soften_what_is_sharp_already():
    y = torch.arange(5) % 3
    assert fit(30 * torch.eye(3)[y], y) == Fit(1.0, 5, bounded=True)


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_logits_that_are_always_wrong_or_say_nothing_become_as_even_as_they_may(sign):
    y = torch.arange(9) % 3
    assert fit(sign * torch.eye(3)[y], y) == Fit(HIGH, 9, bounded=True)


def test_a_temperature_is_never_below_its_bound():
    y = torch.arange(400) % 3
    assert fit(1e-4 * torch.eye(3)[y], y) == Fit(LOW, 400, bounded=True)


def test_reliability_agrees_with_loops_over_the_bins():
    z, y = drawn(300, 2.0)
    p = z.softmax(-1).tolist()
    found, error = reliability(z, y), 0.0
    for i in range(BINS):
        inside = [(max(row), row.index(max(row)) == label) for row, label in zip(p, y.tolist(), strict=True)]
        inside = [(c, right) for c, right in inside if i / BINS < c <= (i + 1) / BINS]
        assert found["count"][i] == len(inside)
        if not inside:
            assert found["confidence"][i] is None and found["accuracy"][i] is None
            continue
        confidence, accuracy = (sum(column) / len(inside) for column in zip(*inside, strict=True))
        assert (found["confidence"][i], found["accuracy"][i]) == (pytest.approx(confidence), pytest.approx(accuracy))
        error += len(inside) / 300 * abs(confidence - accuracy)
    assert 0 in found["count"] and found["error"] == pytest.approx(error)
    assert found["loss"] == pytest.approx(naive_loss(z, y, 1.0))


def by_pixel(x: Tensor) -> Tensor:
    """Logits too sure by a factor of three."""
    return 9 * x[:, 0, 0, :3]


def split(n: int, seed: int) -> Images:
    source = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 1, 2, 3), generator=source, dtype=torch.uint8)
    return Images(x, torch.multinomial((x[:, 0, 0] / 255 * 3).softmax(-1), 1, generator=source)[:, 0])


def test_a_conclusion_has_each_split_and_the_diagram_before_and_after():
    splits = {"test": split(3000, 0), "validation": split(3000, 1)}
    found = conclude(by_pixel, splits, "abc", "cpu")
    assert {name: found[name] for name in splits} == {name: classify(by_pixel, s, "abc") for name, s in splits.items()}
    told = found["calibration"]
    assert told["temperature"] == pytest.approx(3.0, rel=0.1)
    assert (told["images"], told["bounded"], told["fitted_on"]) == (3000, False, "validation")
    for name, images in splits.items():
        z = by_pixel(images.x / 255).double()
        assert told[name]["before"] == reliability(z, images.y)
        assert told[name]["after"] == reliability(z / told["temperature"], images.y)
        assert told[name]["before"]["error"] > 0.1 > 0.04 > told[name]["after"]["error"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_split_without_images_is_left_out():
    images, none = split(30, 0), Images(torch.empty(0, 1, 2, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    found = conclude(by_pixel, {"test": images, "validation": none}, "abc", "cpu")
    assert list(found) == ["test", "calibration"] and found["calibration"]["temperature"] == 1
    assert found["calibration"]["images"] == 0 and "validation" not in found["calibration"]
    found = conclude(by_pixel, {"test": none, "validation": images}, "abc", "cpu")
    assert list(found) == ["validation", "calibration"] and found["calibration"]["images"] == 30


def written(path, **result):
    (path / "result.json").write_text(json.dumps(result))
    return path


def test_the_temperature_of_a_run_is_read_and_is_1_in_an_older_one(tmp_path):
    assert calibration.temperature(written(tmp_path, calibration={"temperature": 2.5})) == 2.5
    assert calibration.temperature(written(tmp_path, test={})) == 1


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"temperature": "2"}, {"temperature": 1e9}, {}, [1], "2"])
def test_a_temperature_that_no_fit_wrote_is_refused(wrong, tmp_path):
    with pytest.raises(UserError, match=r"result\.json: the temperature of 'calibration' must be from 0\.05 to 20\.0"):
        calibration.temperature(written(tmp_path, calibration=wrong))
