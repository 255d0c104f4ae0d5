"""The search: what it draws, how it ranks, and that it goes on where it stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semisynth import weights
from semisynth.cli import main
from semisynth.errors import Diverged, UserError
from semisynth.methods import FixMatch
from semisynth.recipes import cells, tune
from semisynth.recipes.config import Config
from semisynth.recipes.tune import Search, draw

CONFIG = Config.of({"labels_per_class": 2, "steps": 1, "method": {"name": "fixmatch"}, "unlabeled": "pool"})


def searching(out: Path, configurations: int = 3, seeds: tuple[int, ...] = (0, 1), **more: Any) -> Search:
    search = Search(CONFIG, out, configurations, seeds, **more)
    search.claim()
    return search


def pretend(search: Search, validation: Mapping[int, Mapping[int, tuple[float, float]]]) -> None:
    """Write results with these validation accuracies and losses by configuration and seed, and a misleading test."""
    for number, by_seed in validation.items():
        for cell in search.of(number):
            accuracy, loss = by_seed[cell.config.engine.seed]
            cell.path.mkdir(parents=True)
            measured = {"validation": {"accuracy": accuracy, "loss": loss}, "test": {"accuracy": 1 - accuracy}}
            facts = {"seconds": 1.0, "environment": {"commit": None, "device": "cpu: x"}}
            weights.write_json(cell.path / "result.json", measured | facts)


def test_draws_are_a_pure_function_of_their_names_within_the_range() -> None:
    draws = [draw("fixmatch", number, "lr", (0.003, 0.3)) for number in range(400)]
    assert draws == [draw("fixmatch", number, "lr", (0.003, 0.3)) for number in range(400)]
    assert all(0.003 <= value <= 0.3 and float(f"{value:.3g}") == value for value in draws)
    # Log-uniform: half of the draws lie below the geometric mean.
    assert 0.4 < sum(value < math.sqrt(0.003 * 0.3) for value in draws) / 400 < 0.6
    assert draw("mpssl", 1, "lr", (0.003, 0.3)) != draws[1] != draw("fixmatch", 1, "weight", (0.003, 0.3))


def test_choices_are_all_drawn() -> None:
    assert {draw("fixmatch", number, "threshold", [0.7, 0.8, 0.95]) for number in range(50)} == {0.7, 0.8, 0.95}


def test_the_first_configuration_is_the_given_one_and_the_others_vary_all_that_is_searched() -> None:
    search = Search(CONFIG, Path("out"), 16, (4,))
    assert search.at(0, 4).flat() == {**CONFIG.flat(), "seed": 4}
    drawn = [search.at(number, 4) for number in range(1, 16)]
    for name in FixMatch.ranges:
        assert len({config.options[name] for config in drawn}) > 1
    assert len({config.engine.lr for config in drawn}) == 15
    assert all(config.setting == CONFIG.setting for config in drawn)


def test_fixed_options_keep_their_value_and_leave_the_others_draws_alone() -> None:
    free = Search(CONFIG, Path("out"), 8, (0,))
    fixed = replace(free, fixed=frozenset({"threshold", "lr"}))
    for number in range(8):
        config = fixed.at(number, 0)
        assert (config.options["threshold"], config.engine.lr) == (0.95, 0.03)
        assert config.options["weight"] == free.at(number, 0).options["weight"]


def test_the_highest_mean_validation_accuracy_wins(tmp_path: Path) -> None:
    search = searching(tmp_path)
    pretend(search, {0: {0: (0.5, 1), 1: (0.7, 1)}, 1: {0: (0.9, 1), 1: (0.4, 1)}, 2: {0: (0.6, 0), 1: (0.6, 0)}})
    found = search.conclude({})
    assert found["winner"] == 1
    assert [trial["accuracy"] for trial in found["trials"]] == pytest.approx([0.6, 0.65, 0.6])
    assert found["trials"][1]["per_seed"] == [0.9, 0.4]
    assert found == weights.read_json(tmp_path / "tune.json") == search.finished()
    best = Config.of(weights.read_json(tmp_path / "best.json"))
    assert best == search.at(1, CONFIG.engine.seed)


def test_a_tie_goes_to_the_lower_loss(tmp_path: Path) -> None:
    search = searching(tmp_path, 3, (0,))
    pretend(search, {0: {0: (0.6, 2.0)}, 1: {0: (0.6, 1.0)}, 2: {0: (0.5, 0.0)}})
    assert search.conclude({})["winner"] == 1


def test_a_configuration_that_diverges_cannot_win(tmp_path: Path) -> None:
    search = searching(tmp_path, 2, (0,))
    pretend(search, {1: {0: (0.1, 2.0)}})
    found = search.conclude({search.of(0)[0].path: Diverged("the loss was not finite")})
    assert found["winner"] == 1
    assert found["trials"][0]["failed"] == "the loss was not finite"
    assert found["trials"][0]["accuracy"] is None


def test_other_failures_end_the_search_unfinished(tmp_path: Path) -> None:
    search = searching(tmp_path, 2, (0,))
    pretend(search, {1: {0: (0.1, 2.0)}})
    with pytest.raises(UserError, match="No space"):
        search.conclude({search.of(0)[0].path: OSError("No space left")})
    with pytest.raises(UserError, match="make room"):
        search.conclude({search.of(0)[0].path: UserError("checkpoint.pt cannot be written: make room")})
    with pytest.raises(UserError, match="2 cells failed"):
        search.conclude({search.of(number)[0].path: Diverged("not finite") for number in range(2)})
    assert search.finished() is None


def test_a_result_without_what_was_measured_is_named(tmp_path: Path) -> None:
    search = searching(tmp_path, 2, (0,))
    pretend(search, {0: {0: (0.5, 1.0)}, 1: {0: (0.6, 1.0)}})
    (search.of(1)[0].path / "result.json").write_text("{}")
    told = r"cells/01/0/result\.json: 'test\.accuracy' is missing: delete the file, and run the same command again"
    with pytest.raises(UserError, match=told):
        search.conclude({})
    assert search.finished() is None


@pytest.mark.parametrize("other", [{"configurations": 4}, {"seeds": (0, 2)}, {"fixed": frozenset({"lr"})}])
def test_another_search_in_the_same_directory_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    search = searching(tmp_path)
    with pytest.raises(UserError, match="holds another search"):
        replace(search, **other).finished()
    slower = replace(CONFIG, engine=replace(CONFIG.engine, momentum=0.5))
    with pytest.raises(UserError, match="config"):
        replace(search, config=slower).finished()
    assert replace(search, command="typed otherwise").finished() is None


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a directory of tune"):
        tune.tune(CONFIG, tmp_path)


def test_a_search_that_ended_before_its_first_file_was_whole_begins(tmp_path: Path) -> None:
    (tmp_path / "tune.json.part").write_text("{")
    assert Search(CONFIG, tmp_path, 2, (0,)).finished() is None


def test_an_empty_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--configurations is 0"):
        tune.tune(CONFIG, tmp_path / "out", 0)


def test_tune_from_the_command_line_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "search"
    command = ["tune", "--method", "fixmatch-real", "--method.weight", "0.5", "--labels-per-class", "2", "--steps", "1"]
    command += ["--configurations", "2", "--seeds", "3,5", "--workers", "2", "--out", str(out)]
    assert main(command) == 0
    assert f"semisynth fit --config {out}/best.json" in capsys.readouterr().out
    found = json.loads((out / "tune.json").read_text())
    assert found["budget"] == {"configurations": 2, "seeds": [3, 5], "steps": 1}
    assert found["fixed"] == ["weight"]
    assert found["ranges"].keys() == {*tune.SHARED, *FixMatch.ranges} - {"weight"}
    assert list(found["ranges"]["lr"].items()) == list(zip(("low", "high"), tune.SHARED["lr"], strict=True))
    for trial in found["trials"]:
        cells_of = [out / "cells" / f"{trial['number']:02}" / seed for seed in ("3", "5")]
        runs = [weights.read_json(path / "result.json") for path in cells_of]
        assert trial["per_seed"] == [run["validation"]["accuracy"] for run in runs]
        assert all(run["environment"]["threads"] == 1 for run in runs)
        config = weights.read_json(cells_of[0] / "config.json")
        assert (config["unlabeled"], config["seed"], config["method"]["weight"]) == ("pool", 3, 0.5)
    before = (out / "cells/00/3/result.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "cells/00/3/result.json").stat().st_mtime_ns == before
    assert main([*command, "--steps", "2"]) == 2
    assert "holds another search" in capsys.readouterr().err


def test_a_row_keeps_what_makes_it_that_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def pretended(config: Config, *rest: Any) -> dict[str, Any]:
        asked.update(config=config, fixed=rest[4])
        return {"winner": 0, "trials": [{"number": 0, "accuracy": 0.5, "options": {}}]}

    monkeypatch.setattr(tune, "tune", pretended)
    main(["tune", "--method", "gap-only", "--method.gap", "2", "--generator", "letters", "--out", str(tmp_path)])
    config = asked["config"]
    assert (config.method, config.options["look_ahead"], config.options["gap"]) == ("mpssl", False, 2.0)
    assert (config.setting.generator, config.setting.unlabeled) == ("letters", "none")
    assert {"look_ahead", "gap"} <= asked["fixed"]


def test_tune_takes_seeds_and_not_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--method", "supervised", "--seed", "3", "--out", str(tmp_path / "out")]) == 2
    assert "leave --seed out" in capsys.readouterr().err


def test_numbers() -> None:
    assert cells.numbers("100-102,120, 7", "--seeds") == [100, 101, 102, 120, 7]
    assert cells.numbers("3,3", "--seeds") == [3]
    for wrong in ("", "a", "5-3", "1,,2", "-4", "1.5"):
        with pytest.raises(UserError, match="--seeds"):
            cells.numbers(wrong, "--seeds")
