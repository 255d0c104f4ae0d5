"""The bench: its cells, what it takes from tuning, its files, and the arithmetic of its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pictures
import pytest
from scipy import stats

from semisynth import weights
from semisynth.cli import main
from semisynth.errors import UserError
from semisynth.recipes import bench

BASE = {"data": "digits", "steps": 1}


def line(method: str, seed: int, accuracy: float, labels: int = 2, init: str = "none") -> dict[str, Any]:
    found = {"method": method, "init": init, "labels_per_class": labels, "seed": seed, "share": None}
    measured = {"accuracy": accuracy, "validation_accuracy": accuracy, "seconds": 2.0 + seed % 2}
    return {**found, **measured, "steps": 400, "commit": "abc", "device": "cpu: x"}


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its head."""
    lines = text.split(heading + "\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in lines[2:]]


BETTER, SAME = [0.80, 0.85, 0.78, 0.84, 0.81], [0.70, 0.76, 0.67, 0.75, 0.73]
WORSE = [0.5, 0.52, 0.45, 0.55, 0.51]
LINES = [
    line(method, 100 + seed, accuracy)
    for method, accuracies in (("mpssl", BETTER), ("supervised", SAME), ("mine", WORSE))
    for seed, accuracy in enumerate(accuracies)
]


def test_the_table_is_paired_by_seed_and_corrected() -> None:
    supervised, mpssl, mine = rows_of(bench.table(LINES[::-1], "the command"), "# Test accuracy")
    assert [row[2] for row in (supervised, mpssl, mine)] == ["supervised", "mpssl", "mine"]
    assert mpssl[:5] == ["none", "2", "mpssl", "5", "81.6"]
    assert (mpssl[6], mpssl[7]) == ("2.4", "+9.4")
    low, high = (100 * end for end in stats.ttest_rel(BETTER, SAME).confidence_interval())
    assert mpssl[8] == f"[{low:+.1f}, {high:+.1f}]"
    assert mpssl[11] == "higher" and mine[11] == "lower"
    assert supervised[7:] == ["–"] * 5


def test_p_is_corrected_and_so_is_the_verdict() -> None:
    values = {"supervised": SAME, "close": [0.73, 0.76, 0.69, 0.76, 0.75], "dull": [0.71, 0.75, 0.69, 0.76, 0.73]}
    lines = [line(name, seed, accuracy) for name, its in values.items() for seed, accuracy in enumerate(its)]
    _, close, dull = rows_of(bench.table(lines, ""), "# Test accuracy")
    smaller, larger = (stats.ttest_rel(values[name], SAME).pvalue for name in ("close", "dull"))
    assert smaller < 0.05 < 2 * smaller < larger
    assert (close[10], dull[10]) == (f"{2 * smaller:.3f}", f"{larger:.3f}")
    assert close[11] == dull[11] == "no difference shown"


def test_seeds_that_only_one_row_has_do_not_enter_a_difference() -> None:
    lines = [*LINES, line("mpssl", 500, 0.0)]
    mpssl = rows_of(bench.table(lines, ""), "# Test accuracy")[1]
    assert (mpssl[3], mpssl[7]) == ("6", "+9.4")


def test_inits_and_label_counts_are_compared_within_themselves() -> None:
    lines = [
        *LINES,
        line("supervised", 100, 0.9, 4),
        line("mpssl", 100, 0.95, 4),
        line("mpssl", 100, 0.99, 2, "foundation"),
    ]
    rows = {tuple(row[:3]): row for row in rows_of(bench.table(lines, ""), "# Test accuracy")}
    assert rows["none", "4", "mpssl"][5:11] == ["one seed", "2.0", "+5.0", "one seed", "one seed", "1.000"]
    assert rows["none", "4", "mpssl"][11] == "too few seeds"
    assert rows["foundation", "2", "mpssl"][7] == "–"


def test_shares_are_compared_within_themselves_and_told_only_where_a_pool_is_mixed() -> None:
    mixed = [{**line, "share": share} for line in LINES for share in (0.0, 0.4)]
    mixed = [{**line, "accuracy": line["accuracy"] / 2} if line["share"] else line for line in mixed]
    table = bench.table(mixed, "", pivots=("mine",))
    found = rows_of(table, "# Test accuracy")
    assert [row[2:4] for row in found] == [[s, m] for s in ("0%", "40%") for m in ("supervised", "mpssl", "mine")]
    assert (found[1][5], found[1][8], found[4][5], found[4][8]) == ("81.6", "+9.4", "40.8", "+4.7")
    contrasts = rows_of(table, "## mine minus each row")
    assert [row[2:4] for row in contrasts] == [[s, m] for s in ("0%", "40%") for m in ("supervised", "mpssl")]
    assert "share" not in bench.table(LINES, "", pivots=("mine",))


def test_the_pivot_is_contrasted_with_every_other_row() -> None:
    text = bench.table(
        [*LINES, *(line("close", 100 + s, a + 0.001 * s) for s, a in enumerate(BETTER))], "", pivots=("mpssl",)
    )
    rows = {row[2]: row for row in rows_of(text, "## mpssl minus each row")}
    assert rows.keys() == {"supervised", "mine", "close"}
    assert (rows["supervised"][4], rows["supervised"][-1]) == ("+9.4", "yes")
    assert rows["close"][-2:] == ["lower", "yes"]
    reverse = {
        row[2]: row for row in rows_of(bench.table(LINES, "", pivots=("supervised",)), "## supervised minus each row")
    }
    assert reverse["mpssl"][-2:] == ["lower", "not shown"]


def test_a_second_reference_has_a_table_of_its_own() -> None:
    rows = rows_of(bench.table(LINES, "", ("supervised", "mine")), "## Each row minus mine")
    assert [row[2] for row in rows] == ["supervised", "mpssl"]


def test_under_the_table_stand_its_limits_and_its_origin() -> None:
    text = bench.table(LINES, "semisynth bench --out b")
    assert "not the choice of the test images" in text
    for fact in ("`semisynth bench --out b`", "commit: abc", "device: cpu: x", "steps: 400"):
        assert fact in text


def test_no_lines_no_rows() -> None:
    assert rows_of(bench.table([], "none", pivots=("mpssl",)), "# Test accuracy") == []


def test_the_plan_has_a_cell_for_each_row_label_count_and_seed() -> None:
    planned = bench.plan(BASE | {"generator": "mine"}, ["scr-uniform", "supervised"], [1, 4], [7, 8], Path("out"))
    assert len({cell.path for cell in planned}) == 8
    cell = next(cell for cell in planned if cell.path == Path("out/cells/scr-uniform/4/7"))
    assert (cell.config.setting.labels_per_class, cell.config.engine.seed) == (4, 7)
    assert (cell.config.setting.generator, cell.config.setting.unlabeled) == ("mine", "generator")
    assert {cell.config.engine.seed for cell in planned[:4]} == {7}


def test_the_source_goes_to_the_rows_that_read_one() -> None:
    rows = ["supervised", "mpssl", "pssl", "gda", "mpssl-plus"]
    planned = bench.plan(BASE | {"generator": "mine", "source": "its"}, rows, [1], [0], Path("out"))
    assert [cell.config.setting.source for cell in planned] == [None, None, "its", "its", "its"]


def test_only_lr_and_the_methods_options_come_from_tuning(tmp_path: Path) -> None:
    (tmp_path / "supervised").mkdir()
    best = {"lr": 0.2, "momentum": 0.1, "steps": 9, "method": {"name": "supervised", "view": "weak"}}
    weights.write_json(tmp_path / "supervised" / "best.json", best)
    config = bench.plan(BASE, ["supervised"], [1], [0], Path("out"), tmp_path)[0].config
    assert (config.engine.lr, config.options["view"]) == (0.2, "weak")
    assert (config.engine.momentum, config.setting.steps) == (0.9, 1)


def test_options_tuned_for_another_row_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gap-only").mkdir()
    best = {"lr": 0.2, "method": {"name": "mpssl", "look_ahead": True}}
    weights.write_json(tmp_path / "gap-only" / "best.json", best)
    with pytest.raises(UserError, match="not of row 'gap-only' \\(look_ahead\\)"):
        bench.plan(BASE, ["gap-only"], [1], [0], Path("out"), tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        bench.plan(BASE, ["supervised"], [1], [0], Path("out"), tmp_path)


WHOLE: dict[str, Any] = {
    "test": {"accuracy": 0.5},
    "validation": {"accuracy": 0.5, "loss": 1.0},
    "seconds": 2,
    "environment": {"commit": None, "device": "cpu: x"},
}
DAMAGED = {
    "nothing": ({}, "'test.accuracy' is missing"),
    "a number for a part": ({**WHOLE, "test": 3}, "'test.accuracy' is missing"),
    "a part of a part": ({**WHOLE, "validation": {"accuracy": 0.5}}, "'validation.loss' is missing"),
    "no number": ({**WHOLE, "validation": {"accuracy": "0.5", "loss": 1.0}}, "'validation.accuracy' has a wrong value"),
    "no time": ({**WHOLE, "seconds": None}, "'seconds' has a wrong value"),
    "no device": ({**WHOLE, "environment": {"commit": "abc"}}, "'environment.device' is missing"),
    "no commit": ({**WHOLE, "environment": {"device": "cpu"}}, "'environment.commit' is missing"),
}


@pytest.mark.parametrize("content, told", DAMAGED.values(), ids=DAMAGED)
def test_a_result_that_lacks_a_field_is_named(tmp_path: Path, content: dict[str, Any], told: str) -> None:
    (cell,) = bench.plan(BASE, ["supervised"], [1], [0], tmp_path)
    cell.path.mkdir(parents=True)
    weights.write_json(cell.path / "result.json", WHOLE)
    assert bench.results([cell])[0]["accuracy"] == 0.5
    weights.write_json(cell.path / "result.json", content)
    with pytest.raises(UserError) as caught:
        bench.results([cell])
    remedy = "delete the file, and run the same command again."
    assert str(caught.value) == f"{cell.path / 'result.json'}: {told}: {remedy}"


def test_bench_from_the_command_line_checks_first_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    command = ["bench", "--methods", "supervised,fixmatch", "--seeds", "100,101", "--steps", "1", "--workers", "2"]
    command += ["--out", str(out), "--labels-per-class"]
    assert main([*command, "2,2000"]) == 2
    assert "give at most 97" in capsys.readouterr().err and not out.exists()
    assert main([*command, "2"]) == 0
    capsys.readouterr()
    kept = (out / "cells/supervised/2/100/result.json").stat().st_mtime_ns
    assert main([*command, "2,1"]) == 0
    assert (out / "cells/supervised/2/100/result.json").stat().st_mtime_ns == kept
    assert capsys.readouterr().out.strip() == (out / "table.md").read_text().strip()
    lines = [json.loads(text) for text in (out / "results.jsonl").read_text().splitlines()]
    named = [(found["labels_per_class"], found["method"], found["seed"]) for found in lines]
    assert named == [(n, row, seed) for n in (1, 2) for row in ("supervised", "fixmatch") for seed in (100, 101)]
    result = weights.read_json(out / "cells/supervised/1/100/result.json")
    assert lines[0]["accuracy"] == result["test"]["accuracy"]
    assert lines[0]["validation_accuracy"] == result["validation"]["accuracy"]
    assert lines[0].keys() == line("", 0, 0).keys()
    assert (lines[0]["init"], lines[0]["steps"], lines[0]["share"]) == ("none", 1, None)
    assert main([*command, "2", "--momentum", "0.5"]) == 2
    assert "another configuration" in capsys.readouterr().err
    damaged = out / "cells/supervised/2/100/result.json"
    damaged.write_text("{}")
    assert main([*command, "2"]) == 2
    assert f"{damaged}: 'test.accuracy' is missing: delete the file" in capsys.readouterr().err


def test_data_without_the_split_that_is_measured_are_told_before_anything_runs(tmp_path, capsys) -> None:
    data = str(pictures.folder(tmp_path / "set", 2, splits=("train",)))
    shared = ["--data", data, "--holdout", "0", "--out", str(tmp_path / "out")]
    assert main(["bench", "--methods", "supervised", "--labels-per-class", "1", *shared]) == 2
    assert f"data set '{data}' has no images for test: add some, or give --holdout 0.2" in capsys.readouterr().err
    assert main(["tune", "--method", "supervised", *shared]) == 2
    assert "has no images for validation" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_wrong_options_are_told_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--out", str(tmp_path / "out"), "--labels-per-class", "1", "--methods", "supervised"]
    for wrong, told in (
        (["--methods", "suprevised"], "did you mean 'supervised'"),
        (["--seeds", "9-1"], "'9-1' is no number or range"),
        (["--against", "mpssl"], "method in --against"),
        (["--workers", "0"], "--workers is 0"),
    ):
        assert main([*command, *wrong]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
