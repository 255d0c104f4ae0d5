"""What a step of each method writes into the classifier's running statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import zoo
from bilevel import SYNTHETIC, fit
from torch import nn

from semisynth.method import Method
from semisynth.methods import GDA, MGR, MPSSL, PSSL, SCR, UDA, Entropy, FixMatch, MeanTeacher, Transport


def labeled_samples() -> tuple[Any, ...]:
    return zoo.generator(), zoo.source(), zoo.WEAK, zoo.STRONG, zoo.CLASSES, SYNTHETIC


METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "fixmatch": lambda model: FixMatch(model, zoo.WEAK, zoo.STRONG),
    "meanteacher": lambda model: MeanTeacher(model, zoo.WEAK, zoo.STRONG),
    "uda": lambda model: UDA(model, zoo.WEAK, zoo.STRONG),
    "entropy": lambda model: Entropy(model, zoo.WEAK, zoo.STRONG),
    "mgr": lambda model: MGR(model, zoo.generator(), zoo.WEAK, zoo.STRONG, SYNTHETIC).double(),
    "scr": lambda model: SCR(model, zoo.WEAK, zoo.STRONG),
    "mpssl": lambda model: MPSSL(model, zoo.generator(), zoo.WEAK, zoo.STRONG, zoo.CLASSES, SYNTHETIC).double(),
    "pssl": lambda model: PSSL(model, zoo.generator(), zoo.source(), zoo.WEAK, zoo.STRONG, SYNTHETIC).double(),
    "gda": lambda model: GDA(model, *labeled_samples()).double(),
    "transport": lambda model: Transport(model, *labeled_samples()).double(),
    "transport, not refined": lambda model: Transport(model, *labeled_samples(), refine=False).double(),
}


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["cnn-batch-relu", "wrn-batch-leaky"])
def test_running_statistics_count_the_classifier_s_own_update_once_a_step(
    name: str, make: Callable[[nn.Module], Method]
) -> None:
    model = zoo.network(name)
    method = make(model)
    fit(method)
    norms = [module for module in method.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and {norm.num_batches_tracked.item() for norm in norms} == {4}
    assert all(norm.track_running_stats for norm in norms)
