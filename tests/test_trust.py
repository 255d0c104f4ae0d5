from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import made_up
import pytest

from semisynth import charts, runs, trust
from semisynth.evaluate import wilson
from semisynth.runs import Group
from semisynth.statistics import t_interval


def load(path: Path) -> tuple[list[Group], dict[str, str]]:
    groups = runs.load([path])
    return groups, {group.kind: charts.series(i) for i, group in enumerate(groups)}


def text_of(html: str) -> str:
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)))


def dots(html: str) -> list[tuple[float, float, int]]:
    """Confidence and accuracy, in percent, and images of each dot of a diagram."""
    found = re.findall(r'cx="([\d.]+)%" cy="([\d.]+)" r="[\d.]+"><title>[^:]*: (\d+) images', html)
    return [((float(x) - 12) / 0.87, (235 - float(y)) / 2.2, int(n)) for x, y, n in found]


def test_the_diagram_of_a_run_has_its_bins_before_and_after_with_intervals(tmp_path: Path) -> None:
    made_up.write(tmp_path / "a", made_up.config(), made_up.result())
    html = trust.calibration(*load(tmp_path))
    expected = [(98, 70, 10), (65, 50, 4), (83, 500 / 6, 6)]
    assert dots(html) == [pytest.approx(dot, abs=0.2) for dot in expected]
    low, high = (f"{15 + 220 * (1 - end):.1f}" for end in wilson(7, 10))
    assert f'y1="{low}" y2="{high}"' in html and html.count('class="interval"') == 3
    told = "temperature 2.00; calibration error 0.280, then 0.060; cross-entropy 0.600, then 0.600"
    assert told in text_of(html) and "as trained" in text_of(html) and "<details>" not in html


def test_the_bins_of_several_runs_are_pooled_without_intervals(tmp_path: Path) -> None:
    one, other = (made_up.calibration(t) for t in (1.0, 3.0))
    other["test"]["after"] = made_up.diagram({9: (12, 0.61, 0.75)}, error=0.1)
    for seed, found in enumerate((one, other)):
        made_up.write(tmp_path / f"{seed}", made_up.config(seed), made_up.result(calibration=found))
    html = trust.calibration(*load(tmp_path))
    pooled = [(98, 70, 20), (62, 100 * (4 * 0.5 + 12 * 0.75) / 16, 16), (83, 500 / 6, 6)]
    assert dots(html) == [pytest.approx(dot, abs=0.2) for dot in pooled] and 'class="interval"' not in html
    assert "temperature 2.00; calibration error 0.280, then 0.080" in text_of(html)


def test_classes_have_recall_and_precision_with_wilsons_interval(tmp_path: Path) -> None:
    made_up.write(tmp_path / "a", made_up.config(), made_up.result())  # [[4, 1], [2, 3]]
    text = text_of(trust.classes(*load(tmp_path)))

    def share(right: int, of: int) -> str:
        low, high = wilson(right, of)
        return f"{100 * right / of:.0f} {100 * low:.0f} to {100 * high:.0f}"

    assert f"cat & dog 5 {share(4, 5)} {share(4, 6)} ship 5 {share(3, 5)} {share(3, 4)}" in text


def test_classes_of_several_runs_have_means_with_students_interval(tmp_path: Path) -> None:
    for seed, confusion in enumerate(([[4, 1], [2, 3]], [[5, 0], [2, 3]], [[3, 2], [0, 5]])):
        test = made_up.result()["test"] | {"confusion": confusion}
        made_up.write(tmp_path / f"{seed}", made_up.config(seed), made_up.result(test=test))
    text = text_of(trust.classes(*load(tmp_path)))
    ends = [min(max(end, 0.0), 1.0) for end in t_interval([0.8, 1.0, 0.6])]
    assert f"cat & dog 5 80 {100 * ends[0]:.0f} to {100 * ends[1]:.0f} " in text and "Wilson" in text


def test_a_share_of_nothing_is_none(tmp_path: Path) -> None:
    test = made_up.result()["test"] | {"confusion": [[5, 0], [0, 0]]}
    made_up.write(tmp_path / "a", made_up.config(), made_up.result(test=test))
    assert re.search(r"ship 0 – –", text_of(trust.classes(*load(tmp_path))))


def test_many_classes_and_several_settings_are_folded(tmp_path: Path) -> None:
    k = trust.LONG + 1
    confusion = [[int(i == j) for j in range(k)] for i in range(k)]
    test = made_up.result()["test"] | {"confusion": confusion, "per_class": {f"{i}": {} for i in range(k)}}
    made_up.write(tmp_path / "a", made_up.config(), made_up.result(test=test))
    assert f"<summary>{k} classes</summary>" in trust.classes(*load(tmp_path))
    made_up.write(tmp_path / "b", made_up.config(method="other"), made_up.result())
    assert "<summary>other, 2 labels per class, foundation</summary>" in trust.classes(*load(tmp_path))


def test_runs_that_were_not_measured_so_have_no_section(tmp_path: Path) -> None:
    result = {key: value for key, value in made_up.result().items() if key != "calibration"}
    made_up.write(tmp_path / "old", made_up.config(), {**result, "test": {"accuracy": 0.5, "interval": [0.4, 0.6]}})
    made_up.write(tmp_path / "without", made_up.config(1), {"calibration": {"temperature": 1.0}})
    made_up.write(tmp_path / "unfinished", made_up.config(method="x"))
    groups, colours = load(tmp_path)
    assert trust.calibration(groups, colours) == trust.classes(groups, colours) == ""
