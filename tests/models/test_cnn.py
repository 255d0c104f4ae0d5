from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from semisynth.models import small_cnn


def test_the_network_is_what_its_docstring_says() -> None:
    model = small_cnn(3, 10, width=8)
    x = torch.rand(2, 3, 16, 16)
    h = 2 * x - 1
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert [c.out_channels for c in convolutions] == [8, 16, 32] == [n.num_channels for n in norms]
    for convolution, norm, stride in zip(convolutions, norms, (1, 2, 2), strict=True):
        h = F.conv2d(h, convolution.weight, stride=stride, padding=1)
        h = F.relu(F.group_norm(h, norm.num_groups, norm.weight, norm.bias))
    assert h.shape[2:] == (4, 4)
    torch.testing.assert_close(model(x), model.head(h.mean((2, 3))))


def test_norm_and_activation_are_those_asked_for() -> None:
    def kinds(model: nn.Module) -> set[type[nn.Module]]:
        return {type(m) for m in model.modules()} & {nn.GroupNorm, nn.BatchNorm2d, nn.ReLU, nn.SiLU}

    assert kinds(small_cnn(1, 2)) == {nn.GroupNorm, nn.ReLU}
    assert kinds(small_cnn(1, 2, norm_kind="batch", activation=nn.SiLU)) == {nn.BatchNorm2d, nn.SiLU}
