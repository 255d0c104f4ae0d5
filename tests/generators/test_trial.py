"""One image of a generator before anything is made with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semisynth import generators
from semisynth.errors import UserError
from semisynth.generators import Generator

CPU = torch.device("cpu")


class Failing(Generator):
    """Its images are its latents, unless something is raised."""

    latent_shape, classes = (2, 4, 6), 0

    def __init__(self, scale: float = 1.0, error: Exception | None = None) -> None:
        super().__init__()
        self.scale, self.error = scale, error

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Or an error."""
        if self.error is not None:
            raise self.error
        return z * self.scale


def test_the_shape_is_that_of_its_images() -> None:
    state = torch.get_rng_state()
    assert generators.tried(Failing(), "mine", CPU) == generators.shape(Failing()) == (2, 4, 6)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("scale", [torch.inf, torch.nan])
def test_values_that_are_not_finite_name_the_generator(scale: float) -> None:
    with pytest.raises(UserError, match="generator mine gives values that are not finite"):
        generators.tried(Failing(scale), "mine", CPU)


def test_an_error_is_told_in_a_sentence_unless_it_says_its_own_remedy() -> None:
    with pytest.raises(
        UserError, match=r"generator mine makes no image \(IndexError: row 3 of 2\): see that its parts"
    ):
        generators.tried(Failing(error=IndexError("row 3\nof 2")), "mine", CPU)
    for error in (UserError("give less"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)) as raised:
            generators.tried(Failing(error=error), "mine", CPU)
        assert raised.value is error
