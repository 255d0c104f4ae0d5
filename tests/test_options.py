"""Options as they are typed, and what becomes of them."""

from __future__ import annotations

import re

import pytest
import tiny

from semisynth import options
from semisynth.errors import UserError
from semisynth.recipes.config import Config, method_names


def parsed(*typed: str):
    return options.parse(options.config_parser("fit", "Fit.", typed), typed)


@pytest.mark.parametrize("method", method_names())
def test_every_option_of_every_method_can_be_typed(method, generator):
    content = Config.of(tiny.content(method, generator)).flat()
    typed = tiny.options({key: value for key, value in content.items() if value is not None})
    assert Config.of(parsed(*typed)).flat() == content
    assert (
        Config.of(parsed(*[f"{name}={value}" for name, value in zip(typed[::2], typed[1::2], strict=True)])).flat()
        == content
    )


@pytest.mark.parametrize("spelling", ["--labels-per-class", "--labels_per_class"])
def test_hyphens_and_underscores_are_the_same(spelling):
    assert parsed("--method", "supervised", spelling, "3")["labels_per_class"] == 3


def test_values_keep_their_hyphens_and_underscores():
    assert parsed("--method=supervised", "--init=my_old-run", "--model", "small-cnn")["init"] == "my_old-run"


def test_an_abbreviation_is_no_option():
    with pytest.raises(UserError, match="unknown option of semisynth fit: '--label'"):
        parsed("--method", "supervised", "--label", "3")


@pytest.mark.parametrize(
    "typed, found",
    [
        (["--method", "gan"], "gan"),
        (["--steps", "1", "--method=gan", "--lr", "2"], "gan"),
        (["--method.name", "gan"], "gan"),
        (["--method"], None),
        (["--methods", "gan", "gan"], None),
        (["--method="], ""),
    ],
)
def test_a_value_is_found_before_any_parser_knows_the_option(typed, found):
    assert options.value(typed, "--method.name") == found


def test_help_shows_options_as_they_are_typed():
    text = options.config_parser("fit", "What it does.", ["--method", "mpssl"]).format_help()
    assert text.startswith("usage: semisynth fit ") and "What it does." in text
    shown = set(re.findall(r"--[a-z][\w.-]*", text))
    assert {"--labels-per-class", "--unlabeled-batch", "--method.mapper-lr", "--checkpoint-every"} <= shown
    assert not any("_" in name for name in shown)
