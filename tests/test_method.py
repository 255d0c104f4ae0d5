"""The contract, and foreign networks in it."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import nn

from semisynth.combine import total
from semisynth.method import Average, Batch, External, Losses, Method, Update


class Owner(nn.Module):
    """A module with a foreign one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.foreign = External(module)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def test_a_method_must_say_its_updates_and_has_no_samples_by_itself() -> None:
    with pytest.raises(TypeError, match="updates"):
        Method()  # type: ignore[abstract]

    class Still(Method):
        def updates(self) -> dict[str, Update | Average]:
            return {}

    assert Still().samples(3, torch.empty(0)) == {}
    assert (Still.task, Still.reads_u, dict(Still.ranges)) == ("classify", True, {})


def test_what_is_left_out() -> None:
    update = Update(nn.Linear(1, 1), lambda batch: Losses({}))
    assert update.combine is total and update.optimizer is None and update.every == 1
    losses = Losses({})
    assert not losses.metrics and not losses.memory and losses.shared is None
    with pytest.raises(TypeError):
        losses.memory["x"] = torch.ones(1)  # type: ignore[index]
    assert (Batch(*[torch.empty(0)] * 4).step, Average(nn.Identity(), nn.Identity()).decay) == (0, 0.999)


def test_external_is_not_a_part_of_its_owner() -> None:
    owner = Owner(small())
    names = {"own.weight", "own.bias"}
    assert {name for name, _ in owner.named_parameters()} == names and set(owner.state_dict()) == names
    assert not list(owner.buffers())


def test_external_stays_in_eval_mode_and_constant() -> None:
    module = small()
    owner = Owner(module).train()
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    assert owner.foreign.module is module
    x = torch.rand(4, 2, requires_grad=True)
    before = zoo.copies(module)
    assert owner.foreign(x).equal(owner.foreign(x)) and owner.foreign(x).equal(module(x))
    assert torch.autograd.grad(owner.foreign(x).sum(), x)[0].abs().sum() > 0
    assert zoo.same(before, zoo.copies(module))


def test_external_passes_every_argument() -> None:
    assert External(nn.Bilinear(2, 3, 1))(torch.rand(4, 2), torch.rand(4, 3)).shape == (4, 1)


def test_external_moves_with_its_owner() -> None:
    owner = Owner(small()).double()
    assert owner.foreign(torch.rand(4, 2).double()).dtype == torch.float64
    assert {p.dtype for p in owner.foreign.module.parameters()} == {torch.float64}
    owner.to("meta")
    assert {p.device.type for p in owner.foreign.module.parameters()} == {"meta"} == {owner.own.weight.device.type}


def test_fingerprint_is_of_the_weights_and_buffers() -> None:
    module = small()
    external = External(module)
    first = external.fingerprint()
    assert len(first) == 16 and External(copy.deepcopy(module)).fingerprint() == first
    for tensor in (module[0].bias, module[1].running_var):
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor[0] += 1e-3
            assert external.fingerprint() != first
            tensor.copy_(kept)
    assert external.double().fingerprint() == first


def test_fingerprint_is_of_names_and_shapes_too() -> None:
    one, other = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    named = nn.Module()
    named.register_parameter("other", nn.Parameter(one.weight.detach().clone()))
    with torch.no_grad():
        other.weight.copy_(one.weight.view(2, 3))
    assert len({External(module).fingerprint() for module in (one, other, named)}) == 3
