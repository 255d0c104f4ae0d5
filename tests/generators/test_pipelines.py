"""Folders of diffusers as generators: the library's own images, gradients, memory, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import autoencoders
import folders
import pytest
import tiny
import torch
from torch import Tensor

from semisynth import generators
from semisynth.errors import UserError
from semisynth.generators import Options, pipelines
from semisynth.generators.sampler import Sampled
from semisynth.method import External
from semisynth.recipes import single

diffusers = pytest.importorskip("diffusers")
CLOSE = {"atol": 1e-9, "rtol": 1e-9}

MADE: dict[str, Callable[[Path], str]] = {
    "ddim": folders.images,
    "ddpm of classes": partial(folders.images, name="DDPMPipeline", classes=3, channels=3),
    "consistency": partial(folders.images, name="ConsistencyModelPipeline", classes=3),
    "latents": partial(folders.images, name="LDMPipeline", channels=2),
    "dit": folders.dit,
    "text": folders.text,
    "text, guidance told": partial(
        folders.text, name="LatentConsistencyModelPipeline", scheduler="LCMScheduler", beta_end=0.005, steps_offset=1
    ),
}
GUIDED = ("dit", "text", "text, guidance told")
each_kind = pytest.mark.parametrize("kind", MADE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of each kind, which is made once."""
    made: dict[str, str] = {}

    def of(kind: str) -> str:
        if kind.startswith("text"):
            pytest.importorskip("transformers")
        if kind not in made:
            made[kind] = MADE[kind](tmp_path_factory.mktemp("made") / "folder")
        return made[kind]

    return of


def options(kind: str, **given: Any) -> Options:
    """With prompts where it reads them, guidance where it can, and steps where there are any."""
    if kind == "consistency":
        given.pop("sampler_steps", None)
    return Options(**{"guidance": 2.5 if kind in GUIDED else 1.0, "prompts": prompts(kind), **given})


def prompts(kind: str) -> str | None:
    return written(*folders.PROMPTS) if kind.startswith("text") else None


def written(*texts: str) -> str:
    """A file with these prompts."""
    file = Path(tempfile.mkdtemp()) / "prompts.txt"
    file.write_text("\n".join(texts) + "\n\n", encoding="utf-8")
    return str(file)


def asked(generator: generators.Generator, n: int = 3) -> tuple[Tensor, Tensor | None]:
    z = torch.randn(n, *generator.latent_shape, generator=torch.Generator().manual_seed(1))
    return z, torch.arange(n) % generator.classes if generator.classes else None


def soft(generator: generators.Generator, n: int) -> Tensor | None:
    if not generator.classes:
        return None
    return torch.rand(n, generator.classes, generator=torch.Generator().manual_seed(2)).softmax(1)


@each_kind
def test_images_are_in_the_unit_interval_and_the_same_each_time(kind: str, place: Callable[[str], str]) -> None:
    one, other = (generators.load(place(kind), options(kind)) for _ in range(2))
    z, y = asked(one)
    images = one(z, y)
    assert images.equal(one(z, y)) and images.equal(other(z, y)) and not images.equal(one(-z, y))
    assert images.shape[1:] == generators.shape(one) and 0 <= images.min() < images.max() <= 1
    assert not one.training and not any(value.requires_grad for value in one.parameters())
    assert External(one).fingerprint() == External(other).fingerprint()
    names = generators.class_names(place(kind), options(kind))
    assert len(names) == one.classes
    if y is not None:
        assert not torch.allclose(images, one(z, (y + 1) % one.classes), atol=1e-3)
        torch.testing.assert_close(one(z, torch.eye(one.classes)[y]), images)


def test_classes_have_the_names_that_the_folder_tells(place: Callable[[str], str]) -> None:
    assert generators.class_names(place("dit")) == tuple(f"thing {i}" for i in range(5))
    assert generators.class_names(place("ddpm of classes")) == ("0", "1", "2")
    assert generators.class_names(place("text"), options("text")) == folders.PROMPTS


def library(place: str, name: str, monkeypatch: pytest.MonkeyPatch, z: Tensor) -> Any:
    """The library's own pipeline of a folder, whose noise is z."""
    pipeline = getattr(diffusers, name).from_pretrained(place, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(torch.float64)
    module = sys.modules[type(pipeline).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **options: z)
    return pipeline


@pytest.mark.parametrize("told", [{}, {"prediction_type": "v_prediction"}, {"timestep_spacing": "trailing"}])
def test_ddim_makes_the_images_of_the_library(
    told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folders.images(tmp_path / "folder", **{"clip_sample": True, "beta_end": 0.02, **told})
    generator = generators.load(place, Options(sampler_steps=7)).double()
    z = asked(generator)[0].double()
    theirs = library(place, "DDIMPipeline", monkeypatch, z)(
        batch_size=3, num_inference_steps=7, output_type="np"
    ).images
    torch.testing.assert_close(generator(z), torch.from_numpy(theirs).permute(0, 3, 1, 2), **CLOSE)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_dit_makes_the_images_of_the_library(
    guidance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes class 1000 for none."""
    place = folders.dit(tmp_path / "folder", 1000)
    generator = generators.load(place, Options(sampler_steps=5, guidance=guidance)).double()
    z = asked(generator)[0].double()
    pipeline = library(place, "DiTPipeline", monkeypatch, z)
    theirs = pipeline([7, 300, 999], guidance_scale=guidance, num_inference_steps=5, output_type="pt").images
    torch.testing.assert_close(generator(z, torch.tensor([7, 300, 999])), theirs, **CLOSE)


def test_a_consistency_model_makes_the_images_of_the_library(
    place: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = generators.load(place("consistency")).double()
    z, y = asked(generator)
    z = z.double()
    pipeline = library(place("consistency"), "ConsistencyModelPipeline", monkeypatch, z)
    monkeypatch.setattr(pipeline, "check_inputs", lambda *arguments: None)  # it wants three channels
    theirs = pipeline(3, y, output_type="pt").images
    torch.testing.assert_close(generator(z, y), theirs, atol=1e-6, rtol=1e-6)  # its scalings are of float32


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["text", "text, guidance told"])
def test_a_text_to_image_model_makes_the_images_of_the_library(
    kind: str, guidance: float, place: Callable[[str], str]
) -> None:
    generator = generators.load(place(kind), options(kind, sampler_steps=5, guidance=guidance)).double()
    z, y = asked(generator)
    z = z.double()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        place(kind), local_files_only=True, low_cpu_mem_usage=False, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(torch.float64)
    told = {} if kind == "text" else {"timestep_spacing": "trailing", "clip_sample": False}
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(dict(pipeline.scheduler.config) | told)
    size = {"height": folders.SIDE, "width": folders.SIDE, "output_type": "pt"}
    texts = list(folders.PROMPTS)
    theirs = pipeline(texts, latents=z, guidance_scale=guidance, num_inference_steps=5, **size).images
    torch.testing.assert_close(generator(z, y), theirs, atol=1e-5, rtol=0)  # ours encodes in float32


def slopes_agree(generator: generators.Generator, z: Tensor, y: Tensor | None) -> None:
    """The gradients in z and y are those of central finite differences, along a few directions."""
    weights = torch.randn(len(z), *generators.shape(generator), dtype=z.dtype)
    inputs = [value.requires_grad_() for value in (z, y) if value is not None]
    slopes = torch.autograd.grad((generator(z, y) * weights).sum(), inputs)
    assert all(slope.abs().max() > 1e-6 for slope in slopes)
    for number, (value, slope) in enumerate(zip(inputs, slopes, strict=True)):
        way = torch.randn_like(value)
        ends = []
        for sign in (1, -1):
            moved = [other.detach() for other in inputs]
            moved[number] = moved[number] + sign * 1e-5 * way
            with torch.no_grad():
                ends.append((generator(*moved) * weights).sum().item())
        assert (slope * way).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)


@each_kind
def test_gradients_in_the_latent_and_the_class_are_those_of_finite_differences(
    kind: str, place: Callable[[str], str]
) -> None:
    generator = generators.load(place(kind), options(kind)).double()
    z, y = asked(generator, 2)[0].double(), soft(generator, 2)
    slopes_agree(generator, z, None if y is None else y.double())


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction", "sample"])
def test_so_they_are_whatever_the_network_predicts(predicted: str, tmp_path: Path) -> None:
    place = folders.images(tmp_path / "folder", prediction_type=predicted)
    generator = generators.load(place, Options(sampler_steps=3)).double()
    slopes_agree(generator, asked(generator, 2)[0].double(), None)


def kept(generator: Sampled) -> int:
    """How many numbers a gradient through two images keeps."""
    z, y = asked(generator, 2)
    y = None if y is None else torch.eye(generator.classes)[y].requires_grad_()
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        generator(z.requires_grad_(), y)
    return sum(size for size in sizes if size > 1)


@pytest.mark.parametrize("kind", ["ddim", "ddpm of classes", "dit", "text"])
def test_of_a_step_and_of_the_decoding_only_what_they_begin_with_is_kept(
    kind: str, place: Callable[[str], str]
) -> None:
    """The same few numbers for each step: the image, and the condition, which is one tensor for all of them."""
    for steps in (1, 4, 16):
        generator = generators.load(place(kind), options(kind, sampler_steps=steps))
        assert isinstance(generator, Sampled)
        latent, table = 2 * math.prod(generator.latent_shape), generator.table
        condition, mixing = (0, 0) if table is None else (2 * table[0].numel(), table.numel())
        assert kept(generator) == steps * (latent + condition) + latent + mixing


@each_kind
def test_in_chunks_images_and_gradients_are_the_same_and_fewer_are_made_at_a_time(
    kind: str, place: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, most = [], []
    for chunk in (0, 2):
        generator = generators.load(place(kind), options(kind, chunk=chunk)).double()
        z, y = asked(generator, 5)[0].double().requires_grad_(), soft(generator, 5)
        generator.predictor.network.register_forward_pre_hook(lambda module, inputs: most.append(len(inputs[0])))
        images = generator(z, None if y is None else y.double())
        found.append((images, torch.autograd.grad(images.square().sum(), z)[0]))
        most[:] = [max(most)]
    torch.testing.assert_close(found[0], found[1], atol=1e-9, rtol=1e-9)
    assert max(most) == (10 if kind in ("dit", "text") else 5)


@pytest.mark.parametrize("kind", ["ddpm of classes", "dit", "text"])
@pytest.mark.parametrize("precision", ["bf16", "float16"])
def test_weights_of_fewer_bits_take_and_give_float32(kind: str, precision: Any, place: Callable[[str], str]) -> None:
    wide, narrow = (generators.load(place(kind), options(kind, precision=of)) for of in ("float32", precision))
    dtype = {"bf16": torch.bfloat16, "float16": torch.float16}[precision]
    assert {value.dtype for value in narrow.predictor.network.parameters()} == {dtype}
    expected = torch.float32 if precision == "float16" else dtype  # in which an autoencoder may overflow
    assert {value.dtype for value in narrow.decoder.parameters()} <= {expected}
    z, y = asked(wide)
    images = narrow(z.requires_grad_(), y)
    assert images.dtype == torch.float32 and not images.equal(wide(z, y))
    torch.testing.assert_close(images, wide(z, y), atol=0.1, rtol=0)
    assert torch.autograd.grad(images.sum(), z)[0].abs().max() > 0


@pytest.mark.parametrize("kind", ["ddpm of classes", "dit", "text"])
def test_offloaded_weights_stay_where_they_are_and_are_copied_for_a_call(
    kind: str, place: Callable[[str], str]
) -> None:
    plain, offloaded = (generators.load(place(kind), options(kind, offload=offload)) for offload in (False, True))
    z, y = asked(plain)
    assert plain(z, y).equal(offloaded(z, y)) and External(plain).fingerprint() == External(offloaded).fingerprint()
    moved = External(offloaded).to("meta")  # a device on which nothing is computed
    assert {value.device.type for value in offloaded.parameters()} == {"cpu"}
    with torch.no_grad():
        images = moved(z.to("meta"), None if y is None else y.to("meta"))
    assert images.device.type == "meta" and images.shape == plain(z, y).shape


@pytest.mark.parametrize("on_the_way_back", [False, True])
def test_what_does_not_fit_into_memory_names_the_options_that_help(
    on_the_way_back: bool, place: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = generators.load(place("dit"))
    z, y = asked(generator)
    images = generator(z.requires_grad_(), y) if on_the_way_back else None

    def full(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(generator.predictor.network, "forward", full)
    with pytest.raises(
        UserError, match=r"--generator-options.chunk.*--generator-options.precision.*--generator-options.sampler_steps"
    ):
        generator(z, y) if images is None else images.sum().backward()


@each_kind
def test_mpssl_trains_with_it(kind: str, place: Callable[[str], str], tmp_path: Path) -> None:
    run, asked_for = tmp_path / "run", asdict(options(kind, sampler_steps=2))
    fields = {"steps": 2, "unlabeled_batch": 4, "generator_options": asked_for}
    single.fit(tiny.config("mpssl", place(kind), **fields), run, show=False)
    first, last = tiny.log(run)
    assert first["mapper/gap_gradient"] > 0 and first["mapper/validation_gradient"] > 0
    assert last["mapper/validation"] != first["mapper/validation"]
    kept = tiny.checkpoint(run)
    assert kept["externals"] == {"generator": kept["externals"]["generator"]}
    assert not [name for name in kept["method"] if name.startswith("generator")]
    assert kept["method"]["mapper.out.weight"].abs().max() > 0  # where it starts at zero


def edited(place: str, into: Path, file: str, **told: Any) -> Path:
    """A copy of a folder in one of whose JSON files something else is told."""
    shutil.copytree(place, into)
    content = json.loads((into / file).read_text()) | told
    (into / file).write_text(json.dumps(content))
    return into


def test_a_folder_that_computes_otherwise_with_the_same_weights_is_another(
    place: Callable[[str], str], tmp_path: Path
) -> None:
    def fingerprint(folder: Path | str, **asked: Any) -> str:
        return External(generators.Permuted(generators.load(str(folder), options("dit", **asked)), 0)).fingerprint()

    schedule, network = "scheduler/scheduler_config.json", "transformer/config.json"
    same = [fingerprint(place("dit"))]
    same.append(fingerprint(edited(place("dit"), tmp_path / "version", schedule, _diffusers_version="0.1.0")))
    same.append(fingerprint(edited(place("dit"), tmp_path / "names", "model_index.json", id2label={"0": "cat"})))
    same += [fingerprint(place("dit"), offload=True), fingerprint(place("dit"), chunk=2)]
    others = [fingerprint(edited(place("dit"), tmp_path / "schedule", schedule, beta_end=0.01))]
    others.append(fingerprint(edited(place("dit"), tmp_path / "class", schedule, _class_name="LCMScheduler")))
    others.append(fingerprint(edited(place("dit"), tmp_path / "network", network, norm_eps=0.1)))
    others += [fingerprint(place("dit"), sampler_steps=3), fingerprint(place("dit"), guidance=2.0)]
    assert len({*same}) == 1 and len({*same, *others}) == 6


def test_an_unknown_pipeline_is_named_with_those_that_are_known(place: Callable[[str], str], tmp_path: Path) -> None:
    other = edited(place("dit"), tmp_path / "other", "model_index.json", _class_name="FluxPipeline")
    told = r"other/model_index\.json: the pipeline FluxPipeline is not supported.* DDIMPipeline, .*StableDiffusionPip"
    with pytest.raises(UserError, match=told):
        generators.load(str(other))
    (other / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        generators.load(str(other))


@pytest.mark.parametrize(
    "kind, file, told, message",
    [
        ("dit", "transformer/config.json", {"num_layers": 3}, "transformer: config.json is not that of its weights"),
        ("dit", "transformer/config.json", {"num_layers": 1}, "transformer: config.json is not that of its weights"),
        ("dit", "transformer/config.json", {"attention_head_dim": 8}, "transformer cannot be read: .*whole folder"),
        ("dit", "vae/config.json", {"_class_name": "VQModel"}, "VQModel, whose rounded latents have no gradient"),
        ("dit", "vae/config.json", {"_class_name": "AutoencoderTiny"}, "of kind AutoencoderTiny: give"),
        ("dit", "scheduler/scheduler_config.json", {"prediction_type": "flow"}, "predicting flow, has no schedule"),
        ("dit", "scheduler/scheduler_config.json", {"beta_schedule": "cubic"}, "cannot be followed in 4 steps: cubic"),
        ("dit", "scheduler/scheduler_config.json", {"num_train_timesteps": 3}, "cannot be followed in 4 steps"),
        ("ddim", "unet/config.json", {"sample_size": None}, "config.json is None: give the side"),
        ("ddim", "unet/config.json", {"class_embed_type": "timestep"}, "unet"),
    ],
)
def test_a_folder_whose_files_do_not_fit_is_told(
    kind: str, file: str, told: dict[str, Any], message: str, place: Callable[[str], str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        generators.load(str(edited(place(kind), tmp_path / "folder", file, **told)))


@pytest.mark.parametrize(
    "sizes, told",
    [
        ({"hidden_size": 16}, "reads texts of width 8, text_encoder gives 16"),
        ({"vocab_size": 10}, "the tokenizer has a token 13, text_encoder reads 10"),
    ],
)
def test_a_text_encoder_of_another_network_is_told(
    sizes: dict[str, int], told: str, place: Callable[[str], str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = Path(shutil.copytree(place("text"), tmp_path / "other"))
    config = transformers.CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.update(sizes)
    shutil.rmtree(folder / "text_encoder")
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(UserError, match=f"{told}: restore the folder"):
        generators.load(str(folder), options("text"))


@pytest.mark.parametrize("size", ["big", [8], [8, 8, 8], 0, 8.5, None])
def test_a_size_that_is_none_is_told(size: Any, place: Callable[[str], str], tmp_path: Path) -> None:
    folder = edited(place("ddpm of classes"), tmp_path / "other", "unet/config.json", sample_size=size)
    with pytest.raises(UserError, match=r"sample_size in the network's config\.json is .*: give the side"):
        generators.load(str(folder))


def test_names_of_classes_in_another_form_are_told(place: Callable[[str], str], tmp_path: Path) -> None:
    folder = edited(place("dit"), tmp_path / "other", "model_index.json", id2label=["cat", "dog"])
    with pytest.raises(UserError, match=r"id2label in .*model_index\.json is \['cat', 'dog'\]: it must be of the form"):
        generators.class_names(str(folder))


def test_a_size_that_a_network_cannot_halve_is_told_before_anything_is_written(
    place: Callable[[str], str], tmp_path: Path
) -> None:
    folder = edited(place("ddpm of classes"), tmp_path / "other", "unet/config.json", sample_size=9)
    for recipe in ("mpssl", "fixmatch"):
        fields = {"unlabeled": "generator"} if recipe == "fixmatch" else {}
        with pytest.raises(UserError, match=r"generator .*other makes no image \(RuntimeError: .*its parts are of one"):
            single.fit(tiny.config(recipe, str(folder), **fields), tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_of_other_latents_is_told(place: Callable[[str], str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place("dit"), tmp_path / "folder"))
    autoencoders.saved(folder / "vae", latent_channels=3)
    with pytest.raises(UserError, match=r"vae decodes latents \(3, 4, 4\), the network makes \(2, 4, 4\)"):
        generators.load(str(folder))


@pytest.mark.parametrize("kind", ["dit", "text"])
def test_a_folder_with_files_missing_or_damaged_is_told(kind: str, place: Callable[[str], str], tmp_path: Path) -> None:
    whole = place(kind)
    files = [path.relative_to(whole) for path in Path(whole).rglob("*") if path.is_file()]
    for number, file in enumerate(files):
        if file.name in ("model_index.json", "special_tokens_map.json", "tokenizer_config.json"):
            continue
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        (folder / file).unlink()
        for damaged in (False, True):
            if damaged:
                (folder / file).write_bytes((Path(whole) / file).read_bytes()[:40])
            try:
                generators.load(str(folder), options(kind))
            except UserError as error:
                assert str(folder) in str(error), file
            else:
                pytest.fail(f"{file} was not missed, damaged {damaged}")


class Payload:
    """What an attacker pickles: it runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_pickled_weights_are_read_as_tensors_or_not_at_all(
    part: str, place: Callable[[str], str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    kind = "text" if part == "text_encoder" else "dit"
    folder = Path(shutil.copytree(place(kind), tmp_path / "folder"))
    (safe,) = (folder / part).glob("*.safetensors")
    pickled = safe.with_name(safe.name.replace("model.safetensors", "model.bin")).with_suffix(".bin")
    pickled = pickled.with_name("pytorch_model.bin") if part == "text_encoder" else pickled
    torch.save(load_file(safe), pickled)
    safe.unlink()
    (z, y), expected = asked(whole := generators.load(place(kind), options(kind))), None
    expected = whole(z, y)
    assert generators.load(str(folder), options(kind))(z, y).equal(expected)
    for content in (Payload(), {"weight": Payload()}):
        torch.save(content, pickled)
        with pytest.raises(UserError, match=f"{part} cannot be read.* convert its weights"):
            generators.load(str(folder), options(kind))
        pickled.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=f"{part} cannot be read.* convert its weights"):
            generators.load(str(folder), options(kind))


def test_options_that_a_folder_cannot_follow_are_refused(place: Callable[[str], str]) -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("dit", {"sampler_steps": 0}, "sampler_steps is 0"),
        ("dit", {"guidance": -1.0}, "guidance is -1"),
        ("dit", {"chunk": -1}, "chunk is -1"),
        ("dit", {"truncation": 0.5}, "does not know --generator-options.truncation"),
        ("dit", {"prompts": "prompts.txt"}, "does not know --generator-options.prompts"),
        ("ddim", {"guidance": 2.0}, "does not know --generator-options.guidance"),
        ("ddpm of classes", {"guidance": 2.0}, "does not know --generator-options.guidance"),
        ("latents", {"prompts": "prompts.txt"}, "does not know --generator-options.prompts"),
        ("consistency", {"guidance": 2.0}, "does not know --generator-options.guidance"),
        ("consistency", {"sampler_steps": 2}, "does not know --generator-options.sampler_steps"),
    ]
    for kind, given, message in wrong:
        with pytest.raises(UserError, match=message):
            generators.load(place(kind), Options(**given))


def test_the_published_form_of_a_tokenizer_will_do(place: Callable[[str], str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place("text"), tmp_path / "folder"))
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    for name in ("vocab.json", "merges.txt"):
        with pytest.raises(UserError, match=r"tokenizer has no vocabulary \(tokenizer.json or vocab.json and merges"):
            generators.load(str(folder), options("text"))
        shutil.copy(Path(place("text")).parent / "tokens" / name, folder / "tokenizer")
    one, other = (generators.load(str(source), options("text")) for source in (place("text"), folder))
    assert one(*asked(one)).equal(other(*asked(one)))


def test_prompts_are_asked_for_and_must_be_short_enough(place: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"makes images of texts: .*--generator-options.prompts"):
        generators.load(place("text"))
    with pytest.raises(UserError, match="'a bed a bed a bed' has 11 tokens, the text encoder reads 8"):
        generators.load(place("text"), Options(prompts=written("a", "a bed a bed a bed")))


def test_noise_alone_of_which_noise_is_predicted_is_refused(place: Callable[[str], str], tmp_path: Path) -> None:
    told = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = edited(place("dit"), tmp_path / "epsilon", "scheduler/scheduler_config.json", **told)
    with pytest.raises(UserError, match=r"begins with noise alone.*give a folder whose network predicts v_prediction"):
        generators.load(str(folder))
    told |= {"prediction_type": "v_prediction"}
    generator = generators.load(str(edited(place("dit"), tmp_path / "v", "scheduler/scheduler_config.json", **told)))
    assert generator(*asked(generator)).isfinite().all()


def test_a_schedule_is_begun_where_there_is_noise(tmp_path: Path) -> None:
    place = folders.images(tmp_path / "folder")
    assert generators.load(place, Options(sampler_steps=1)).schedule.times == (999,)
    assert generators.load(place, Options(sampler_steps=2)).schedule.times == (500, 0)


def test_latents_are_not_cut_off_at_the_range_of_images(place: Callable[[str], str], tmp_path: Path) -> None:
    """Where the folder's own scheduler has no such option, as many have not."""
    other = tmp_path / "folder"
    shutil.copytree(place("dit"), other)
    diffusers.EulerDiscreteScheduler(beta_end=0.002, timestep_spacing="leading").save_pretrained(other / "scheduler")
    one, euler = generators.load(place("dit")), generators.load(str(other))
    assert one(*asked(one)).equal(euler(*asked(one)))


def test_the_hub_is_asked_only_where_it_is_named(place: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = []

    def download(name: str, **given: object) -> str:
        asked_for.append((name, given))
        return place("dit")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    here = generators.load(place("dit"))
    with pytest.raises(UserError, match=r"generator owner/name: there is no such path\. .*hub:OWNER/NAME to fetch it"):
        generators.load("owner/name")
    assert not asked_for
    assert generators.load("hub:owner/name")(*asked(here)).equal(here(*asked(here)))
    assert generators.class_names("hub:owner/name") == generators.class_names(place("dit"))
    assert asked_for == [("owner/name", {"safety_checker": None})] * 2


def test_of_what_the_hub_gives_no_code_is_run(
    place: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(place("dit"), tmp_path / "folder"))
    (folder / "net.py").write_text("raise SystemExit('code was run')")
    (folder / "generator.json").write_text('{"module": "net.py:Net", "latent": [1], "range": [0, 1]}')
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda name, **given: str(folder))
    here = generators.load(place("dit"))
    assert generators.load("hub:owner/name")(*asked(here)).equal(here(*asked(here)))
    assert generators.class_names("hub:owner/name") == generators.class_names(place("dit"))
    (folder / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"model_index\.json is missing"):
        generators.load("hub:owner/name")


@pytest.mark.parametrize("file", ["v1-5-pruned.ckpt", "tf_model.h5", "saved_model.pb"])
def test_a_folder_of_diffusers_may_hold_more(file: str, place: Callable[[str], str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place("dit"), tmp_path / "folder"))
    (folder / file).write_bytes(b"")
    assert generators.class_names(folder) == generators.class_names(place("dit"))
    assert isinstance(generators.load(folder), Sampled)


def test_classes_of_one_name_are_told_apart_by_their_numbers(place: Callable[[str], str], tmp_path: Path) -> None:
    given = {str(i): name for i, name in enumerate(["crane", "tench, Tinca", "crane", "", "hen"])}
    folder = edited(place("dit"), tmp_path / "folder", "model_index.json", id2label=given)
    assert generators.class_names(str(folder)) == ("crane (0)", "tench, Tinca", "crane (2)", "(3)", "hen")


def test_a_name_of_the_hub_without_a_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("hub:owner/name", "hub:name/"):
        with pytest.raises(
            UserError, match=f"generator {name} cannot be fetched: .* Give hub:OWNER/NAME and a network"
        ):
            generators.load(name)


def test_missing_libraries_are_named(place: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place("dit")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "diffusers", None)
        with pytest.raises(UserError, match=r"a diffusers folder needs .* pip install 'semisynth\[diffusers\]'"):
            generators.load(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"a text-to-image model needs .* pip install 'semisynth\[transformers\]'"):
        pipelines._encoded(Path(folder), ["a"])


def test_a_file_of_prompts_is_read_or_told_of(tmp_path: Path) -> None:
    assert Options(prompts=written("a dog", " a cat ")).texts() == {"a dog": "a dog", "a cat": "a cat"}
    assert Options().texts() == {}
    for texts, message in ((("a", "a"), "has one prompt twice"), ((), "has no prompt")):
        with pytest.raises(UserError, match=message):
            Options(prompts=written(*texts)).texts()
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        Options(prompts=str(tmp_path / "none.txt")).texts()
