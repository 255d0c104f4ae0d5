"""What takes minutes: every method, killed again and again."""

from __future__ import annotations

import pytest
import test_resume
import tiny

from semisynth.recipes.config import method_names


@pytest.mark.soak
@pytest.mark.parametrize("method", method_names())
def test_every_method_survives_being_killed_many_times(method, generator, tmp_path):
    content = tiny.content(method, generator, steps=400, checkpoint_every=7, evaluate_every=90)
    test_resume.assert_survives(content, tmp_path, kills=(9, 30, 31, 90, 200))
