"""MP-SSL's mapper and MGR's finder."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from semisynth import noise
from semisynth.models import Finder, Mapper

LATENT = (2, 3)


def mapper(foundation: int = 5, moved: bool = False, **options: float) -> Mapper:
    made = Mapper(LATENT, 4, foundation, width=16, **options).double()
    if moved:
        nn.init.normal_(made.out.weight)
    return made


def inputs(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, *LATENT, dtype=torch.float64), torch.arange(n) % 4


def test_it_starts_as_the_identity_on_z_and_uniform_over_classes() -> None:
    z, y = inputs(10_000)
    with noise.seeded(0):
        moved, chosen = mapper()(z, y)
    assert moved.equal(z)
    assert stats.chisquare(chosen.sum(0).detach().numpy()).pvalue > 0.01


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_hard_choices_are_one_hot_with_the_gradient_of_the_soft_ones(temperature: float) -> None:
    hard, soft = mapper(moved=True, temperature=temperature, hard=True), mapper(temperature=temperature, hard=False)
    soft.load_state_dict(hard.state_dict())
    z, y = inputs()
    weight = torch.randn(6, 5, dtype=torch.float64)
    with noise.seeded(0):
        _, one = hard(z, y)
    with noise.seeded(0):
        _, other = soft(z, y)
    assert one.detach().equal(nn.functional.one_hot(other.argmax(1), 5).double())
    assert one.dtype == other.dtype == torch.float64
    torch.testing.assert_close(other.sum(1), torch.ones(6).double())
    gradients = [torch.autograd.grad((c * weight).sum(), list(m.parameters())) for c, m in ((one, hard), (other, soft))]
    torch.testing.assert_close(*gradients)


def test_soft_choices_are_gumbel_softmax() -> None:
    made = mapper(moved=True, temperature=0.5, hard=False)
    z, y = inputs()
    logits = made.out(made.body(torch.cat([z.flatten(1), made.embedding(y)], 1)))[:, 6:]
    with noise.seeded(0):
        _, found = made(z, y)
    with noise.seeded(0):
        expected = torch.exp((logits + noise.gumbel(6, 5, like=z)) / 0.5)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))


def test_the_prior_steers_the_classes_of_each_target_class() -> None:
    """By the Gumbel-max trick, a hard choice is class c with probability softmax(prior)_c."""
    made, each = mapper(hard=True), 4000
    assert made.prior.equal(torch.zeros(4, 5))
    made.prior.copy_(torch.randn(4, 5))
    made.prior[3] = torch.tensor([0, 0, 40.0, 0, 0])  # certain
    y = torch.arange(4).repeat_interleave(each)
    with noise.seeded(0):
        moved, chosen = made(torch.ones(4 * each, *LATENT).double(), y)
    counts = chosen.detach().view(4, each, 5).sum(1)
    assert counts[3].tolist() == [0, 0, each, 0, 0]
    for found, prior in zip(counts[:3], made.prior[:3], strict=True):
        assert stats.chisquare(found.numpy(), each * prior.softmax(0).numpy()).pvalue > 0.01
    assert moved.equal(torch.ones_like(moved))


def test_the_prior_is_added_to_the_logits_and_does_not_move() -> None:
    made, (z, y) = mapper(moved=True, hard=False), inputs()
    made.prior.copy_(torch.randn(4, 5))
    logits = made.out(made.body(torch.cat([z.flatten(1), made.embedding(y)], 1)))[:, 6:] + made.prior[y]
    with noise.seeded(0):
        _, found = made(z, y)
    with noise.seeded(0):
        expected = ((logits + noise.gumbel(6, 5, like=z)) / 0.5).softmax(1)
    torch.testing.assert_close(found, expected)
    assert "prior" in made.state_dict() and all(name != "prior" for name, _ in made.named_parameters())


def test_the_latent_is_turned_by_z_and_y_and_keeps_its_norm() -> None:
    made = mapper(moved=True)
    z, y = inputs()
    z[0] *= 100
    found, _ = made(z, y)
    out = made.out(made.body(torch.cat([z.flatten(1), made.embedding(y)], 1)))
    for one, before, delta in zip(found.flatten(1), z.flatten(1), out[:, :6], strict=True):
        torch.testing.assert_close(one.norm(), before.norm())
        torch.testing.assert_close(one / one.norm(), (before + delta) / (before + delta).norm())
    assert found.shape == z.shape and not torch.allclose(found, z, rtol=0.1)
    assert not torch.allclose(made(z, (y + 1) % 4)[0], found)


def test_a_latent_of_zeros_stays_and_has_a_finite_gradient() -> None:
    made = mapper()
    found, _ = made(torch.zeros(2, *LATENT).double(), torch.tensor([0, 1]))
    assert found.equal(torch.zeros_like(found))
    gradients = torch.autograd.grad(found.sum(), list(made.parameters()), allow_unused=True, materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("hard", [True, False])
def test_gradient_reaches_every_parameter_and_z(hard: bool) -> None:
    made = mapper(moved=True, hard=hard)
    z, y = inputs()
    moved, chosen = made(z.requires_grad_(), y)
    weight = torch.randn(6, 5, dtype=torch.float64)
    for value in (moved.pow(3).sum(), (chosen * weight).sum()):
        found = torch.autograd.grad(value, [z, *made.parameters()], retain_graph=True)
        assert all(g.abs().sum() > 0 for g in found)


def test_without_foundation_classes_there_is_no_choice_and_no_draw() -> None:
    made = mapper(foundation=0, moved=True)
    before = torch.get_rng_state()
    moved, chosen = made(torch.ones(2, *LATENT).double(), torch.tensor([0, 1]))
    assert chosen is None and moved.shape == (2, *LATENT)
    assert torch.get_rng_state().equal(before)


# ---- the finder -----------------------------------------------------------------------------------------------------


def finder(moved: bool = False) -> Finder:
    made = Finder(LATENT, width=16).double()
    if moved:
        nn.init.normal_(made.out.weight)
    return made


def test_the_finder_starts_as_the_identity() -> None:
    z, _ = inputs()
    assert finder()(z).equal(z)


def test_the_finder_turns_each_latent_by_itself_and_keeps_its_norm() -> None:
    made, (z, _) = finder(moved=True), inputs()
    z[0] *= 100
    found = made(z)
    for one, before in zip(found, z, strict=True):
        flat = before.flatten()
        moved = flat + made.out(made.body(flat))
        torch.testing.assert_close(one.flatten(), moved * flat.norm() / moved.norm())
    assert not torch.allclose(found, z, rtol=0.1)


def test_gradient_reaches_every_parameter_of_the_finder_and_z() -> None:
    made, (z, _) = finder(moved=True), inputs()
    found = torch.autograd.grad(made(z.requires_grad_()).pow(3).sum(), [z, *made.parameters()])
    assert all(g.abs().sum() > 0 for g in found)


@pytest.mark.parametrize("progress, expected", [(0.0, 2.0), (0.5, 1.0), (1.0, 0.5)])
def test_the_temperature_cools_geometrically(progress: float, expected: float) -> None:
    torch.manual_seed(0)
    cooling = Mapper((3,), 2, 4, temperature=2.0, cooling=0.25)
    steady = Mapper((3,), 2, 4, temperature=expected)
    steady.load_state_dict(cooling.state_dict())
    z, y = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    with noise.seeded(0):
        found = cooling(z, y, progress)[1]
    with noise.seeded(0):
        torch.testing.assert_close(found, steady(z, y)[1], atol=0, rtol=1e-6)
