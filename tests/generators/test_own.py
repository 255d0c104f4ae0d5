"""A user's own network with a descriptor: Python files, exported programs, and what is wrong with either."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
import random
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from semisynth import generators
from semisynth.errors import UserError
from semisynth.generators import Adapted, Adapter, Permuted
from semisynth.generators.own import Own
from semisynth.method import External
from semisynth.recipes import single

LATENT, CLASSES = 3, 4
NETWORK = """
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self, width=6, labels=False, classes=4, double=False):
            super().__init__()
            self.classes, self.labels = classes, labels
            self.before = nn.Linear(3 + classes, width)
            self.after = nn.Linear(width, 3 * 4 * 4)
            if double:
                self.double()

        def forward(self, z, y=None):
            if self.labels:
                y = nn.functional.one_hot(y, self.classes).to(z.dtype)
            z = z if y is None else torch.cat([z, y], 1)
            return torch.tanh(self.after(torch.sin(self.before(z)))).view(-1, 3, 4, 4)
"""
MODULE = {"module": "net.py:Network", "weights": "weights.safetensors", "range": [-1, 1]}
CONDITIONAL = {"latent": [LATENT], "classes": CLASSES, "condition": "vectors"}


class Sine(nn.Module):
    """What the text above says, in float64."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(LATENT + classes, 6), nn.Linear(6, 48)
        self.double()

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        z = z if y is None else torch.cat([z, y], 1)
        return torch.tanh(self.after(torch.sin(self.before(z)))).view(-1, 3, 4, 4)


class Constant(Sine):
    """The same without a gradient."""

    @torch.no_grad()
    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(z, y)


class Scaled(nn.Module):
    """Nothing but a constant."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (self.scale * torch.tanh(z[:, :, None, None]) + 0 * y.sum(1)[:, None, None, None]).expand(-1, 3, 4, 4)


def described(folder: Path, content: dict[str, Any], network: str = NETWORK) -> Path:
    """A folder with this descriptor, this network in `net.py`, and weights for it that are `Sine`'s."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "net.py").write_text(textwrap.dedent(network))
    (folder / "generator.json").write_text(json.dumps(content))
    torch.manual_seed(3)
    save_file(Sine(CLASSES if content.get("classes") else 0).state_dict(), folder / "weights.safetensors")
    return folder


def sine(folder: Path, classes: int = CLASSES) -> Sine:
    """The network whose weights lie in a folder."""
    made = Sine(classes)
    made.load_state_dict(generators.own.read_foreign(folder / "weights.safetensors"))
    return made


def exported(folder: Path, network: nn.Module, rows: Any, n: int = 2, conditional: bool = True) -> Path:
    """A folder with the program of this network, for n rows or for those of a `torch.export.Dim`."""
    content = {"program": "made.pt2", "latent": [LATENT], "range": [-1, 1]}
    described(folder, {**content, **(CONDITIONAL if conditional else {})})
    example = (torch.zeros(n, LATENT, dtype=torch.float64), torch.zeros(n, CLASSES, dtype=torch.float64))
    inputs = example if conditional else example[:1]
    shapes = None if rows is None else tuple({0: rows} for _ in inputs)
    torch.export.save(torch.export.export(network.eval(), inputs, dynamic_shapes=shapes), folder / "made.pt2")
    return folder


def latents(n: int = 5) -> tuple[Tensor, Tensor]:
    """z and soft y."""
    source = torch.Generator().manual_seed(4)
    z = torch.randn(n, LATENT, generator=source, dtype=torch.float64)
    return z, torch.rand(n, CLASSES, generator=source, dtype=torch.float64).softmax(1)


def load(path: Path) -> Own:
    loaded = generators.load(str(path))
    assert isinstance(loaded, Own)
    return loaded


def test_a_module_of_a_file_makes_images_in_the_unit_interval(tmp_path: Path) -> None:
    folder = described(tmp_path, {**MODULE, **CONDITIONAL, "arguments": {"double": True}})
    generator, (z, y) = load(folder), latents()
    torch.testing.assert_close(generator(z, y), (sine(folder)(z, y) + 1) / 2, atol=1e-12, rtol=0)
    labels = torch.tensor([3, 0, 1, 1, 2])
    torch.testing.assert_close(generator(z, labels), generator(z, torch.eye(CLASSES).double()[labels]))
    assert (generator.latent_shape, generator.classes, generator.differentiable) == ((LATENT,), CLASSES, "")
    assert not generator.training and not any(p.requires_grad for p in generator.parameters())
    assert load(folder / "generator.json")(z, y).equal(load(folder)(z, y))


def test_it_is_called_in_the_dtype_of_its_weights(tmp_path: Path) -> None:
    z, y = (x.float() for x in latents())
    whole = load(described(tmp_path / "double", {**MODULE, **CONDITIONAL, "arguments": {"double": True}}))
    half = load(described(tmp_path / "single", {**MODULE, **CONDITIONAL}))
    assert whole(z, y).dtype == half(z, y).dtype == torch.float32
    torch.testing.assert_close(whole(z, y), half(z, y))


def checked(generator: Callable[..., Tensor], *inputs: Tensor) -> None:
    inputs = tuple(x.requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(generator, inputs)
    gradients = torch.autograd.grad(generator(*inputs).square().sum(), inputs)
    assert all(gradient.abs().min() > 0 for gradient in gradients)


def test_a_module_is_differentiable_in_z_and_y(tmp_path: Path) -> None:
    checked(load(described(tmp_path, {**MODULE, **CONDITIONAL, "arguments": {"double": True}})), *latents(2))


@pytest.mark.parametrize("range_, low, high", [([-1, 1], -1.0, 1.0), ([-1.0, 0.5], -1.0, 0.5), ([-3, 2], -3.0, 2.0)])
def test_the_range_is_moved_and_what_is_beyond_it_cut_off(
    tmp_path: Path, range_: list[float], low: float, high: float
) -> None:
    told = {**MODULE, **CONDITIONAL, "range": range_, "arguments": {"double": True}}
    folder = described(tmp_path, told)
    z, y = latents()
    expected = ((sine(folder)(z, y) - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(load(folder)(z, y), expected, atol=1e-12, rtol=0)


def test_without_classes_it_is_called_with_z_alone(tmp_path: Path) -> None:
    told = {**MODULE, "latent": [LATENT], "arguments": {"classes": 0, "double": True}}
    folder = described(tmp_path, told)
    generator, (z, _) = load(folder), latents(2)
    torch.testing.assert_close(generator(z), (sine(folder, 0)(z) + 1) / 2)
    assert generator.classes == 0 and generators.class_names(str(folder)) == ()
    checked(generator, z)


def test_labels_have_no_gradient_and_it_says_so(tmp_path: Path) -> None:
    told = {**MODULE, **CONDITIONAL, "condition": "labels", "arguments": {"labels": True, "double": True}}
    generator, (z, y) = load(described(tmp_path, told)), latents()
    assert generator.differentiable == "its condition is labels, in which there is no gradient in y (vectors have one)"
    assert generator(z, y).equal(generator(z, y.argmax(1)))
    checked(lambda z: generator(z, y), z)
    for wrapped in (Permuted(generator, 0), Adapted(generator, Adapter((3, 4, 4), (1, 8, 8)))):
        assert wrapped.differentiable == generator.differentiable


def test_classes_are_called_by_number_or_as_listed(tmp_path: Path) -> None:
    folder = described(tmp_path, {**MODULE, **CONDITIONAL})
    assert generators.class_names(str(folder)) == ("0", "1", "2", "3")
    names = ["cat", "dog", "bird", "fish"]
    described(tmp_path, {**MODULE, **CONDITIONAL, "classes": names})
    assert generators.class_names(str(folder / "generator.json")) == tuple(names) and load(folder).classes == 4


DIMS: dict[str, Callable[[], Any]] = {
    "any": lambda: torch.export.Dim.DYNAMIC,
    "at most 4": lambda: torch.export.Dim("n", min=1, max=4),
    "at least 6": lambda: torch.export.Dim("n", min=6, max=64),
    "two": lambda: None,
}


@pytest.mark.parametrize("name", DIMS)
def test_an_exported_program_takes_any_number_of_rows(tmp_path: Path, name: str) -> None:
    folder = exported(
        tmp_path, sine(described(tmp_path, {**MODULE, **CONDITIONAL})), DIMS[name](), 7 if "6" in name else 2
    )
    generator = load(folder)
    for n in (1, 2, 5, 9):
        z, y = latents(n)
        torch.testing.assert_close(generator(z, y), (sine(folder)(z, y) + 1) / 2, atol=1e-12, rtol=0)
    assert generator.differentiable == "" and not generator.eval().training
    checked(generator, *latents(3))


def test_a_program_without_a_gradient_says_so(tmp_path: Path) -> None:
    generator, (z, y) = load(exported(tmp_path, Constant(), None)), latents()
    told = "its exported program gives no gradient in z or y (is it made under torch.no_grad?)"
    assert generator.differentiable == told and generator(z, y).shape == (5, 3, 4, 4)
    unconditional = load(exported(tmp_path, Constant(0), None, conditional=False))
    assert unconditional.differentiable == told.replace("z or y", "z")


def fitted(method: str, folder: Path, out: Path, **fields: Any) -> dict[str, Any]:
    result = single.fit(tiny.config(method, str(folder), steps=2, **fields), out, show=False)
    assert result["steps"] == 2 and math.isfinite(result["test"]["loss"])
    return result


@pytest.fixture(params=["module", "program"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same network in both ways."""
    module = described(tmp_path / "module", {**MODULE, **CONDITIONAL})
    if request.param == "module":
        return module
    return exported(tmp_path / "program", sine(module), torch.export.Dim.DYNAMIC)


def test_mpssl_trains_through_it_and_does_not_keep_it(folder: Path, tmp_path: Path) -> None:
    fitted("mpssl", folder, tmp_path / "run")
    assert all(math.isfinite(line["mapper/validation"]) for line in tiny.log(tmp_path / "run"))
    stored = tiny.checkpoint(tmp_path / "run")
    assert not any("after" in name for name in stored["method"]) and "generator" in str(stored["externals"])


def test_what_has_no_gradient_gives_unlabeled_images(tmp_path: Path) -> None:
    program = exported(tmp_path / "program", Constant(), None)
    fitted("fixmatch", program, tmp_path / "fixmatch", unlabeled="generator")
    labels = {**MODULE, **CONDITIONAL, "condition": "labels", "arguments": {"labels": True}}
    module = described(tmp_path / "module", labels)
    reads = tiny.config("supervised", data=f"generator:{module}", steps=2, labels_per_class=0)
    single.fit(reads, tmp_path / "source", show=False)
    fitted("pssl", module, tmp_path / "pssl")


def test_two_folders_may_have_files_of_the_same_name_beside_each_other(tmp_path: Path) -> None:
    network = "from helper import level\n" + textwrap.dedent(NETWORK).replace("torch.tanh(", "level * torch.tanh(")
    packaged = {**MODULE, **CONDITIONAL, "module": "parts.net:Network"}
    found = []
    for name, level in (("one", 1.0), ("other", 0.5)):
        folder = described(tmp_path / name, packaged, network)
        (folder / "parts").mkdir()
        (folder / "net.py").rename(folder / "parts" / "net.py")
        (folder / "helper.py").write_text(f"level = {level}")
        found.append(load(folder))
    one, other = (2 * generator(*latents()) - 1 for generator in found)
    torch.testing.assert_close(one / 2, other)
    assert not {"parts", "parts.net", "helper", "net"} & sys.modules.keys() and str(folder) not in sys.path
    inner = {**MODULE, **CONDITIONAL, "module": "parts/net.py:Network"}
    (folder / "generator.json").write_text(json.dumps(inner))
    (folder / "helper.py").rename(folder / "parts" / "helper.py")
    torch.testing.assert_close(2 * load(folder)(*latents()) - 1, other)


def test_a_module_that_is_loaded_already_stays(tmp_path: Path) -> None:
    before = sys.modules["textwrap"]
    folder = described(tmp_path, {**MODULE, **CONDITIONAL, "module": "textwrap.py:Network"})
    (folder / "net.py").rename(folder / "textwrap.py")
    load(folder)
    assert sys.modules["textwrap"] is before


CHANGES = """
    import random
    import numpy as np

    def change():
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)

    change()

    def made(fails=False):
        change()
        return 1 / 0 if fails else Network(double=True)
"""


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_the_process_as_it_was(fails: bool, tmp_path: Path) -> None:
    told = {"module": "net.py:made", "weights": "weights.safetensors", "range": [-1, 1], "arguments": {"fails": fails}}
    folder = described(tmp_path, {**told, **CONDITIONAL}, NETWORK + CHANGES)
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    with pytest.raises(UserError, match="ZeroDivisionError") if fails else contextlib.nullcontext():
        assert load(folder).differentiable == ""
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


def test_a_snapshot_of_the_hub_has_links_to_its_files(tmp_path: Path) -> None:
    plain = described(tmp_path / "plain", {**MODULE, **CONDITIONAL})
    folder = tmp_path / "snapshots" / "own"
    folder.mkdir(parents=True)
    for number, file in enumerate(path for path in plain.iterdir() if path.is_file()):
        (tmp_path / f"blob{number}").write_bytes(file.read_bytes())
        (folder / file.name).symlink_to(tmp_path / f"blob{number}")
    assert load(folder)(*latents()).equal(load(plain)(*latents()))
    outside = {**MODULE, **CONDITIONAL, "module": "../../plain/net.py:Network"}
    (folder / "generator.json").unlink()
    (folder / "generator.json").write_text(json.dumps(outside))
    with pytest.raises(UserError, match=r"is no 'file\.py:factory' or 'package\.file:factory' in .*own"):
        load(folder)


def test_a_file_with_dots_in_its_name_is_told(tmp_path: Path) -> None:
    folder = described(tmp_path, {**MODULE, **CONDITIONAL, "module": "net.v2.py:Network"})
    (folder / "net.py").rename(folder / "net.v2.py")
    with pytest.raises(UserError, match=r"net\.v2\.py has dots in its name, which Python cannot import: rename it"):
        load(folder)


def test_without_weights_it_is_the_same_each_time_and_draws_nothing(tmp_path: Path) -> None:
    told = {key: value for key, value in {**MODULE, **CONDITIONAL}.items() if key != "weights"}
    folder, state = described(tmp_path, told), torch.get_rng_state()
    one, other = load(folder), load(folder)
    assert one(*latents()).equal(other(*latents())) and torch.get_rng_state().equal(state)


def test_its_code_and_descriptor_tell_it_from_others_with_the_same_weights(tmp_path: Path) -> None:
    content = {**MODULE, **CONDITIONAL, "module": "parts.net:Network"}
    network = "from .helper import level\n" + textwrap.dedent(NETWORK).replace("torch.tanh(", "level * torch.tanh(")
    folder = described(tmp_path, content, network)
    (folder / "parts").mkdir()
    (folder / "net.py").rename(folder / "parts" / "net.py")

    def fingerprint(level: float, **change: Any) -> str:
        (folder / "parts" / "helper.py").write_text(f"level = {level}")
        (folder / "train.py").write_text(f"# which is not imported {level} {change}")
        (folder / "generator.json").write_text(json.dumps({**content, **change}))
        return External(load(folder)).fingerprint()

    assert fingerprint(1.0) == fingerprint(1.0, classes=["a", "b", "c", "d"])
    others = [fingerprint(0.5), fingerprint(1.0, range=[-2, 2]), fingerprint(1.0, arguments={"width": 6})]
    assert len({fingerprint(1.0), *others}) == 4


def test_programs_with_other_constants_are_others(tmp_path: Path) -> None:
    found = []
    for name, scale in (("one", 1.0), ("other", 0.5)):
        folder = exported(tmp_path / name, Scaled(scale), torch.export.Dim.DYNAMIC)
        found.append(External(load(folder)).fingerprint())
        assert External(load(folder)).fingerprint() == found[-1]
    assert found[0] != found[1]


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"wieghts": "w"}, r"unknown field in .*generator\.json: 'wieghts': did you mean 'weights'"),
    "type": ({"weights": 3}, r"'weights' in .*generator\.json is 3: it must be of type str"),
    "condition": ({"condition": "soft"}, r"'condition' in .* is 'soft': it must be of type Literal\['vectors'"),
    "no latent": ({"latent": None}, r"has no 'latent': say it, as in"),
    "no range": ({"range": None}, r"has no 'range'"),
    "latent": ({"latent": [3, 0]}, r"'latent' in .* is \[3, 0\]: give the sizes"),
    "empty latent": ({"latent": []}, r"'latent' in .* is \[\]"),
    "range": ({"range": [1, -1]}, r"'range' in .* is \[1, -1\]: give the least"),
    "endless range": ({"range": [-math.inf, math.inf]}, r"'range' in .* is \[-inf, inf\]: give the least"),
    "range of no number": ({"range": [0, math.nan]}, r"'range' in .* is \[0, nan\]: give the least"),
    "vast range": ({"range": [-1e308, 1e308]}, r"'range' in .*: give the least"),
    "range of three": ({"range": [0, 1, 2]}, r"'range' in "),
    "range of text": ({"range": ["0", "1"]}, r"'range' in "),
    "names": ({"classes": ["a", "a"]}, r"'classes' in .*: give how many, or a list of names, each once"),
    "no name": ({"classes": []}, r"'classes' in .*: give how many"),
    "negative": ({"classes": -1}, r"'classes' in .* is -1"),
    "without classes": ({"classes": 0}, r"'condition' in .* is vectors, with 0 classes"),
    "classes alone": ({"condition": "none"}, r"'condition' in .* is none, with 4 classes"),
    "neither": ({"module": None}, "must have either 'module' or 'program'"),
    "both": ({"program": "made.pt2"}, "must have either 'module' or 'program'"),
    "weights of a program": ({"module": None, "program": "made.pt2"}, "'program' has its weights in it .*no 'weights'"),
    "no program": ({"module": None, "weights": None, "program": "no.pt2"}, r"no\.pt2 does not exist"),
    "no factory": ({"module": "net.py"}, r"'net\.py' is no 'file\.py:factory' or 'package\.file:factory' in"),
    "no file": ({"module": "ent.py:Network"}, r"'ent\.py:Network' is no 'file\.py:factory'"),
    "elsewhere": ({"module": "../net.py:Network"}, r"'\.\./net\.py:Network' is no 'file\.py:factory'"),
    "another": ({"module": "torch.nn:Linear"}, r"'torch\.nn:Linear' is no 'file\.py:factory'"),
    "other name": ({"module": "net.py:Net"}, r"'net\.py:Net' fails \(AttributeError: .*Net.*\): mend it"),
    "argument": ({"arguments": {"depth": 3}}, r"fails \(TypeError: .*depth"),
    "no module": ({"module": "net.py:torch", "arguments": {}}, r"'net\.py:torch' fails \(TypeError"),
    "no weights": ({"weights": "no.safetensors"}, r"no\.safetensors does not exist"),
    "other weights": ({"arguments": {"width": 7}}, r"weights\.safetensors does not fit this network: .*size mismatch"),
    "other latent": (
        {"latent": [5]},
        r"z \(2, 5\) and y \(2, 4\), its network fails \(RuntimeError: .*: mend it; 'latent', ",
    ),
    "beyond": ({"range": [0, 1]}, r"gives values of which \d+% are outside \[0\.0, 1\.0\]: correct 'range'"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_descriptor_that_does_not_fit_is_explained(tmp_path: Path, name: str) -> None:
    change, told = FIELDS[name]
    (tmp_path / "net.py").write_text("")
    content = {key: value for key, value in {**MODULE, **CONDITIONAL, **change}.items() if value is not None}
    folder = described(tmp_path / "folder", content)
    with pytest.raises(UserError, match=told):
        generators.load(str(folder))


OUTPUTS: dict[str, tuple[str, str]] = {
    "flat": ("view(-1, 48)", r"its network gives \(2, 48\): it must give images \(n, c, h, w\) of 1 or 3 channels"),
    "channels": ("view(-1, 12, 2, 2)", r"gives \(2, 12, 2, 2\): it must give"),
    "rows": ("view(-1, 3, 4, 4)[:1]", r"gives \(1, 3, 4, 4\)"),
    "no tensor": ("tolist()", "gives list: it must give"),
    "not finite": ("view(-1, 3, 4, 4) / 0", "gives numbers that are not finite: are these its weights"),
    "noise": ("view(-1, 3, 4, 4) * torch.rand(1)", "other images each time: they must follow from z and y, so fix"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_network_that_makes_no_images_is_explained(tmp_path: Path, name: str) -> None:
    output, told = OUTPUTS[name]
    folder = described(tmp_path, {**MODULE, **CONDITIONAL}, NETWORK.replace("view(-1, 3, 4, 4)", output))
    with pytest.raises(UserError, match=told):
        generators.load(str(folder))


NORM = "nn.BatchNorm2d(3, affine=False{})"
CALLS: dict[str, tuple[str, str]] = {
    "statistics": (NORM.format(", track_running_stats=False"), "gives another image alone than beside others"),
    "training": (NORM.format(""), "changes its parameters or buffers: it must be constant, so leave it in eval mode"),
    "import": ("__import__('beside').Identity()", r"imports when it is called \(No module .*import at the top of the"),
    "error": ("[][3]", r"fails \(IndexError: list index out of range\): mend it; 'latent'"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_network_that_is_no_function_of_each_row_is_explained(tmp_path: Path, name: str) -> None:
    layer, told = CALLS[name]
    kept = "\n            self.norm = " + layer if name in ("statistics", "training") else ""
    used = {"statistics": "self.norm(x)", "training": "x + 0 * self.norm.train()(x)"}.get(name, f"{layer}(x)")
    network = NETWORK.replace("super().__init__()", "super().__init__()" + kept)
    network = network.replace("return torch.tanh(", "x = torch.tanh(") + f"            return {used}\n"
    folder = described(tmp_path, {**MODULE, **CONDITIONAL, "range": [-3, 3]}, network)
    (folder / "beside.py").write_text("from torch.nn import Identity")
    if kept and name == "training":
        state = generators.own.read_foreign(folder / "weights.safetensors")
        state |= {f"norm.{key}": value for key, value in nn.BatchNorm2d(3, affine=False).state_dict().items()}
        save_file(state, folder / "weights.safetensors")
    with pytest.raises(UserError, match=told):
        generators.load(str(folder))


def test_a_rounded_image_has_no_gradient(tmp_path: Path) -> None:
    rounded = NETWORK.replace("view(-1, 3, 4, 4)", "view(-1, 3, 4, 4).round()")
    generator = load(described(tmp_path, {**MODULE, **CONDITIONAL}, rounded))
    assert generator.differentiable.startswith("its network gives no gradient in z or y")


class Runs:
    """What would run code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('was run')",)


def test_pickles_of_tensors_are_read_and_others_are_refused(tmp_path: Path) -> None:
    folder = described(tmp_path, {**MODULE, **CONDITIONAL, "weights": "weights.pt"})
    path = folder / "weights.pt"
    torch.save(sine(folder).state_dict(), path)
    torch.testing.assert_close(load(folder)(*latents()), (sine(folder)(*latents()) + 1) / 2, atol=1e-6, rtol=0)
    for content, told in (
        ({"before.weight": Runs()}, "Python objects that could run any code .*: not read. Convert it by save_file"),
        (sine(folder), "Python objects that could run any code"),
        ({"model": sine(folder).state_dict()}, "must hold a state_dict, tensors under their names alone"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=rf"weights\.pt .*{told}"):
            generators.load(str(folder))
    for content in (b"", b"text", pickle.dumps(Runs()), path.read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights\.pt is (damaged|no file of torch)"):
            generators.load(str(folder))


@pytest.mark.parametrize("name", ["data/sample_inputs/model.pt", "data/constants/opaque_obj_0", "flagged"])
def test_a_program_with_python_objects_is_refused(tmp_path: Path, name: str) -> None:
    folder = exported(tmp_path, Sine(), None)
    with zipfile.ZipFile(folder / "made.pt2") as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    held = io.BytesIO()
    torch.save((Runs(),), held)
    if name == "flagged":
        config = next(entry for entry in parts if entry.endswith("weights_config.json"))
        parts[config] = parts[config].replace(b'"use_pickle": false', b'"use_pickle": true')
    else:
        parts[f"made/{name}"] = held.getvalue()
    with zipfile.ZipFile(folder / "made.pt2", "w") as archive:
        for entry, content in parts.items():
            archive.writestr(entry, content)
    with pytest.raises(UserError, match=r"made\.pt2 has Python objects in it \(\w+(\.pt)?\), which could run any code"):
        generators.load(str(folder))


@pytest.mark.parametrize("content", [b"", b"text"])
def test_a_damaged_program_is_named(tmp_path: Path, content: bytes) -> None:
    folder = exported(tmp_path, Sine(), None)
    (folder / "made.pt2").write_bytes(content)
    with pytest.raises(UserError, match=r"made\.pt2 cannot be read as a program of torch\.export"):
        generators.load(str(folder))


def test_a_path_that_is_nothing_is_told_what_a_generator_may_be(tmp_path: Path) -> None:
    for name in ("none.json", "none", "net.py", "model.safetensors"):
        path = tmp_path / name
        with pytest.raises(
            UserError, match=rf"generator {path}: there is no such path\. .* or one with generator\.json"
        ):
            generators.load(path)
        if path.suffix in (".py", ".safetensors"):
            path.touch()
            with pytest.raises(
                UserError, match=rf"generator {path}: a file is no generator\. A generator is one of gly"
            ):
                generators.load(path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"edm, a folder of diffusers \(hub:OWNER/NAME .* or of a BigGAN, or one with generator\.json"
    ):
        generators.load(str(tmp_path))
