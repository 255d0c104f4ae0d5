"""What a generator promises, and the wrappers that rely on it."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import Tensor

from semisynth import noise
from semisynth.errors import UserError
from semisynth.generators import Generator, Permuted, sample
from semisynth.generators.protocol import vectors
from semisynth.method import External


def latents(generator: Generator, n: int = 6) -> Tensor:
    return torch.randn(n, *generator.latent_shape, dtype=torch.float64)


def labels(generator: Generator, n: int = 6) -> Tensor | None:
    return torch.arange(n) % generator.classes if generator.classes else None


def kept() -> dict[str, Generator]:
    return {**{name: zoo.generator(name) for name in zoo.GENERATORS}, "permuted": Permuted(zoo.generator(), 1)}


each_generator = pytest.mark.parametrize("name", kept())


def test_a_generator_must_make_images() -> None:
    with pytest.raises(TypeError, match="forward"):
        Generator()  # type: ignore[abstract]


@each_generator
def test_images_are_in_the_unit_interval_and_differentiable_in_z(name: str) -> None:
    generator = kept()[name]
    z = latents(generator).requires_grad_()
    images = generator(3 * z, labels(generator))
    assert images.shape == (6, *zoo.SHAPE) and images.min() >= 0 and images.max() <= 1
    gradient = torch.autograd.grad(images.square().sum(), z)[0]
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", ["conditional", "permuted"])
def test_a_one_hot_vector_is_a_label_and_classes_matter(name: str) -> None:
    generator, y = kept()[name], torch.arange(6) % zoo.FOUNDATION
    z = latents(generator)
    one_hot = torch.eye(zoo.FOUNDATION, dtype=torch.float64)[y]
    torch.testing.assert_close(generator(z, y), generator(z, one_hot), atol=1e-12, rtol=0)
    assert not torch.allclose(generator(z, y), generator(z, (y + 1) % zoo.FOUNDATION))


@pytest.mark.parametrize("name", ["conditional", "permuted"])
def test_images_are_differentiable_in_soft_classes(name: str) -> None:
    generator = kept()[name]
    z, soft = latents(generator, 2), torch.rand(2, zoo.FOUNDATION, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: generator(z, y), soft)
    assert torch.autograd.grad(generator(z, soft).square().sum(), soft)[0].abs().min() > 0


def test_vectors_are_one_hot_for_labels_and_unchanged_otherwise() -> None:
    like = torch.empty(0, dtype=torch.float64)
    found = vectors(torch.tensor([2, 0]), 3, like)
    assert found.tolist() == [[0, 0, 1], [1, 0, 0]] and found.dtype == torch.float64
    soft = torch.rand(2, 3)
    assert vectors(soft, 3, like) is soft


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_permuted_shuffles_labels_and_soft_vectors_alike(seed: int) -> None:
    inner = zoo.generator()
    generator = Permuted(inner, seed)
    assert generator.classes == inner.classes and generator.latent_shape == inner.latent_shape
    z = latents(inner, zoo.FOUNDATION)
    order = generator.order
    assert sorted(order.tolist()) == list(range(zoo.FOUNDATION))
    torch.testing.assert_close(generator(z, torch.arange(zoo.FOUNDATION)), inner(z, order))
    soft = torch.rand(zoo.FOUNDATION, zoo.FOUNDATION, dtype=torch.float64)
    moved = torch.zeros_like(soft)
    for number, meaning in enumerate(order.tolist()):
        moved[:, meaning] = soft[:, number]
    torch.testing.assert_close(generator(z, soft), inner(z, moved))


def test_permuted_is_fixed_by_its_seed() -> None:
    wide = zoo.ConditionalGenerator(zoo.SHAPE, 62, zoo.LATENT, width=8)
    orders = [Permuted(wide, seed).order.tolist() for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1] and len({tuple(order) for order in orders}) == 3
    assert External(Permuted(wide, 0)).fingerprint() != External(Permuted(wide, 1)).fingerprint()


def test_permuted_leaves_an_unconditional_generator_as_it_is() -> None:
    inner = zoo.generator("unconditional")
    z = latents(inner)
    assert Permuted(inner, 0)(z).equal(inner(z)) and Permuted(inner, 0).classes == 0


@each_generator
def test_sample_draws_normal_latents_and_uniform_classes(name: str) -> None:
    generator, like = kept()[name], torch.empty(0, dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor | None]] = []
    generator.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    with noise.seeded(0):
        images = sample(generator, 1000, like)
    (z, y), *_ = seen
    assert images.shape == (1000, *zoo.SHAPE) and images.dtype == torch.float64
    assert z.mean().abs() < 0.05 and (z.std() - 1).abs() < 0.05
    if generator.classes:
        assert y is not None and (y.bincount() / 1000 - 1 / zoo.FOUNDATION).abs().max() < 0.05
    else:
        assert y is None


@pytest.mark.parametrize("wrong", [-1, zoo.FOUNDATION])
def test_a_class_out_of_range_is_told(wrong: int) -> None:
    generator = zoo.GENERATORS["conditional"]()
    with pytest.raises(UserError, match=rf"has no class {wrong}: give numbers from 0 to {zoo.FOUNDATION - 1}"):
        generator(torch.randn(2, zoo.LATENT), torch.tensor([0, wrong]))
    with pytest.raises(UserError, match=rf"vectors have 9 entries, and the generator {zoo.FOUNDATION} classes"):
        generator(torch.randn(2, zoo.LATENT), torch.ones(2, 9))
    assert len(generator(torch.randn(0, zoo.LATENT), torch.tensor([], dtype=torch.int64))) == 0
