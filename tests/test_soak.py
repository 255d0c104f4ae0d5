"""What takes minutes: every method, and the stages of DPT, killed again and again."""

from __future__ import annotations

from collections import Counter

import pytest
import test_resume
import tiny
from recipes import test_dpt_killed

from semisynth.recipes.config import method_names


@pytest.mark.soak
@pytest.mark.parametrize("method", method_names())
def test_every_method_survives_being_killed_many_times(method, generator, tmp_path):
    content = tiny.content(method, generator, steps=400, checkpoint_every=7, evaluate_every=90)
    test_resume.assert_survives(content, tmp_path, kills=(9, 30, 31, 90, 200))


@pytest.mark.soak
def test_every_stage_of_dpt_survives_being_killed_many_times(tmp_path):
    options = "--steps 60 --diffusion-steps 60 --images-per-class 12 --sampler-steps 4"
    kills = (0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 5)
    hits = test_dpt_killed.assert_survives(tmp_path, options, kills)
    print(Counter(hits))
    assert len(hits) == 20 and {hit.split()[-1] for hit in hits} == set(test_dpt_killed.STAGES)
