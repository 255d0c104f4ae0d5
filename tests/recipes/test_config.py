"""A configuration from its flat form and back, and what is wrong with one."""

from __future__ import annotations

import json
import re

import pytest

from semisynth import methods
from semisynth.errors import UserError
from semisynth.recipes.config import Config, Reading, Setting, method_class, method_names, method_options, method_parts


@pytest.mark.parametrize("method", method_names())
def test_a_flat_configuration_comes_back(method):
    options = method_options(method)
    config = Config.of({"method": {"name": method}, "steps": 7, "lr": 0.5})
    assert (config.method, config.options, config.setting.steps, config.engine.lr) == (method, options, 7, 0.5)
    assert Config.of(json.loads(json.dumps(config.flat()))) == config
    assert config.flat()["method"] == {"name": method, **options}


def test_options_that_are_given_replace_defaults():
    config = Config.of({"method": {"name": "fixmatch", "threshold": 0.5}})
    assert config.options == {**method_options("fixmatch"), "threshold": 0.5}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"stepz": 3}, "unknown field in a.json: 'stepz': did you mean 'steps'?"),
        ({"steps": "x"}, "'steps' in a.json is 'x': it must be of type int"),
        ({"schedule": "linear"}, "'schedule' in a.json is 'linear': it must be of type Literal"),
        ({"method": {"name": "fixmatch", "treshold": 1}}, "did you mean 'threshold'?"),
        ({"method": {"name": "fixmatch", "threshold": "x"}}, "'method.threshold' in a.json is 'x'"),
        ({"method": {"name": "fixmatsh"}}, "unknown method 'fixmatsh': did you mean 'fixmatch'?"),
        ({"method": "fixmatch"}, "'method' in a.json is 'fixmatch': it must be of type dict"),
        ({"steps": 0}, "steps is 0: give at least 1"),
        ({"batch": -1}, "batch is -1: give a number from 1 to 1048576"),
        ({"batch": 2**21}, "batch is 2097152: give a number from 1 to"),
        ({"lr": -1}, "lr is -1: give a number from 0"),
    ],
)
def test_a_wrong_configuration_is_told_with_its_file(content, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Config.of({"method": {"name": "supervised"}, **content}, "a.json")


def test_methods_are_known_by_their_class_in_lower_case():
    known = {"supervised", "fixmatch", "uda", "entropy", "meanteacher", "scr", "mgr", "mpssl", "gan"}
    assert known | {"pssl", "gda", "transport"} <= set(method_names())
    assert method_names() == sorted(method_names())
    assert method_class("mpssl") is methods.MPSSL


def test_parts_have_no_default_and_options_have_one():
    assert method_parts("fixmatch") == {"model", "weak", "strong"}
    assert method_options("fixmatch") == {"threshold": 0.95, "weight": 1.0, "view": "weak"}


def test_the_methods_that_read_labeled_images_as_foundation_classes_ask_for_a_source():
    assert {name for name in method_names() if "source" in method_parts(name)} == {"pssl", "gda", "transport"}
    assert all("generator" in method_parts(name) for name in ("pssl", "gda", "transport"))


def test_the_source_is_part_of_a_configuration():
    config = Config.of({"method": {"name": "pssl"}, "source": "there"})
    assert config.setting.source == config.flat()["source"] == "there" and Setting().source is None
    with pytest.raises(UserError, match=r"'source' in a\.json is 3: it must be of type"):
        Config.of({"method": {"name": "pssl"}, "source": 3}, "a.json")


def test_how_images_are_read_is_part_of_a_configuration():
    config = Config.of({"method": {"name": "pssl"}, "size": 28, "unreadable": "skip"})
    assert config.reading == Reading(size=28, unreadable="skip") and config.flat()["size"] == 28
    assert Config.of({"method": {"name": "pssl"}}).reading == Reading()  # as in configurations of earlier versions
    with pytest.raises(UserError, match=r"'fit' in a\.json is 'zoom': it must be of type Literal"):
        Config.of({"method": {"name": "pssl"}, "fit": "zoom"}, "a.json")


def test_a_setting_has_at_least_one_of_everything():
    for name in ("steps", "batch", "unlabeled_batch"):
        with pytest.raises(UserError, match=f"{name} is 0: give (at least|a number from) 1"):
            Setting(**{name: 0})
