from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import made_up
import pytest

from semisynth import charts, runs, sections
from semisynth.errors import UserError
from semisynth.runs import Group


def load(path: Path) -> tuple[list[Group], dict[str, str]]:
    groups = runs.load([path])
    return groups, {kind: charts.series(i) for i, kind in enumerate(dict.fromkeys(group.kind for group in groups))}


def write_seeds(path: Path, accuracies: tuple[float, ...], **config: object) -> None:
    for seed, accuracy in enumerate(accuracies):
        log = made_up.log(0.5, accuracy, shift=seed)
        made_up.write(
            path / f"{seed}", made_up.config(seed, **config), made_up.result(accuracy, seconds=40 + seed), log
        )


def text_of(html: str) -> str:
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)))


def test_accuracy_says_mean_interval_what_it_is_over_runs_and_seconds(tmp_path: Path) -> None:
    write_seeds(tmp_path / "a", (0.6, 0.7, 0.8))
    made_up.write(tmp_path / "b", made_up.config(method="pssl"), made_up.result(0.7))
    text = text_of(sections.accuracy(*load(tmp_path)))
    assert "mpssl, 2 labels per class, foundation 70.0 45.2 to 94.8 Student's t, 3 seeds 3 41.0" in text
    assert "pssl, 2 labels per class, foundation 70.0 39.7 to 89.2 Wilson, 10 images 1 40.0" in text
    assert "Intervals by t cover" in text and "Intervals by Wilson cover" in text


def test_accuracy_has_a_body_for_each_number_of_labels_and_one_axis(tmp_path: Path) -> None:
    for labels in (1, 2):
        write_seeds(tmp_path / f"{labels}", (0.6, 0.7), labels=labels)
    html = sections.accuracy(*load(tmp_path))
    assert html.count("<tbody>") == 2 and html.count('class="scale"') == 1 and html.count('class="seed"') == 4
    assert "Wilson" not in html


def test_measures_are_means_over_the_runs(tmp_path: Path) -> None:
    for seed, distance in enumerate((3.0, 4.0)):
        made_up.write(
            tmp_path / f"{seed}", made_up.config(seed), {"test": {"distance": distance, "name": "x", "images": 9}}
        )
    groups, colours = load(tmp_path)
    text = text_of(sections.measures(groups, colours))
    assert "distance" in text and "3.50" in text and "name" not in text and "images" not in text.split("runs.")[1]
    assert sections.accuracy(groups, colours) == "" and sections.confusion(groups, colours) == ""


def test_curves_are_means_at_the_steps_that_all_runs_have(tmp_path: Path) -> None:
    write_seeds(tmp_path, (0.6, 0.8))
    with (tmp_path / "0" / "log.jsonl").open("a") as file:
        file.write('{"step": 150, "validation/accuracy": 0.1, "classifier/supervised": NaN}\n')
    html = sections.curves(*load(tmp_path))
    titles = re.findall("<figcaption>(.*?)</figcaption>", html)
    assert titles == ["validation/accuracy, %", "classifier/supervised"]
    labels = re.findall('aria-label="(.*?)"', html)
    assert labels[0].endswith("foundation 70") and labels[1].endswith("foundation 1")


def test_curves_have_a_panel_for_each_number_of_labels_with_the_loss_folded(tmp_path: Path) -> None:
    for labels in (1, 2):
        write_seeds(tmp_path / f"{labels}", (0.6,), labels=labels)
    html = sections.curves(*load(tmp_path))
    assert html.count('class="panel"') == 2 and html.count("<summary>Loss terms</summary>") == 2
    assert html.count('<polyline class="s0 d0"') == 4  # the same method keeps its colour


def test_curves_of_an_unfinished_run_alone_are_shown(tmp_path: Path) -> None:
    made_up.write(tmp_path / "a", made_up.config(), None, made_up.log(0.5, 0.6))
    assert "validation/accuracy" in sections.curves(*load(tmp_path))


def test_confusion_is_summed_over_the_runs(tmp_path: Path) -> None:
    write_seeds(tmp_path, (0.6, 0.8))
    html = sections.confusion(*load(tmp_path))
    assert re.findall(r'class="count"[^>]*>(\d+)<', html) == ["8", "2", "4", "6"]
    assert "80 %" in html and "60 %" in html and "cat &amp; dog" in html and "<details>" not in html


def test_many_matrices_are_folded(tmp_path: Path) -> None:
    for i in range(sections.OPEN + 1):
        made_up.write(tmp_path / f"{i}", made_up.config(method=f"m{i}"), made_up.result())
    assert "<summary>5 matrices</summary>" in sections.confusion(*load(tmp_path))


def test_samples_stand_side_by_side_with_alt_texts(tmp_path: Path) -> None:
    made_up.write(tmp_path / "a", made_up.config(), made_up.result(), images=120)
    html = sections.samples(*load(tmp_path))
    alts = re.findall('alt="(.*?)"', html)
    assert [alt.split(":")[0] for alt in alts] == ["100 synthetic images in rows of ten"] * 2
    assert "uniform classes" in alts[0] and "mapper" in alts[1]


def test_samples_are_of_the_first_finished_run_if_one_has_them(tmp_path: Path) -> None:
    runs_of = {"a": None, "b": made_up.result(), "c": made_up.result(), "d": None}
    for seed, (name, result) in enumerate(runs_of.items()):
        made_up.write(tmp_path / name, made_up.config(seed), result, images=1)
    ((group,), _), name = load(tmp_path), "samples.safetensors"
    chosen = []
    for last in ("b", "c", "a", "d"):
        run = sections.first_with(group, name)
        assert run is not None
        chosen.append(run.path.name)
        (tmp_path / last / name).unlink()
    assert chosen == ["b", "c", "a", "d"] and sections.first_with(group, name) is None


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    path = made_up.write(tmp_path / "a", made_up.config(), made_up.result(), images=2)
    (path / "samples.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"samples\.safetensors is damaged"):
        sections.samples(*load(tmp_path))


def test_time_is_milliseconds_per_step_longest_part_first(tmp_path: Path) -> None:
    write_seeds(tmp_path, (0.6, 0.8))  # 0.2 s and 0.05 s in every 50 steps
    text = text_of(sections.time(*load(tmp_path)))
    assert "5.00 ms" in text and re.search(r"classifier 4\.00 +data 1\.00", text)


def test_sections_without_content_are_empty(tmp_path: Path) -> None:
    made_up.write(tmp_path / "a", made_up.config())
    groups, colours = load(tmp_path)
    shown = (sections.accuracy, sections.measures, sections.curves, sections.confusion, sections.samples, sections.time)
    assert [show(groups, colours) for show in shown] == [""] * 6
