from __future__ import annotations

import json
from pathlib import Path

import made_up
import pytest

from semisynth import report, runs
from semisynth.errors import UserError


def test_runs_that_differ_only_in_the_seed_are_a_group_in_order_of_seed(tmp_path: Path) -> None:
    for seed, accuracy in ((11, 0.9), (2, 0.7)):
        made_up.write(tmp_path / "mpssl" / f"seed-{seed}", made_up.config(seed), made_up.result(accuracy))
    made_up.write(tmp_path / "fix" / "deep" / "er", made_up.config(labels=1, method="fixmatch"), made_up.result(0.5))
    first, second = runs.load([tmp_path])
    assert first.label == "fixmatch, 1 label per class, foundation" and first.labels == 1
    assert second.label == "mpssl, 2 labels per class, foundation" and second.kind == "mpssl, foundation"
    assert second.accuracies == [0.7, 0.9] and "seed" not in second.config


def test_a_run_named_twice_counts_once_and_a_repeated_seed_is_set_aside(tmp_path: Path) -> None:
    one = made_up.write(tmp_path / "a", made_up.config(), made_up.result(0.7))
    two = made_up.write(tmp_path / "b", made_up.config(), made_up.result(0.9))
    (group,) = runs.load([one, tmp_path])
    assert [run.path for run in group.runs] == [one] and [run.path for run in group.repeated] == [two]


def test_runs_on_other_data_are_shown_apart(tmp_path: Path) -> None:
    for seed, (data, classes) in enumerate((("aaaaaaaa1", 2), ("bbbbbbbb2", 3), ("bbbbbbbb2", 3))):
        confusion = [[int(i == j) for j in range(classes)] for i in range(classes)]
        test = made_up.result()["test"] | {"confusion": confusion, "per_class": {f"{i}": {} for i in range(classes)}}
        made_up.write(tmp_path / f"{seed}", made_up.config(seed), made_up.result(test=test, data={"hash": data}))
    made_up.write(tmp_path / "pending", made_up.config(3))
    (tmp_path / "pending" / "data.json").write_text('{"hash": "aaaaaaaa1"}')
    one, other = runs.load([tmp_path])
    assert [one.label, other.label] == [
        f"mpssl, 2 labels per class, foundation, data hash {data}" for data in ("aaaaaaaa", "bbbbbbbb")
    ]
    assert (len(one.runs), len(one.pending), len(other.runs)) == (1, 1, 2)
    assert other.label in report.page([one, other])


def test_a_group_is_named_by_the_options_that_tell_it_from_its_like(tmp_path: Path) -> None:
    for i, threshold in enumerate((0.8123456, 0.95)):
        made_up.write(tmp_path / f"{i}", made_up.config(threshold=threshold, init="none"), made_up.result())
    made_up.write(tmp_path / "other", made_up.config(method="pssl", init="none"), made_up.result())
    assert [group.label for group in runs.load([tmp_path])] == [
        "mpssl, 2 labels per class, threshold 0.812",
        "mpssl, 2 labels per class, threshold 0.95",
        "pssl, 2 labels per class",
    ]


def test_floats_are_written_in_full_where_three_digits_do_not_tell_them_apart(tmp_path: Path) -> None:
    for i, threshold in enumerate((0.9501, 0.9502)):
        made_up.write(tmp_path / f"{i}", made_up.config(threshold=threshold), made_up.result())
    assert [group.label.split()[-1] for group in runs.load([tmp_path])] == ["0.9501", "0.9502"]


def test_the_interval_of_several_seeds_is_students(tmp_path: Path) -> None:
    # By hand: mean 0.7, standard deviation 0.1, t(0.975, 2) = 4.302653, so 0.7 -+ 4.302653 * 0.1 / sqrt(3).
    for seed, accuracy in enumerate((0.5, 0.9)):
        made_up.write(tmp_path / f"{seed}", made_up.config(seed), made_up.result(accuracy))
    (group,) = runs.load([tmp_path])
    assert group.interval == [0.0, 1.0]  # 0.7 -+ 12.7 * 0.2, cut to what an accuracy can be


def test_the_interval_of_one_run_is_its_own(tmp_path: Path) -> None:
    (group,) = runs.load([made_up.write(tmp_path / "a", made_up.config(), made_up.result())])
    assert group.interval == [0.397, 0.892]


@pytest.mark.parametrize("result", [None, made_up.result(finished=False)])
def test_an_unfinished_run_is_pending_and_may_have_half_a_last_line(tmp_path: Path, result: dict[str, object]) -> None:
    path = made_up.write(tmp_path / "a", made_up.config(), result, made_up.log(0.5))
    with (path / "log.jsonl").open("a") as file:
        file.write('{"step": 10')
    (group,) = runs.load([tmp_path])
    assert not group.runs and [len(run.log) for run in group.pending] == [1]


def test_flatten_and_differences() -> None:
    one, two = {"a": {"b": 1, "c": [2]}, "seed": 1}, {"a": {"b": 1}, "seed": 2, "d": None}
    assert runs.flatten(one) == {"a.b": 1, "a.c": [2], "seed": 1}
    assert runs.differences([one, two]) == ["a.c"]


def calibrated(**wrong: object) -> str:
    found = made_up.calibration()
    found["test"]["after"] |= wrong
    return json.dumps({"calibration": found})


def test_no_run_is_said_with_the_path(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"no run in '{path}'.*config\.json"):
            runs.load([path])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", '{\n"seed": 0,\n"method": }', r"config\.json, line 3: "),
        ("config.json", "[]", r"config\.json must hold a JSON object"),
        ("config.json", '{"method": {"name": "x"}}', r"config\.json: 'seed' is missing"),
        ("config.json", '{"method": "x", "seed": 0}', r"config\.json: 'method' has a wrong value"),
        ("result.json", "", r"result\.json, line 1: "),
        ("result.json", '{"test": 3}', r"result\.json: 'test' has a wrong value"),
        ("result.json", '{"test": {"accuracy": 0.5}}', r"result\.json: 'interval' is missing"),
        ("result.json", '{"test": {"accuracy": 50, "interval": [0, 1]}}', r"must be in \[0, 1\]"),
        (
            "result.json",
            '{"test": {"confusion": [[1]], "per_class": {"a": {}, "b": {}}}}',
            "a row and a column per class",
        ),
        ("result.json", '{"test": {"confusion": [["1"]], "per_class": {"a": {}}}}', "a row and a column per class"),
        ("result.json", '{"test": {"confusion": [1], "per_class": {"a": {}}}}', "a row and a column per class"),
        ("result.json", '{"calibration": {"temperature": "1"}}', "'temperature' has a wrong value"),
        ("result.json", '{"calibration": {"temperature": 1, "test": {"before": {}}}}', "'after' is missing"),
        ("result.json", calibrated(count=[0] * 14), r"must have 15 counts and their shares"),
        ("result.json", calibrated(count=["x"] * 15), r"must have 15 counts and their shares"),
        ("result.json", calibrated(accuracy=[2.0] * 15), r"must have 15 counts and their shares"),
        ("result.json", calibrated(confidence=[None] * 15), r"must have 15 counts and their shares"),
        ("result.json", calibrated(error="0"), r"'error' has a wrong value"),
        ("log.jsonl", '{"step": 1}\n\n{"step": 2\n{"step": 3}\n', r"log\.jsonl, line 3: "),
        ("log.jsonl", "3\n", r"log\.jsonl, line 1: expected a JSON object"),
        ("log.jsonl", '{"step": 1}\n{"lr": 2}\n', r"log\.jsonl: 'step' is missing"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(tmp_path: Path, file: str, text: str, message: str) -> None:
    path = made_up.write(tmp_path / "a", made_up.config(), made_up.result())
    (path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        runs.load([tmp_path])


def test_a_result_of_another_task_needs_no_accuracy(tmp_path: Path) -> None:
    made_up.write(tmp_path / "a", made_up.config(), {"test": {"distance": 3.5}})
    made_up.write(tmp_path / "b", made_up.config(method="gan"), {"finished": True})
    measured, silent = runs.load([tmp_path])
    assert measured.accuracies == [] and measured.runs[0].test == {"distance": 3.5}
    assert len(silent.runs) == 1 and silent.runs[0].test == {}


def test_zero_labels_per_class_are_all_labels_and_come_last(tmp_path: Path) -> None:
    for labels in (0, 4, 1):
        made_up.write(tmp_path / f"{labels}", made_up.config(labels=labels), made_up.result())
    counts = [group.label.split(", ")[1] for group in runs.load([tmp_path])]
    assert counts == ["1 label per class", "4 labels per class", "all labels"]
