from __future__ import annotations

import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest

from semisynth import charts, findings, runs
from semisynth.errors import UserError

UNCONDITIONAL = dict.fromkeys(("mixture", "top", "foundation", "portraits"))  # of a generator without classes


def html(path: Path) -> str:
    groups = runs.load([path])
    return findings.learned(groups, {group.kind: charts.series(0) for group in groups})


def text(path: Path) -> str:
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html(path)))).replace("\u00a0", " ")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = made_up.write(tmp_path / "run", made_up.config(), made_up.result())
    made_up.insight(path)
    return path


def test_each_class_has_its_foundation_classes_with_shares_and_images(run: Path) -> None:
    shown = text(run)
    # exp of the entropy of (0.7, 0.25, 0.05) and of (0.1, 0.3, 0.6)
    assert "cat & dog 70 % no. 0 25 % no. 1 2.11 ship 60 % no. 2 30 % no. 1 2.45" in shown
    assert "out of 3 foundation classes: an even spread gives each 33 %" in shown
    alts = re.findall(r'<img class="tile" src="data:image/png;base64,[^"]+" alt="(foundation[^"]+)">', html(run))
    assert alts == [f"foundation class {i}" for i in (0, 1, 2, 1)]


def test_each_class_has_the_angles_of_its_latents(run: Path) -> None:
    labels = re.findall('aria-label="(.*?)"', html(run))
    assert labels[0] == "cat &amp; dog: median 20 degrees, 5 to 95 % of the latents 0 to 40"
    assert "cat & dog 20° ship 25° 0 20 40 60" in text(run)


def test_the_images_of_the_largest_influence_stand_by_their_neighbours(run: Path) -> None:
    shown = text(run)
    assert (
        "They lower the validation loss most synthetic nearest labeled effect, 10 -2 asked for ship ship −3.00 ± 0.20"
        in shown
    )
    lower, higher = shown.split("They lower")[1].split("They raise")
    assert re.findall(r"[+−]\d\.\d\d", lower) == ["−3.00", "−0.10"]
    assert re.findall(r"[+−]\d\.\d\d ± \d\.\d\d", higher) == ["+1.23 ± 0.30", "+0.20 ± 0.10"]
    assert "asked for cat & dog cat & dog +1.23" in higher and "Of 4 images" in shown
    alts = [unescape(alt) for alt in re.findall('alt="(.*?)"', html(run))]
    assert alts.count("synthetic image, asked for ship") == 2 and alts.count("labeled image of cat & dog") == 2


def test_at_most_so_many_images_stand_on_a_side(run: Path) -> None:
    many = {name: np.zeros((30, 1, 4, 4), np.uint8) for name in ("images", "neighbours")}
    numbers = {name: np.arange(30) % 2 for name in ("asked", "neighbour_classes")}
    effect, error = np.linspace(-1, -0.1, 30, dtype=np.float32), np.ones(30, np.float32)
    near = {f"{space}/{of}": error for space in ("pixels", "features") for of in ("mapped", "uniform")}
    made_up.insight(run, **many, **numbers, **near, effect=effect, error=error)
    assert text(run).count("± 1.00") == 5 and "They raise" not in text(run)


def test_copies_are_counted_against_the_labeled_images_own_distances(run: Path) -> None:
    shown = text(run)
    assert "pixels, smallest 0.100 25 % 0.0 % pixels, median 0.250 75 % 25 %" in shown
    assert "features, smallest 1.000 100 % 0.0 % features, median 2.500 100 % 0.0 %" in shown
    assert "nearest of 4 labeled images" in shown


def test_as_near_as_is_not_nearer(run: Path) -> None:
    made_up.insight(run, **{"pixels/labeled": floats(1, 2, 3, 4), "pixels/mapped": floats(1, 1, 2.5, 5)})
    assert "pixels, smallest 1.000 0.0 % 100 % pixels, median 2.500 50 % 100 %" in text(run)


def test_a_finder_has_angles_alone(run: Path) -> None:
    made_up.insight(run, **UNCONDITIONAL, asked=None, angle=np.array([[0, 0, 0, 0, 0]], np.float32))
    shown = text(run)
    assert "draws on" not in shown and "asked for" not in shown and "all 0° " in shown
    assert 'alt="synthetic image"' in html(run)


def test_the_gradients_that_pull_the_mapper_are_one_chart(tmp_path: Path) -> None:
    log = [{"step": i, "mapper/validation_gradient": 0.1 * i, "mapper/gap_gradient": 0.2} for i in (1, 2)]
    made_up.write(tmp_path / "a", made_up.config(), None, log)
    assert "What pulls the mapper" in text(tmp_path) and "draws on" not in text(tmp_path)
    labels = re.findall('aria-label="(.*?)"', html(tmp_path))
    assert labels == ["norm of the gradient, by step. At the end: validation loss one step ahead 0.2, gap 0.2"]


def test_a_finished_run_is_shown_rather_than_one_that_is_not(tmp_path: Path) -> None:
    for name, result, value in (("a", None, 0.5), ("b", made_up.result(), 0.2), ("c", None, 0.5)):
        log = [{"step": i, "mapper/validation_gradient": value} for i in (1, 2)]
        path = made_up.write(tmp_path / name, made_up.config(seed=ord(name)), result, log)
        made_up.insight(path, effect=floats(0.001, -10 * value, 0.001, 0.001))
    labels = re.findall('aria-label="(.*?)"', html(tmp_path))
    assert "norm of the gradient, by step. At the end: validation loss one step ahead 0.2" in labels
    assert "asked for ship ship −2.00" in text(tmp_path)


def test_an_unfinished_run_has_numbers_for_classes(tmp_path: Path) -> None:
    made_up.insight(made_up.write(tmp_path / "a", made_up.config()))
    assert "asked for 1 1 −3.00" in text(tmp_path)


def test_many_settings_and_many_classes_are_folded(run: Path, tmp_path: Path) -> None:
    assert "<details>" not in html(tmp_path)
    made_up.insight(made_up.write(tmp_path / "b", made_up.config(method="mgr"), made_up.result()))
    summaries = re.findall("<summary>(.*?)</summary>", html(tmp_path))
    assert summaries == [f"{name}, 2 labels per class, foundation" for name in ("mgr", "mpssl")]
    many = {"angle": np.ones((21, 5), np.float32), **UNCONDITIONAL}
    made_up.insight(made_up.write(tmp_path / "c" / "d", made_up.config(method="new")), **many)
    assert "<summary>21 classes</summary>" in html(tmp_path / "c")


def test_a_run_without_a_study_has_no_section(tmp_path: Path) -> None:
    made_up.write(tmp_path / "a", made_up.config(), made_up.result(), made_up.log(0.5), images=12)
    assert html(tmp_path) == ""


def test_a_damaged_study_is_named(run: Path) -> None:
    made_up.insight(run, effect=None)
    with pytest.raises(UserError, match=r"insight\.safetensors: 'effect' is missing: repeat this run, or delete"):
        html(run)
    (run / "insight.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"insight\.safetensors is damaged"):
        html(run)


@pytest.mark.parametrize(
    "name", [*UNCONDITIONAL, "pixels/labeled", "features/uniform", "angle", "images", "neighbours"]
)
def test_a_study_that_lacks_a_tensor_is_named(run: Path, name: str) -> None:
    made_up.insight(run, **{name: None})
    with pytest.raises(UserError, match=f"'{name}' is missing: repeat this run, or delete the file"):
        html(run)


def floats(*values: float, like: tuple[int, ...] = (-1,)) -> np.ndarray:
    return np.array(values, np.float32).reshape(like)


ALTERED = {
    "effect that is no number": {"effect": floats(0.1, math.nan, 0.1, 0.1)},
    "infinite effect": {"effect": floats(0.1, -math.inf, 0.1, 0.1)},
    "empty effect": {"effect": floats()},
    "whole numbers as effect": {"effect": np.arange(4)},
    "negative error": {"error": floats(0.1, -0.1, 0.1, 0.1)},
    "angle that is no number": {"angle": floats(*[math.nan] * 10, like=(2, 5))},
    "angle of one dimension": {"angle": floats(0, 10, 20, 30, 40)},
    "angle of four quantiles": {"angle": floats(*[10] * 8, like=(2, 4))},
    "angle over 180": {"angle": floats(*[181] * 10, like=(2, 5))},
    "angle of other classes": {"angle": floats(*[10] * 15, like=(3, 5))},
    "mixture of fewer rows": {"mixture": floats(0.7, 0.2, 0.1, like=(1, 3))},
    "mixture over 1": {"mixture": floats(0.7, 2, 0.1, 0.1, 0.1, 0.1, like=(2, 3))},
    "top beyond the mixture": {"top": np.array([[0, 1], [2, 3]])},
    "top without a portrait": {"foundation": np.array([0, 2, 2]), "name": "top"},
    "foundation beyond the mixture": {"foundation": np.array([0, 1, 3])},
    "too few portraits": {"portraits": np.zeros((2, 1, 4, 4), np.uint8)},
    "floats as portraits": {"portraits": np.zeros((3, 1, 4, 4), np.float32)},
    "images shorter than effect": {"images": np.zeros((3, 1, 4, 4), np.uint8)},
    "images of no pixels": {"images": np.zeros((4, 1, 0, 4), np.uint8)},
    "neighbours of another size": {"neighbours": np.zeros((4, 1, 4, 5), np.uint8)},
    "asked beyond the classes": {"asked": np.array([0, 1, 2, 1])},
    "asked below 0": {"asked": np.array([0, 1, -3, 1])},
    "neighbour beyond the classes": {"neighbour_classes": np.array([0, 1, 2, 1])},
    "neighbour below 0": {"neighbour_classes": np.array([0, 1, -3, 1])},
    "empty distances": {"pixels/labeled": floats()},
    "distance that is no number": {"features/labeled": floats(1, math.nan)},
    "negative distance": {"features/mapped": floats(1, 1, 1, -1)},
    "distances of fewer images": {"pixels/uniform": floats(1, 1, 1)},
}


@pytest.mark.parametrize("altered", ALTERED.values(), ids=ALTERED)
def test_an_altered_study_is_named(run: Path, altered: dict[str, Any]) -> None:
    arrays = {name: value for name, value in altered.items() if name != "name"}
    made_up.insight(run, **arrays)
    name = altered.get("name", *arrays)
    with pytest.raises(UserError, match=rf"insight\.safetensors: '{name}' has a wrong type, size or value: repeat"):
        html(run)


def test_an_altered_study_of_an_unfinished_run_is_named(tmp_path: Path) -> None:
    path = made_up.write(tmp_path / "a", made_up.config())
    made_up.insight(path, asked=np.array([0, 1, 2, 1]))
    with pytest.raises(UserError, match="'asked' has a wrong type, size or value"):
        html(path)
