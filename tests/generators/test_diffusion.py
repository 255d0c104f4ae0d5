"""Preconditioning and sampler against their formulas and an exact score, guidance, and gradients through all steps."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import zoo
from torch import Tensor, nn

from semisynth.errors import UserError
from semisynth.generators.diffusion import SAMPLERS, Denoiser, Diffusion, denoiser_of, guided, heun, levels
from semisynth.twice import twice

SHAPE, CLASSES = (1, 4, 4), 3


class Network(nn.Module):
    """Smooth, cheap, and different for every class and level."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.condition = nn.Linear(16, 16), nn.Linear(CLASSES + 1, 16)
        self.calls = 0

    def forward(self, x: Tensor, level: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return torch.sin(self.image(x.flatten(1)) + self.condition(y) + level[:, None]).view_as(x) / 2


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(Network(), SHAPE, CLASSES, 0.4).double()


def images(n: int = 6) -> Tensor:
    return zoo.normal(n, 16, 1.0, seed=0).view(n, *SHAPE)


def test_the_preconditioning_is_that_of_the_paper(denoiser: Denoiser) -> None:
    x, sigma, y = images(), torch.tensor([0.002, 0.1, 0.4, 1.0, 7.0, 80.0]).double(), torch.tensor([0, 1, 2, -1, 0, 1])
    found = denoiser(x, sigma, y)
    for i, s in enumerate(sigma.tolist()):
        skip = 0.4**2 / (s**2 + 0.4**2)
        scale = s * 0.4 / math.sqrt(s**2 + 0.4**2)
        vector = torch.eye(4, dtype=torch.float64)[y[i]][None]  # -1 is the last place, of no class
        network = denoiser.network(
            x[i : i + 1] / math.sqrt(s**2 + 0.4**2), torch.tensor([math.log(s) / 4], dtype=torch.float64), vector
        )
        torch.testing.assert_close(found[i : i + 1], skip * x[i : i + 1] + scale * network, rtol=1e-12, atol=1e-12)


def test_a_class_is_a_label_a_vector_or_none(denoiser: Denoiser) -> None:
    x, sigma, y = images(3), torch.ones(3).double(), torch.tensor([2, 0, 1])
    assert denoiser(x, sigma, y).equal(denoiser(x, sigma, nn.functional.one_hot(y, CLASSES).double()))
    assert denoiser(x, sigma).equal(denoiser(x, sigma, torch.full((3,), -1)))
    assert not denoiser(x, sigma).equal(denoiser(x, sigma, y))


def test_levels_fall_as_in_the_paper() -> None:
    found = levels(18)
    assert len(found) == 19 and found[0] == pytest.approx(80) and found[17] == pytest.approx(0.002) and found[18] == 0
    for i, level in enumerate(found[:18]):
        assert level == pytest.approx((80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rel=1e-12)
    assert levels(1) == [pytest.approx(80), 0.0]


MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.2]], dtype=torch.float64)
SPREADS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def exact(x: Tensor, sigma: float) -> Tensor:
    """The mean of a Gaussian mixture given x with noise: what a perfect denoiser finds."""
    total = SPREADS.square() + sigma**2
    distance = (x[:, None] - MEANS).square().sum(2)
    posterior = (SHARES.log() - total.log() - distance / (2 * total)).softmax(1)
    means = MEANS + (SPREADS.square() / total)[:, None] * (x[:, None] - MEANS)
    return (posterior[:, :, None] * means).sum(1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_the_exact_score_the_sampler_recovers_a_mixture(sampler: str) -> None:
    sigmas, n = levels(40), 40_000
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = SAMPLERS[sampler](exact, sigmas[0] * z, sigmas)
    mean = SHARES @ MEANS
    second = torch.einsum("k,ki,kj->ij", SHARES, MEANS, MEANS) + (SHARES @ SPREADS.square()) * torch.eye(2)
    covariance = second - torch.outer(mean, mean)
    error = 5 / n**0.5
    assert (found.mean(0) - mean).abs().max() < error * covariance.diagonal().sqrt().max()
    assert (found.T.cov() - covariance).abs().max() < 2 * error * covariance.abs().max()
    nearest = torch.cdist(found, MEANS).argmin(1).bincount() / n
    assert (nearest - SHARES).abs().max() < 0.02


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_are_of_second_order(sampler: str) -> None:
    """A single Gaussian's path is known: x shrinks as the deviation of data and noise does."""
    x, variance = torch.tensor([[30.0, -50.0]], dtype=torch.float64), 0.25

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x * (variance / (variance + sigma**2))

    expected = x * math.sqrt(variance / (variance + 80**2))
    errors = [
        (SAMPLERS[sampler](denoise, x, levels(steps)) / expected - 1).abs().max().item() for steps in (40, 80, 160)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


def test_guidance_extrapolates_and_costs_nothing_at_weight_1(denoiser: Denoiser) -> None:
    x, y, sigma = images(3), torch.tensor([0, 1, 2]), torch.full((3,), 0.7, dtype=torch.float64)
    conditional, unconditional = denoiser(x, sigma, y), denoiser(x, sigma)
    strong = guided(denoiser, y, 2.5, (0.0, math.inf))(x, 0.7)
    torch.testing.assert_close(strong, unconditional + 2.5 * (conditional - unconditional))
    for weight, interval, classes in ((1.0, (0.0, 100.0), y), (2.5, (0.8, 100.0), y), (2.5, (0.0, 0.6), y)):
        before = denoiser.network.calls
        assert guided(denoiser, classes, weight, interval)(x, 0.7).equal(conditional)
        assert denoiser.network.calls == before + 1
    assert guided(denoiser, None, 2.5, (0.0, 100.0))(x, 0.7).equal(unconditional)
    plain = Diffusion(denoiser, steps=4)
    z = images(3)
    by_hand = heun(lambda x, s: denoiser(x, torch.full((3,), s, dtype=torch.float64), y), 80 * z, levels(4))
    torch.testing.assert_close(plain(z, y), ((by_hand + 1) / 2).clamp(0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gradients_in_the_latent_and_the_class_are_those_of_finite_differences(
    denoiser: Denoiser, sampler: str
) -> None:
    generator, z = Diffusion(denoiser, steps=12, guidance=1.5, sampler=sampler), images(2)
    y = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
    inside = generator(z, y)
    assert ((inside > 0) & (inside < 1)).double().mean() > 0.5  # the others are cut off
    weights = zoo.normal(2, 16, 1.0, seed=5).view(2, *SHAPE)
    z.requires_grad_(), y.requires_grad_()
    slopes = torch.autograd.grad((generator(z, y) * weights).sum(), (z, y))
    for value, slope, at in ((z, slopes[0], (0, 0, 2, 1)), (z, slopes[0], (1, 0, 0, 3)), (y, slopes[1], (1, 2))):
        ends = []
        for sign in (1, -1):
            moved = value.detach().clone()
            moved[at] += sign * 1e-5
            ends.append((generator(*((moved, y) if value is z else (z, moved))) * weights).sum().item())
        assert slope[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_computed_again_on_the_way_back_has_the_same_gradient(denoiser: Denoiser, sampler: str) -> None:
    y = torch.tensor([0, 2])
    found = []
    for remember in (True, False):
        x = images(2).requires_grad_()
        out = SAMPLERS[sampler](guided(denoiser, y, 1.3, (0.0, math.inf)), x, levels(5), remember)
        found.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert found[0].equal(found[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_remembering_nothing_is_kept_of_a_step_but_its_image(denoiser: Denoiser, sampler: str) -> None:
    kept: list[int] = []
    x = images(2).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        SAMPLERS[sampler](guided(denoiser, torch.tensor([0, 2]), 1.3, (0.0, math.inf)), x, levels(5), remember=False)
    assert [size for size in kept if size > 1] == [x.numel()] * 5


def test_multistep_takes_one_pass_a_step_and_repeats_itself(denoiser: Denoiser) -> None:
    z, y = images(2), torch.tensor([0, 2])
    one = Diffusion(denoiser, steps=7, sampler="dpm++")(z, y)
    assert denoiser.network.calls == 7
    again = Diffusion(denoiser, steps=7, sampler="dpm++")(z, y)
    assert one.equal(again) and not one.equal(Diffusion(denoiser, steps=7)(z, y))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_is_one_denoising(denoiser: Denoiser, sampler: str) -> None:
    z, y = images(2), torch.tensor([0, 2])
    found = Diffusion(denoiser, steps=1, sampler=sampler)(z, y)
    expected = denoiser(80 * z, torch.full((2,), 80.0, dtype=torch.float64), y)
    torch.testing.assert_close(found, ((expected + 1) / 2).clamp(0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", ["tiny", "unet-tiny"])
def test_methods_that_differentiate_twice_can_differentiate_through_it(network: str) -> None:
    """What is computed again on the way back saves the same tensors, though the method's replacements are gone then."""
    torch.manual_seed(0)
    fixed = denoiser_of(SHAPE, CLASSES, network, 2, 0.5).double().requires_grad_(False)  # as generators are given
    denoise, found = guided(fixed, torch.tensor([0, 2]), 1.0, (0.0, math.inf)), []
    for around in (lambda run: run, twice):
        z = images(2).requires_grad_()
        out = around(lambda z: heun(denoise, z, levels(3), remember=False))(z)
        found.append(torch.autograd.grad(out.square().sum(), z)[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1])


def test_sizes_are_checked(denoiser: Denoiser) -> None:
    with pytest.raises(UserError, match="steps is 0"):
        Diffusion(denoiser, steps=0)
    with pytest.raises(UserError, match="guidance is -1"):
        Diffusion(denoiser, guidance=-1)
    with pytest.raises(UserError, match="unknown sampler 'ddim'"):
        Diffusion(denoiser, sampler="ddim")


def test_a_sampler_that_needs_a_library_asks_for_it_when_it_is_made(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    Diffusion(denoiser)
    with pytest.raises(UserError, match=r"sampler dpm\+\+ needs .* pip install 'semisynth\[diffusers\]'"):
        Diffusion(denoiser, sampler="dpm++")
