from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from semisynth import charts
from semisynth.charts import Bin


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.42, 0.97, [0.4, 0.6, 0.8, 1.0]),
        (0, 10, [0, 2.5, 5, 7.5, 10]),
        (-3, 1, [-3, -2, -1, 0, 1]),
        (0.5, 0.5, [0.4, 0.6]),
        (0, 0, [0, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    at = charts.ticks(low, high)
    assert at[0] <= low and at[-1] >= high and len(at) >= 2
    if low != high:
        assert at == pytest.approx(expected)


def test_series_repeat_a_colour_only_with_another_dash() -> None:
    assert len({charts.series(i) for i in range(3 * charts.COLOURS)}) == 3 * charts.COLOURS


def test_a_strip_places_mean_interval_and_seeds() -> None:
    drawing = charts.strip([0.5, 0.7], 0.6, (0.4, 0.8), [0.2, 0.6, 1.0], "s0")
    assert re.search(r'class="mean" cx="50.00%"', drawing)
    assert re.search(r'class="interval" x1="26.50%" x2="73.50%"', drawing)
    assert re.findall(r'class="seed" cx="([\d.]+)%"', drawing) == ["38.25", "61.75"]
    assert 'aria-label="mean 60.0 %, interval 40.0 to 80.0 %"' in drawing
    assert "seed" not in charts.strip([0.6], 0.6, (0.4, 0.8), [0.2, 1.0], "s0")


def test_a_spread_places_its_quantiles_on_an_axis_of_its_own_unit() -> None:
    at = [0, 50, 100]
    drawing = charts.spread([0, 25, 50, 75, 100], at, "s1", "a & b")
    assert re.search(r'class="interval" x1="3.00%" x2="97.00%"', drawing)
    assert re.search(r'class="half" x1="26.50%" x2="73.50%"', drawing)
    assert re.search(r'class="mean" cx="50.00%"', drawing) and 'aria-label="a &amp; b"' in drawing
    assert re.findall(r">(\d+)</text>", charts.scale(at, unit=1)) == ["0", "50", "100"]


def test_lines_place_points_between_the_ticks_and_escape_names() -> None:
    drawing = charts.lines("loss<1>", {"a&b": [(10, 0.0), (20, 5.0), (30, 10.0)]}, {"a&b": "s0 d0"})
    assert 'points="0,1000 500,500 1000,0"' in drawing
    assert "loss&lt;1&gt;" in drawing and "a&amp;b 10" in drawing and "a&b" not in drawing
    assert re.findall(r">([\d.]+)</text>", drawing) == ["0", "2.5", "5", "7.5", "10", "10", "30"]


def test_a_line_of_one_point_is_drawn() -> None:
    drawing = charts.lines("x", {"a": [(5, 2.0)]}, {"a": "s0 d0"})
    assert 'cx="12.0%"' in drawing and drawing.count(">5</text>") == 1


def test_a_reliability_diagram_places_its_bins_beside_the_diagonal() -> None:
    few, many = Bin(1, 0.5, 0.25, (0.0, 1.0)), Bin(4, 1.0, 1.0, None)
    drawing = charts.reliability("a & b", {"x<y": [few], "z": [many]}, {"x<y": "s1", "z": "s2"})
    assert re.findall(r'class="mean" cx="([\d.]+)%" cy="([\d.]+)" r="([\d.]+)"', drawing) == [
        ("55.5", "180.0", "5.5"),
        ("99.0", "15.0", "8.0"),
    ]
    bars = re.findall(r'class="interval" x1="55.5%" x2="55.5%" y1="([\d.]+)" y2="([\d.]+)"', drawing)
    assert bars == [("235.0", "15.0")]
    assert 'class="grid d1" x1="12%" y1="235" x2="99%" y2="15"' in drawing and 'class="s1"' in drawing
    told = "a &amp; b. x&lt;y: 25 % right at confidence 50 %; z: 100 % right at confidence 100 %"
    assert f'aria-label="{told}"' in drawing and "<title>x&lt;y: 1 images, 25 % right</title>" in drawing


def test_a_bar_lays_its_parts_end_to_end() -> None:
    drawing = charts.bar({"data": 1.0, "model": 3.0}, 8.0, {"data": "s0", "model": "s1"})
    assert re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', drawing) == [("0.00", "12.50"), ("12.50", "37.50")]


def test_a_heat_map_shows_counts_shares_and_recall() -> None:
    drawing = charts.heat(np.array([[3, 1], [0, 4]]), ["<a>", "b"], "confusion")
    assert re.findall(r'class="count"[^>]*>(\d+)<', drawing) == ["3", "1", "4"]
    assert re.findall(r'fill-opacity="([\d.]+)"', drawing) == ["0.56", "0.19", "0.75"]
    assert "75 %" in drawing and "100 %" in drawing and drawing.count("&lt;a&gt;") == 2


def test_a_large_heat_map_has_no_counts_and_a_class_without_images_no_error() -> None:
    counts = np.diag([0] + [5] * 24)
    drawing = charts.heat(counts, [f"class number {i}" for i in range(25)], "confusion")
    assert (
        "count" not in drawing
        and drawing.count("fill-opacity") == 24
        and "rotate" in drawing
        and "class numbe…" in drawing
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_montage_holds_every_image_in_its_place(channels: int) -> None:
    images = np.random.default_rng(0).random((12, channels, 4, 5)).astype(np.float32)
    images[0, 0, 0, 0] = np.nan
    kind, data = charts.montage(images).split(",")
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert kind == "data:image/png;base64" and sheet.shape == (2 * 5 - 1, 10 * 6 - 1, 4)
    expected = np.nan_to_num(images[11, [0, 1, 2] if channels > 1 else [0, 0, 0]]).transpose(1, 2, 0)
    assert np.abs(sheet[5:9, 6:11, :3] / 255 - expected).max() <= 0.5 / 255 + 1e-6
    assert sheet[4].max() == 0 and (sheet[5:9, 6:11, 3] == 255).all() and sheet[5:, 12:].max() == 0


def test_a_montage_of_few_images_is_narrow() -> None:
    _, data = charts.montage(np.zeros((2, 1, 3, 3))).split(",")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (7, 3)
