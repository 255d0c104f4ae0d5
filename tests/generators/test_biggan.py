"""BigGAN-deep against the package whose checkpoints it reads, from folders as that package's users have them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pytorch_pretrained_biggan import BigGAN as Published
from pytorch_pretrained_biggan import BigGANConfig
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor

from semisynth import generators
from semisynth.errors import UserError
from semisynth.generators.biggan import Truncated, truncated
from semisynth.generators.options import Options
from semisynth.method import External
from semisynth.models.biggan import BigGAN, Layout, folded
from semisynth.recipes import single

CLASSES, LATENT, STATS = 3, 5, 5  # whose truncations are 0, 1/4, ..., 1
SIZES: dict[str, Any] = {
    "channel_width": 4,
    "layers": [[False, 16, 16], [True, 16, 8], [False, 8, 4], [True, 4, 2], [False, 2, 1]],
    "attention_layer_position": 3,
    "z_dim": LATENT,
    "num_classes": CLASSES,
    "n_stats": STATS,
    "eps": 1e-4,
}
STORED = (0.25, 0.5, 0.75, 1.0)
HALFWAY = (0.125, 0.625)


@pytest.fixture(scope="module")
def published() -> Published:
    """The package's network, with weights, statistics and singular vectors as after a training."""
    torch.manual_seed(1)
    network = Published(BigGANConfig(**SIZES, class_embed_dim=LATENT, output_dim=16))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_vars"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith(("running_means", "generator.bn.weight", "generator.bn.bias", "gamma")):
                tensor.normal_()
        network.train()
        network(torch.randn(2, LATENT), torch.rand(2, CLASSES), 1.0)  # a step of each power iteration
    return network.eval()


@pytest.fixture
def folder(published: Published, tmp_path: Path) -> Path:
    """As published: a pickled `state_dict` and its configuration."""
    (tmp_path / "config.json").write_text(published.config.to_json_string())
    torch.save(published.state_dict(), tmp_path / "pytorch_model.bin")
    return tmp_path


def load(folder: Path, truncation: float = 1.0, **options: Any) -> Truncated:
    loaded = generators.load(str(folder), Options(truncation=truncation, **options))
    assert isinstance(loaded, Truncated)
    return loaded


def theirs(published: Published, z: Tensor, y: Tensor, truncation: float, statistics: float | None = None) -> Tensor:
    """The package's images in [0, 1]; z is a standard normal, statistics those of another truncation."""
    latent = torch.from_numpy(stats.truncnorm.ppf(stats.norm.cdf(z.double().numpy()), -2, 2)).to(z.dtype)
    with torch.no_grad():
        images: Tensor = published(truncation * latent, y, statistics or truncation)
    return (images + 1) / 2


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Latents, and a class vector for each class and for mixtures."""
    source = torch.Generator().manual_seed(2)
    soft = torch.rand(3, CLASSES, generator=source, dtype=torch.float64).softmax(1)
    return torch.randn(CLASSES + 3, LATENT, generator=source).to(dtype), torch.cat([torch.eye(CLASSES), soft]).to(dtype)


@pytest.mark.parametrize("truncation", [*STORED, *HALFWAY])
def test_the_images_are_the_package_s(published: Published, folder: Path, truncation: float) -> None:
    z, y = inputs()
    images = load(folder, truncation)(z, y)
    assert images.shape == (CLASSES + 3, 3, 16, 16) and images.std() > 0.1
    torch.testing.assert_close(images, theirs(published, z, y, truncation), atol=1e-5, rtol=0)
    labels = load(folder, truncation)(z[:CLASSES], torch.arange(CLASSES))
    torch.testing.assert_close(labels, images[:CLASSES], atol=1e-6, rtol=0)


def in_float64(published: Published, truncation: float) -> Truncated:
    layout, network = Layout(**SIZES), BigGAN(Layout(**SIZES)).double()
    tensors = {name: tensor.double() for name, tensor in published.state_dict().items()}
    network.load_state_dict(folded(tensors, layout, truncation))
    return Truncated(network, layout, truncation).requires_grad_(False)


@pytest.mark.parametrize("truncation", [*STORED, *HALFWAY])
def test_in_float64_they_are_the_same_to_ten_digits(published: Published, truncation: float) -> None:
    z, y = inputs(torch.float64)
    found = in_float64(published, truncation)(z, y)
    try:
        expected = theirs(published.double(), z, y, truncation)
    finally:
        published.float()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("truncation, mirrored", [(0.3, 0.45), (0.95, 0.8)])
def test_between_stored_truncations_the_nearer_one_counts_more(
    published: Published, folder: Path, truncation: float, mirrored: float
) -> None:
    """The package mirrors a truncation between its neighbours; with that undone the images are the same."""
    z, y = inputs()
    images = load(folder, truncation)(z, y)
    expected = theirs(published, z, y, truncation, statistics=mirrored)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    nearest = theirs(published, z, y, truncation, statistics=round(truncation * 4) / 4)
    other = theirs(
        published, z, y, truncation, statistics=(round(truncation * 4) + (-1 if truncation > 0.5 else 1)) / 4
    )
    assert (images - nearest).abs().mean() < (images - other).abs().mean()


def test_images_are_differentiable_in_z_and_in_soft_classes(published: Published) -> None:
    generator = in_float64(published, 0.6)
    z, y = (x[-2:].clone().requires_grad_() for x in inputs(torch.float64))
    along = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z, y: (generator(z, y) * along).sum(), (z, y))
    gradients = torch.autograd.grad(generator(z, y).square().sum(), (z, y))
    assert all(gradient.abs().min() > 0 for gradient in gradients) and generator.differentiable == ""


def test_the_published_network_of_128_pixels_has_a_place_for_each_of_its_tensors() -> None:
    with torch.device("meta"):
        sizes = BigGANConfig().to_dict()
        layout = Layout(**{name: sizes[name] for name in SIZES})
        network, tensors = BigGAN(layout), folded(Published(BigGANConfig()).state_dict(), layout, 0.4)
        images = network(torch.randn(2, layout.z_dim), torch.rand(2, layout.num_classes))
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == wanted and images.shape == (2, 3, 128, 128)


def test_a_normal_latent_becomes_one_that_is_cut_off() -> None:
    z = torch.linspace(-8, 8, 65, dtype=torch.float64, requires_grad=True)
    found = truncated(z, 0.5)
    expected = 0.5 * stats.truncnorm.ppf(stats.norm.cdf(z.detach().numpy()), -2, 2)
    torch.testing.assert_close(found.detach(), torch.from_numpy(expected), atol=1e-9, rtol=0)
    assert (found.diff() >= 0).all() and found.abs().max() <= 1
    assert torch.autograd.gradcheck(lambda z: truncated(z, 0.5), z)
    single = truncated(z.detach().float(), 0.5)
    torch.testing.assert_close(single.double(), found.detach(), atol=1e-6, rtol=0)


def test_it_is_constant_and_the_same_again(folder: Path) -> None:
    one, other = load(folder, 0.5), load(folder, 0.5)
    z, y = inputs()
    assert one(z, y).equal(other(z, y)) and not one(z, y).allclose(load(folder, 0.75)(z, y))
    assert not one.training and not any(p.requires_grad for p in one.parameters())
    assert (one.latent_shape, one.classes, generators.shape(one)) == ((LATENT,), CLASSES, (3, 16, 16))


def test_blocks_that_double_elsewhere_are_another_network(folder: Path) -> None:
    first = External(load(folder)).fingerprint()
    assert External(load(folder)).fingerprint() == first != External(load(folder, 0.99)).fingerprint()
    config = json.loads((folder / "config.json").read_text())
    config["layers"] = [[not doubles, *sizes] for doubles, *sizes in config["layers"]]
    (folder / "config.json").write_text(json.dumps(config))
    assert External(load(folder)).fingerprint() != first


def test_half_precision_gives_nearly_the_same(folder: Path) -> None:
    z, y = inputs()
    whole, half = load(folder, 0.5), load(folder, 0.5, precision="bf16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and half(z, y).dtype == torch.float32
    difference = (half(z, y) - whole(z, y)).abs().mean()
    assert 0 < difference < 0.05


def safetensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    (folder / "pytorch_model.bin").unlink()
    save_file(tensors, folder / "model.safetensors")


def zipless(folder: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def divided(folder: Path, tensors: dict[str, Tensor]) -> None:
    """With the weight that an early torch kept, and without the second singular vector."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith("weight_v")}
    for name, weight in tensors.items():
        if name.endswith("weight_orig"):
            u, v = (tensors[name.replace("orig", which)] for which in "uv")
            found[name.removesuffix("_orig")] = weight / (u @ weight.flatten(1) @ v)
    torch.save(found, folder / "pytorch_model.bin")


@pytest.mark.parametrize("write", [safetensors, zipless, divided])
def test_other_files_of_the_same_weights(
    published: Published, folder: Path, write: Callable[[Path, dict[str, Tensor]], None]
) -> None:
    z, y = inputs()
    expected = load(folder)(z, y)
    write(folder, published.state_dict())
    torch.testing.assert_close(load(folder)(z, y), expected, atol=1e-6, rtol=0)


def test_without_the_second_singular_vector_it_follows_from_the_first(published: Published, folder: Path) -> None:
    layout, tensors = Layout(**SIZES), published.state_dict()
    found = folded({name: t for name, t in tensors.items() if not name.endswith("weight_v")}, layout, 1.0)
    for name in ("generator.gen_z", "generator.layers.0.conv_1"):
        weight, u = tensors[f"{name}.weight_orig"], tensors[f"{name}.weight_u"]
        v = torch.nn.functional.normalize(u @ weight.flatten(1), dim=0)
        torch.testing.assert_close(found[f"{name}.weight"], weight / (u @ weight.flatten(1) @ v))


def test_classes_are_called_by_number_or_by_the_list_beside(folder: Path) -> None:
    assert generators.class_names(str(folder)) == ("0", "1", "2")
    (folder / "classes.json").write_text('["tench", "hen", "ostrich"]')
    assert generators.class_names(str(folder)) == ("tench", "hen", "ostrich")
    (folder / "classes.json").write_text('["tench", "hen"]')
    with pytest.raises(UserError, match=r"classes\.json has 2 names, num_classes in config\.json is 3"):
        load(folder)
    (folder / "classes.json").write_text('{"0": "tench"}')
    with pytest.raises(UserError, match=r"classes\.json must hold a JSON list of names, each once"):
        load(folder)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"eps": None}, r"config\.json has no 'eps': restore it"),
    "type": ({"z_dim": "5"}, r"'z_dim' in .*config\.json is '5': it must be of type int"),
    "layer": ({"layers": [[False, 16]]}, r"layers\[0\] in .* is \[False, 16\]: it must be \[doubles, before, after\]"),
    "chain": ({"layers": [[True, 16, 8], [True, 4, 1]]}, r"layers\[1\] goes from 4 to 1: it must go from 8"),
    "more": ({"layers": [[True, 16, 32], [True, 32, 1]]}, r"layers\[0\] goes from 16 to 32"),
    "end": ({"layers": [[True, 16, 4]]}, "they must end with 1"),
    "statistics": ({"n_stats": 1}, "n_stats is 1: give a number from 2"),
    "attention": ({"channel_width": 2, "attention_layer_position": 4}, "attention reads 4 channels: it needs 8"),
    "narrow": ({"channel_width": 1}, r"layers\[4\] reads 2 channels: it needs 4"),
    "other": ({"num_classes": 4}, r"pytorch_model\.bin does not fit this network: .*embeddings"),
    "table": ({"n_stats": 6}, r"pytorch_model\.bin: .*running_\w+ has 5 truncations, n_stats is 6"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_configuration_that_does_not_fit_is_explained(folder: Path, name: str) -> None:
    change, told = WRONG[name]
    content = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(UserError, match=told):
        load(folder)


@pytest.mark.parametrize("truncation", [0.0, 1.01, -1.0, math.nan])
def test_a_truncation_out_of_range_is_refused(folder: Path, truncation: float) -> None:
    with pytest.raises(UserError, match="give a number above 0, up to 1"):
        load(folder, truncation)


def test_weights_that_are_missing_of_tensorflow_or_damaged_are_explained(published: Published, folder: Path) -> None:
    tensors = published.state_dict()
    torch.save({**tensors, "generator.gen_z.weight_u": torch.ones(3)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: generator\.gen_z\.weight_u or weight_v does not fit"):
        load(folder)
    torch.save({name: t for name, t in tensors.items() if "gamma" not in name}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"does not fit this network: .*Missing .*gamma"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no weights: put model\.safetensors or pytorch_model\.bin"):
        load(folder)
    (folder / "model.ckpt-0.index").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match="checkpoint of TensorFlow, which is not read: make pytorch_model"):
            load(folder)
        (folder / "config.json").unlink(missing_ok=True)


def test_mpssl_trains_through_it(folder: Path, tmp_path: Path) -> None:
    config = tiny.config("mpssl", str(folder), steps=2)
    result = single.fit(config, tmp_path / "run", show=False)
    losses = [line["mapper/validation"] for line in tiny.log(tmp_path / "run") if "mapper/validation" in line]
    assert result["steps"] == 2 and losses and all(map(math.isfinite, losses))
    stored = tiny.checkpoint(tmp_path / "run")
    assert not any("conv_to_rgb" in name for name in stored["method"])


def test_of_sizes_that_are_not_those_of_the_weights_nothing_is_made(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    for name, value, told in (
        ("channel_width", 2**20, "does not fit this network"),  # of which one layer would take terabytes
        ("num_classes", 10**9, "num_classes is 1000000000: give a number from 1 to"),
        ("eps", 0.0, "eps is 0.0: give a number above 0"),
        ("eps", -1e-4, "eps is -0.0001: give a number above 0"),
    ):
        (folder / "config.json").write_text(json.dumps(content | {name: value}))
        with pytest.raises(UserError, match=told):
            load(folder)
