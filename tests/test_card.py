"""Each fact of the card, each limit where it holds and only there, and a command that gives the configuration again."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import made_up
import pytest
import tiny

from semisynth import card, options
from semisynth.evaluate import wilson
from semisynth.recipes import single
from semisynth.recipes.config import Config


def row(images: int = 50, right: int = 40, predicted: int = 44) -> dict[str, Any]:
    precision = {"precision": right / predicted, "precision_interval": wilson(right, predicted)}
    return {"images": images, "accuracy": right / images, "interval": wilson(right, images), **precision}


def result(**other: Any) -> dict[str, Any]:
    data = {
        "source": "my|images",
        "hash": "0123abcd",
        "size": [24, 24],
        "channels": 3,
        "fit": "pad",
        "images": {"train": 300, "validation": 200, "test": 100, "unlabeled": 7},
        "notes": ["20 rows were *there* twice"],
    }
    test = {"images": 100, "accuracy": 0.8, "interval": [0.711, 0.867], "per_class": {"a_b": row(), "<dog>": row()}}
    after = made_up.diagram({9: (40, 0.65, 0.5), 12: (30, 0.83, 0.9), 14: (30, 0.97, 1.0)}, error=0.031, loss=0.41)
    before = made_up.diagram({14: (100, 0.98, 0.8)}, error=0.181, loss=0.62)
    calibration = {"temperature": 2.5, "images": 200, "bounded": False, "test": {"before": before, "after": after}}
    names = {"shape": [3, 24, 24], "classes": 2, "class_names": ["a_b", "<dog>"], "seconds": 12.3}
    environment = {"python": "3.11.2", "commit": None}
    return {**names, "data": data, "test": test, "calibration": calibration, "environment": environment, **other}


def text(config: Config | None = None, **other: Any) -> str:
    return card.text(config or tiny.config("supervised", data="my|images"), result(**other), "feed")


def test_the_card_says_what_it_is_and_what_it_was_made_from():
    found = text()
    assert found.startswith(
        "# supervised on my\\|images\n\nA classifier of images of 24x24 pixels in colour, small-cnn, "
    )
    assert "into 2 classes: a\\_b, \\<dog\\>." in found and "6 steps, 12 seconds" in found
    for line in (
        "| source | my\\|images |",
        "| hash | 0123abcd |",
        "| images | train 300, validation 200, test 100, unlabeled 7 |",
        "| labels used | 2 of each class, drawn by seed 0 |",
        "| prepared as | 24x24, colour, proportions by pad |",
        "- 20 rows were \\*there\\* twice",
    ):
        assert line in found.splitlines()
    assert "| labels used | all |" in text(tiny.config("supervised", labels_per_class=0))


def test_the_card_says_what_was_measured_with_intervals():
    found = text()
    assert "Accuracy 0.800 [0.711, 0.867] on 100 test images" in found
    (low, high), (lowest, highest) = wilson(40, 50), wilson(40, 44)
    shares = f"0.800 [{low:.3f}, {high:.3f}] | 0.909 [{lowest:.3f}, {highest:.3f}]"
    assert f"| a\\_b | 50 | {shares} |" in found and f"| \\<dog\\> | 50 | {shares} |" in found
    assert "by one temperature, 2.5, fitted to 200 validation images" in found
    assert "calibration error from 0.181 to 0.031 and the cross-entropy from 0.620 to 0.410" in found
    low, high = wilson(57, 60)
    assert f"60 % of the test images have a confidence above 0.8; of these 0.950 [{low:.3f}, {high:.3f}]" in found


def test_none_stands_where_nothing_could_be_measured():
    blank = {"images": 0, "accuracy": None, "interval": [0, 1], "precision": None, "precision_interval": [0, 1]}
    test = {**result()["test"], "per_class": {"a": blank}}
    assert "| a | 0 | none | none |" in text(test=test)
    flat = {when: made_up.diagram({3: (10, 0.3, 0.2)}) for when in ("before", "after")}
    assert "No test image has a confidence above 0.8" in text(calibration={**result()["calibration"], "test": flat})
    found = text(test=None, class_names=["x", "y"], calibration={"temperature": 1.0, "images": 200, "bounded": False})
    assert "Nothing: there was no test split." in found and "same source" not in found


LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "few validation images": (
        {},
        {"calibration": {**result()["calibration"], "images": 99}},
        "The temperature rests on 99 validation images, which is few",
    ),
    "a bound": ({}, {"calibration": {**result()["calibration"], "bounded": True}}, "settle the temperature"),
    "rare classes": (
        {},
        {"test": {**result()["test"], "per_class": {"a": row(), "b*": row(9, 3, 3)}}},
        "Fewer than 10 test images: b\\*. The figures of these classes say next to nothing",
    ),
    "synthetic images": ({"unlabeled": "generator"}, {}, "It learned from synthetic images too"),
}


@pytest.mark.parametrize("fields, other, limit", LIMITS.values(), ids=LIMITS)
def test_a_limit_is_told_where_it_holds(fields, other, limit):
    method = "fixmatch" if fields else "supervised"
    assert limit in text(tiny.config(method, "glyphs" if fields else None, **fields), **other) and limit not in text()


def test_limits_of_every_run_are_told():
    found = text()
    for limit in ("that shows none of them: that was not measured", "from the same source", "one seed"):
        assert limit in found


@pytest.mark.parametrize(
    "config",
    [
        tiny.config("supervised", data="a folder; rm -rf", precision="bf16", compile=True, holdout=0.25),
        tiny.config("transport", "glyphs", {"refine": False, "shared": False}, source="x y"),
        tiny.config("fixmatch", options={"threshold": 0.1}, seed=7, lr=0.125),
        tiny.config("supervised", steps=400, labels_per_class=0),
    ],
)
def test_the_command_gives_the_same_configuration(config):
    assert f"    {card.command(config)}\n" in text(config)
    semisynth, fit, *typed = shlex.split(card.command(config))
    parser = options.config_parser("fit", None, typed)
    parser.add_argument("--out", type=str)
    given = options.parse(parser, typed)
    assert (semisynth, fit, given.pop("out")) == ("semisynth", "fit", "AGAIN")
    assert Config.of(given) == config


def test_a_fit_of_a_classifier_ends_with_its_card_and_one_of_a_generator_has_none(tmp_path, generator):
    config = tiny.config("supervised", steps=1)
    single.fit(config, tmp_path / "run", show=False)
    kept = json.loads((tmp_path / "run" / "result.json").read_text())
    found = (tmp_path / "run" / "model-card.md").read_text()
    weights = hashlib.sha256((tmp_path / "run" / "model.safetensors").read_bytes()).hexdigest()
    assert found == card.text(config, kept, weights) and f"sha256 {weights} |" in found
    assert str(tmp_path) not in found and not re.search(r"(^|[\s|`(])/\w", found)
    assert kept["test"]["accuracy"] > 0 and "| images | train 997, validation 300, test 500 |" in found
    assert not (Path(generator) / "model-card.md").exists()
