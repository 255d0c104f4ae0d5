"""Preconditioning, noise levels and steps against an independent implementation: diffusers' EDM schedulers.

Three of their conventions differ from ours, which are the paper's. A scheduler that was only constructed has other
levels than after `set_timesteps`: EDMEulerScheduler(num_train_timesteps=N) has N + 1 of them before the zero, the other
N. `init_noise_sigma`, by which a pipeline multiplies its noise, is sqrt(80^2 + 1); the paper's is 80. And the solver
raises to the seventh power in float32, which leaves its levels 1.1e-6 off at 50 steps: `multistep` gives it ours.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from semisynth.generators.diffusion import Denoiser, guided, heun, levels, multistep

diffusers = pytest.importorskip("diffusers")
SHAPE, DATA = (1, 4, 4), 0.7
EULER, SOLVER = "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"


class Network(nn.Module):
    """Any function of image and level; no class."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(16, 16)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, level: Tensor, y: Tensor) -> Tensor:
        self.seen.append((x, level))
        return torch.sin(self.image(x.flatten(1)) + level.view(-1, 1)).view_as(x)


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(Network(), SHAPE, 3, DATA).double()


def noise(n: int = 3) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", [EULER, SOLVER])
@pytest.mark.parametrize("sigma", [0.002, 0.1, DATA, 3.0, 80.0])
def test_the_preconditioning_is_theirs(denoiser: Denoiser, name: str, sigma: float) -> None:
    scheduler, x = getattr(diffusers, name)(sigma_data=DATA), sigma * noise()
    found = denoiser(x, torch.full((3,), sigma, dtype=torch.float64))
    (given, level), at = denoiser.network.seen[-1], torch.tensor(sigma, dtype=torch.float64)
    torch.testing.assert_close(given, scheduler.precondition_inputs(x, at), rtol=1e-12, atol=0)
    torch.testing.assert_close(level, scheduler.precondition_noise(at).expand(3), rtol=1e-12, atol=0)
    out = denoiser.network(given, level, torch.zeros(3, 4))
    torch.testing.assert_close(found, scheduler.precondition_outputs(x, out, at), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 18, 50])
def test_the_levels_are_theirs(steps: int) -> None:
    ours = torch.tensor(levels(steps), dtype=torch.float64)
    for name in (EULER, SOLVER):
        scheduler = getattr(diffusers, name)(sigma_min=0.002, sigma_max=80.0, rho=7.0)
        scheduler.set_timesteps(steps)
        assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1 == steps + 1 and scheduler.sigmas[-1] == 0
        exact = scheduler._compute_karras_sigmas(torch.linspace(0, 1, steps, dtype=torch.float64))
        torch.testing.assert_close(exact, ours[:-1], rtol=1e-12, atol=0)
        if name == EULER:
            torch.testing.assert_close(scheduler.sigmas.double(), ours, rtol=1e-7, atol=0)


def test_what_they_are_constructed_with_is_another_number_of_levels_for_one_of_them() -> None:
    assert len(diffusers.EDMEulerScheduler(num_train_timesteps=18).sigmas) == 18 + 2
    assert len(diffusers.EDMDPMSolverMultistepScheduler(num_train_timesteps=18).sigmas) == 18 + 1
    assert diffusers.EDMEulerScheduler().init_noise_sigma == pytest.approx((80**2 + 1) ** 0.5)


def theirs(scheduler: object, network: nn.Module, x: Tensor) -> Tensor:
    """A pipeline's loop: the network's own output goes into the scheduler, which does the preconditioning."""
    for time in scheduler.timesteps:  # type: ignore[attr-defined]
        given = scheduler.scale_model_input(x, time)  # type: ignore[attr-defined]
        out = network(given, time.expand(len(x)), torch.zeros(len(x), 4))
        x = scheduler.step(out, time, x).prev_sample  # type: ignore[attr-defined]
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 20])
def test_multistep_is_their_loop(denoiser: Denoiser, steps: int) -> None:
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_data=DATA)
    scheduler.set_timesteps(steps)
    sigmas, x = levels(steps), 80 * noise()
    found = multistep(guided(denoiser, None, 1.0, (0.0, 0.0)), x, sigmas)
    torch.testing.assert_close(found, theirs(scheduler, denoiser.network, x), rtol=1e-6, atol=1e-6)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = scheduler.precondition_noise(scheduler.sigmas[:-1])
    torch.testing.assert_close(found, theirs(scheduler, denoiser.network, x), rtol=1e-11, atol=1e-11)


def test_the_euler_half_of_heuns_step_is_theirs(denoiser: Denoiser) -> None:
    """Where a step ends at zero there is no other half."""
    for steps in (2, 7):
        scheduler = diffusers.EDMEulerScheduler(sigma_data=DATA)
        scheduler.set_timesteps(steps)
        now = levels(steps)[-2]
        scheduler.set_begin_index(steps - 1)
        x, time = (now * noise()).float().double(), scheduler.timesteps[-1]
        given = scheduler.scale_model_input(x, time)
        out = denoiser.network(given, time.expand(3), torch.zeros(3, 4))
        found = heun(guided(denoiser, None, 1.0, (0.0, 0.0)), x, [now, 0.0])
        torch.testing.assert_close(scheduler.step(out, time, x).prev_sample, found, rtol=1e-6, atol=1e-6)
