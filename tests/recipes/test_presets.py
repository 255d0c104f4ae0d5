"""The rows: each one's configuration can be built from, and says what makes it that row."""

from __future__ import annotations

import pytest

from semisynth.errors import UserError
from semisynth.recipes import presets
from semisynth.recipes.config import Config, method_class, method_parts

REAL = ("fixmatch", "uda", "meanteacher", "flexmatch", "freematch", "softmatch", "openmatch", "iomatch")


@pytest.mark.parametrize("name", presets.rows())
def test_every_row_is_part_of_a_configuration(name: str) -> None:
    config = Config.of(presets.row(name))
    setting = config.setting
    assert method_class(config.method).reads_u == (setting.unlabeled != "none")
    wants_generator = setting.unlabeled == "generator" or "generator" in method_parts(config.method)
    assert wants_generator == (setting.generator is not None)
    assert config.flat()["method"].items() >= presets.row(name)["method"].items()


def test_what_tells_the_rows_apart() -> None:
    for name in ("fixmatch", "uda", "entropy"):
        naive = {"generator": "glyphs", "unlabeled": "generator", "method": {"name": name}}
        assert presets.row(f"naive-{name}") == naive
    assert presets.row("mgr") == {"generator": "glyphs", "unlabeled": "none", "method": {"name": "mgr"}}
    for name in ("pssl", "gda"):
        assert presets.row(name) == {"generator": "glyphs", "unlabeled": "none", "method": {"name": name}}
    for name in REAL:
        assert presets.row(f"{name}-real") == {"generator": None, "unlabeled": "pool", "method": {"name": name}}
    assert presets.row("mpssl-amortised")["method"] == {"name": "mpssl", "every": 4, "shared": True}
    assert presets.row("transport-only")["method"] == {"name": "transport", "refine": False}
    assert presets.row("mpssl-plus")["method"] == {"name": "transport"}
    assert presets.row("gap-only")["method"] == {"name": "mpssl", "look_ahead": False}
    assert presets.row("mpssl-no-gap")["method"] == {"name": "mpssl", "gap": 0.0}
    assert presets.row("mpssl")["method"] == {"name": "mpssl"}
    for part in ("queue", "detector", "dummy"):
        ablated = {"generator": None, "unlabeled": "pool", "method": {"name": "rsmatch", part: False}}
        assert presets.row(f"rsmatch-no-{part}") == ablated
    assert presets.row("rsmatch-bare")["method"] == {"name": "rsmatch", "detector": False, "dummy": False}


def test_the_generator_is_the_one_given_but_for_letters() -> None:
    assert presets.row("mpssl", "mine")["generator"] == "mine"
    for name in ("pssl", "gda", "mgr", "scr-uniform", "naive-uda", "mpssl-amortised", "transport", "mpssl-plus"):
        assert presets.row(name, "mine")["generator"] == "mine"
    for name in REAL:
        assert presets.row(f"{name}-real", "mine")["generator"] is None
    assert presets.row("mpssl-letters", "mine")["generator"] == "letters"
    assert presets.row("supervised", "mine")["generator"] is None


def test_a_bare_method_reads_the_generator_that_is_given_and_else_the_real_pool() -> None:
    method = {"method": {"name": "fixmatch"}}
    assert presets.row("fixmatch") == {"generator": None, "unlabeled": "pool", **method}
    assert presets.row("fixmatch", "mine") == {"generator": "mine", "unlabeled": "generator", **method}
    assert presets.row("mpssl")["generator"] == "glyphs"


def test_what_is_learned_without_labels_is_part_of_a_configuration() -> None:
    options = {name: Config.of(row).options for name, row in presets.pretexts().items()}
    tasks = {name: found["tasks"] for name, found in options.items()}
    assert tasks == {"rotation": "rotation", "ierot": "rotation,sharpness", "pretext": "all", "frank-wolfe": "all"}
    assert [name for name, found in options.items() if found["combine"] == "frank-wolfe"] == ["frank-wolfe"]


def test_an_unknown_row_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'gap-only'"):
        presets.row("gap-onyl")
    with pytest.raises(UserError, match="unknown row or method 'gan'"):
        presets.row("gan")
