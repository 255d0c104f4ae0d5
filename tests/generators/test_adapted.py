"""A generator whose images are made to be of another shape."""

from __future__ import annotations

import torch
import zoo

from semisynth.generators import Adapted, Adapter, shape


def test_an_adapted_generator_is_one():
    plain = zoo.generator("conditional").float()
    before = shape(plain)
    found = Adapted(plain, Adapter(before, (3, 11, 11)))
    assert shape(found) == (3, 11, 11) and (found.latent_shape, found.classes) == (plain.latent_shape, plain.classes)
    z, y = torch.randn(4, *plain.latent_shape), torch.arange(4) % plain.classes
    torch.testing.assert_close(found(z, y), found.adapter(plain(z, y)))
