"""Recipes take a generator of any kind, with the options that it knows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from pyarrow import parquet as arrow

from semisynth import generators, weights
from semisynth.cli import main
from semisynth.data import datasets, parquet
from semisynth.errors import UserError
from semisynth.generators import Options
from semisynth.generators.diffusion import Diffusion, denoiser_of
from semisynth.recipes import single
from semisynth.recipes.dpt import DPT, dpt
from semisynth.recipes.mix import Mix, mix

SMALL: dict[str, Any] = {"data": "digits-pool", "labels_per_class": 2, "steps": 2, "images_per_class": 2}
NETWORK = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(7, 48)

    def forward(self, z, y):
        y = nn.functional.one_hot(y, 4).float()
        return self.layer(torch.cat([z, y], 1)).sigmoid().view(-1, 3, 4, 4)
"""


def biggan(folder: Path) -> str:
    package = pytest.importorskip("pytorch_pretrained_biggan")
    layers = [[False, 16, 16], [True, 16, 8], [False, 8, 4], [True, 4, 2], [False, 2, 1]]
    sizes = {"channel_width": 4, "layers": layers, "attention_layer_position": 3, "z_dim": 5, "num_classes": 3}
    config = package.BigGANConfig(**sizes, n_stats=5, class_embed_dim=5, output_dim=16)
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json_string())
    state = package.BigGAN(config).state_dict()
    undefined = ("running_means", "running_vars", "generator.bn.weight", "generator.bn.bias", "gamma")
    state |= {name: torch.rand(value.shape) + 0.5 for name, value in state.items() if name.endswith(undefined)}
    state = {name.replace("weight_orig", "weight"): value for name, value in state.items() if name[-2:] not in "_u_v"}
    torch.save(state, folder / "pytorch_model.bin")
    return str(folder)


def own(folder: Path) -> str:
    """Told labels, and so without a gradient in the class."""
    folder.mkdir()
    (folder / "net.py").write_text(NETWORK)
    told = {"module": "net.py:Network", "latent": [3], "classes": 4, "condition": "labels", "range": [0, 1]}
    (folder / "generator.json").write_text(json.dumps(told))
    return str(folder)


def diffusers(make: Callable[[Path], str]) -> Callable[[Path], str]:
    def made(folder: Path) -> str:
        pytest.importorskip("diffusers")
        pytest.importorskip("transformers")
        return make(folder)

    return made


KINDS = {
    "images": diffusers(folders.images),
    "dit": diffusers(folders.dit),
    "text": diffusers(folders.text),
    "biggan": biggan,
    "own": own,
    "shipped": lambda folder: "letters",
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def made(kind: str, tmp_path: Path) -> tuple[str, Options]:
    """A generator of each kind, and how it is asked."""
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(dict(zip("abc", folders.PROMPTS, strict=True))))
    asked = {"text": {"prompts": str(prompts), "sampler_steps": 2}, "dit": {"chunk": 3}, "biggan": {"truncation": 0.5}}
    return KINDS[kind](tmp_path / "made"), Options(**asked.get(kind, {}))


@each_kind
def test_a_mix_and_dpt_take_any(kind: str, made: tuple[str, Options], tmp_path: Path) -> None:
    place, asked = made
    names = generators.class_names(place, asked)
    record = mix(Mix("digits-pool", [place], images=30, classes="any", generator_options=asked), tmp_path / "mix")
    assert record["sources"] == {"real": 18, place: 12} and set(record["classes"]) <= set(names or [""])
    told = dpt(DPT(**SMALL, generator=place, classes="any", generator_options=asked), tmp_path / "dpt")["stages"]
    assert list(told) == ["classifier-0", "images-1", "labels-1", "quality-1", "classifier-1"]
    shown = arrow.read_table(next(Path(told["images-1"]["path"]).glob("*.parquet"))).to_pylist()
    assert [row["label"] for row in shown] == [names[i % len(names)] if names else None for i in range(20)]


@pytest.mark.parametrize("precision", ["float32", "bf16", "float16"])
@each_kind
def test_the_precision_of_a_run_is_not_that_of_its_generator(
    kind: str, made: tuple[str, Options], precision: Any, tmp_path: Path
) -> None:
    if kind == "shipped" or (kind == "own" and precision != "float32"):
        pytest.skip("it has no precision of its own")
    place, asked = made[0], replace(made[1], precision=precision)
    generator = generators.load(place, asked)
    z, y = torch.randn(3, *generator.latent_shape), torch.arange(3) % generator.classes if generator.classes else None

    alone = generator(z.requires_grad_(), y)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        images = generator(z, y)
    first, second = (torch.autograd.grad(found.square().sum(), z)[0] for found in (alone, images))
    assert images.equal(alone) and first.equal(second)
    if kind != "own":
        fields = {"generator_options": asdict(asked), "precision": "bf16", "unlabeled_batch": 4}
        assert single.fit(tiny.config("mpssl", place, steps=1, **fields), tmp_path / "run", show=False)["finished"]


@each_kind
def test_a_class_out_of_range_is_told(kind: str, made: tuple[str, Options]) -> None:
    generator = generators.load(*made)
    z = torch.zeros(1, *generator.latent_shape)
    if generator.classes:
        with pytest.raises(UserError, match=rf"has no class {generator.classes}: give numbers from 0"):
            generator(z, torch.tensor([generator.classes]))
        with pytest.raises(UserError, match=rf"vectors have 1 entries, and the generator {generator.classes} classes"):
            generator(z, torch.ones(1, 1))


@each_kind
def test_it_is_asked_for_a_class_where_it_has_some(kind: str, made: tuple[str, Options]) -> None:
    if kind == "shipped":
        return
    generator = generators.load(*made)
    z, y = torch.zeros(2, *generator.latent_shape), torch.zeros(2, dtype=torch.int64)
    told = r"has \d classes: give y" if generator.classes else r"has no classes: leave y out"
    for one in (generator, generators.Permuted(generator, 0)):
        with pytest.raises(UserError, match=told):
            one(z, None if generator.classes else y)


@each_kind
def test_of_nothing_it_makes_no_images(kind: str, made: tuple[str, Options]) -> None:
    generator = generators.load(*made)
    z, y = torch.zeros(0, *generator.latent_shape), torch.zeros(0, dtype=torch.int64)
    assert generator(z, y if generator.classes else None).shape == (0, *generators.shape(generator))
    assert generators.sample(generator, 2, torch.empty(0)).shape == (2, *generators.shape(generator))


def test_our_own_diffusion_models_tell_it_too() -> None:
    generator = Diffusion(denoiser_of((1, 8, 8), 3, "tiny", 4, 0.5), 1)
    with pytest.raises(UserError, match=r"has no class 3: give numbers from 0 to 2"):
        generator(torch.zeros(1, 1, 8, 8), torch.tensor([3]))


def test_images_of_any_class_get_the_labels_that_the_first_classifier_predicts(tmp_path: Path) -> None:
    told = dpt(DPT(**SMALL, generator="letters", classes="any", rounds=2), tmp_path)["stages"]
    assert told["images-2"]["path"] == told["images-1"]["path"] and "agreement" not in told["quality-1"]
    for number in (1, 2):
        given = list(parquet.read(Path(told[f"labels-{number}"]["path"]) / "data.parquet", ("label", "split")))
        assert len(given) == 20 and {label for label, _ in given} <= set("0123456789")
        config = weights.read_json(Path(told[f"classifier-{number}"]["path"]) / "config.json")
        taught = Counter(
            row["label"] for row in arrow.read_table(config["data"]).to_pylist() if row["split"] == "train"
        )
        assert taught == Counter(label for label, _ in given) + Counter({str(c): 2 for c in range(10)})


def test_of_the_data_s_classes_each_image_has_the_one_it_was_asked_for(tmp_path: Path) -> None:
    told = dpt(DPT(**SMALL, generator="glyphs"), tmp_path)["stages"]
    assert list(told) == ["classifier-0", "images-1", "quality-1", "classifier-1"]
    shown = arrow.read_table(next(Path(told["images-1"]["path"]).glob("*.parquet"))).to_pylist()
    assert [row["label"] for row in shown] == [str(i % 10) for i in range(20)]
    assert sorted(told["quality-1"]["agreement"]) == [str(c) for c in range(10)]
    again = dpt(DPT(**SMALL, generator="glyphs", generator_options=Options()), tmp_path)["stages"]
    assert again == told
    other = dpt(
        DPT(**SMALL, generator="letters", classes=",".join(f"{c}={'abcdefghij'[c]}" for c in range(10))), tmp_path
    )
    assert other["stages"]["classifier-0"] == told["classifier-0"]
    assert other["stages"]["images-1"]["path"] != told["images-1"]["path"]


def test_the_first_classifier_may_need_no_unlabeled_image_either(tmp_path: Path) -> None:
    given = {"classifier": {"generator": "glyphs"}, "diffusion_steps": 2, "sampler_steps": 2}
    told = dpt(DPT(**SMALL, stage1="mpssl", **given), tmp_path)["stages"]
    for number in (0, 1):
        assert weights.read_json(Path(told[f"classifier-{number}"]["path"]) / "config.json")["generator"] == "glyphs"
    other = dpt(DPT(**SMALL, stage1="mpssl", **given | {"classifier": {"generator": "letters"}}), tmp_path)["stages"]
    assert other["classifier-0"]["path"] != told["classifier-0"]["path"]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"stage1": "mpssl"}, r"--stage1 mpssl needs a generator: name one with --classifier '\{\"generator\""),
        ({"stage1": "gan"}, r"--stage1 gan trains no classifier"),
        ({"classes": "any"}, r"--classes is not read, as it is of a --generator: leave it out"),
        ({"generator_options": Options(guidance=2.0)}, r"--generator-options is not read"),
        ({"generator": "glyphs", "guidance": 2.0}, r"--guidance is not read, as there is a --generator in its place"),
        ({"generator": "glyphs", "diffusion": {"patch": 2}}, r"--diffusion is not read"),
        ({"generator": "glyphs", "rounds": 2}, r"makes the same images in each round"),
        ({"generator": "letters"}, r"generator letters has no class '0' for the class '0' of the data"),
        ({"generator": "glyphs", "generator_options": Options(chunk=2)}, r"does not know --generator-options.chunk"),
        ({"generator": "nowhere"}, r"unknown generator"),
    ],
)
def test_what_dpt_cannot_do_is_told_before_anything_is_trained(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        dpt(DPT(**SMALL, **given), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_text_to_image_model_s_source_learns_from_what_generate_wrote(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    place, prompts = folders.text(tmp_path / "text"), tmp_path / "prompts.txt"
    prompts.write_text("\n".join(folders.PROMPTS))
    asked = [
        "--generator",
        place,
        "--generator-options.prompts",
        str(prompts),
        "--generator-options.sampler-steps",
        "1",
    ]
    assert main(["generate", *asked, "--count", "30", "--out", str(tmp_path / "images")]) == 0
    source = ["--data", str(tmp_path / "images" / "images.parquet"), "--size", "8", "--steps", "2"]
    assert main(["fit", "--method", "supervised", *source, "--out", str(tmp_path / "source")]) == 0
    few = ["--labels-per-class", "2", "--steps", "2", "--source", str(tmp_path / "source")]
    assert main(["fit", "--method", "pssl", *few, *asked, "--out", str(tmp_path / "pssl")]) == 0
    notes = weights.read_json(tmp_path / "pssl" / "result.json")["data"]["notes"]
    assert any("are taken for those of the generator by their names" in note for note in notes)


def test_samples_of_a_generator_from_elsewhere_must_not_be_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = biggan(tmp_path / "biggan")
    assert len(datasets.load(f"generator:{place}").pool) == 3 * 360
    monkeypatch.setattr(datasets, "LARGEST", 10**5)
    datasets.built.cache_clear()
    with pytest.raises(UserError, match="390 images of each of 3 classes are too many: write its images with"):
        datasets.load(f"generator:{place}")
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=r"prompts\. As --data it has no options: write its images with semisynth gen"):
        datasets.load(f"generator:{folders.text(tmp_path / 'text')}")


def test_options_go_to_the_generators_that_know_them(tmp_path: Path) -> None:
    place = biggan(tmp_path / "biggan")
    assert generators.dealt(["glyphs", place], Options(truncation=0.5)) == [Options(), Options(truncation=0.5)]
    assert generators.dealt(["glyphs"], Options()) == [Options()]
    with pytest.raises(UserError, match=r"generator glyphs, .*biggan does not know --generator-options.prompts"):
        generators.dealt(["glyphs", place], Options(prompts="texts.txt"))


def test_the_command_line_has_these_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, out = biggan(tmp_path / "biggan"), tmp_path / "mix"
    typed = ["--real", "digits-pool", "--synthetic", place, "glyphs", "--images", "30", "--classes", "any"]
    assert main(["mix", *typed, "--generator-options.truncation", "0.5", "--out", str(out)]) == 0
    record = weights.read_json(out / "mix.json")
    assert record["options"]["generator_options"]["truncation"] == 0.5
    assert "--generator-options.truncation 0.5" in record["command"]
    typed = ["--data", "digits-pool", "--labels-per-class", "2", "--steps", "2", "--images-per-class", "2"]
    typed += ["--generator", place, "--classes", "any", "--generator-options.truncation", "0.5"]
    assert main(["dpt", *typed, "--out", str(tmp_path / "dpt")]) == 0
    assert "labels-1" in capsys.readouterr().out


def test_a_bench_gives_the_options_to_the_rows_of_that_generator(tmp_path: Path) -> None:
    place, out = KINDS["images"](tmp_path / "images"), tmp_path / "bench"
    typed = ["bench", "--methods", "supervised,naive-fixmatch,mpssl-letters", "--labels_per_class", "2", "--seeds", "0"]
    typed += ["--data", "digits-pool", "--steps", "1", "--generator-options.sampler-steps", "1"]
    assert main([*typed, "--generator", place, "--out", str(out)]) == 0
    configs = {path.parts[-4]: weights.read_json(path) for path in out.glob("cells/*/*/*/config.json")}
    found = {row: content["generator_options"]["sampler_steps"] for row, content in configs.items()}
    assert found == {"supervised": 4, "naive-fixmatch": 1, "mpssl-letters": 4}


def test_options_that_no_generator_reads_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [
        "--data",
        "digits-pool",
        "--steps",
        "1",
        "--generator-options.sampler-steps",
        "2",
        "--out",
        str(tmp_path / "x"),
    ]
    for command, told in (
        (["fit", "--method", "supervised"], "--generator-options are not read without --generator: leave them out"),
        (["bench", "--methods", "supervised", "--labels_per_class", "2"], "which none of the methods reads"),
        (["bench", "--methods", "mpssl", "--labels_per_class", "2"], "which none of the methods reads"),
        (
            ["fit", "--method", "mpssl", "--generator", "glyphs"],
            "glyphs does not know --generator-options.sampler_steps",
        ),
    ):
        assert main([*command, *few]) == 2 and told in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_a_method_that_needs_a_gradient_says_why_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = own(tmp_path / "own")
    typed = ["fit", "--method", "mpssl", "--data", "digits-pool", "--generator", place, "--out", str(tmp_path / "run")]
    assert main(typed) == 2
    told = f"{place} cannot be: its condition is labels, in which there is no gradient in y (vectors have one). Choose"
    assert told in capsys.readouterr().err


def test_prompts_have_names(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text('{"cat": "a photo of a cat", "dog": "a dog"}')
    assert Options(prompts=str(file)).texts() == {"cat": "a photo of a cat", "dog": "a dog"}
    for content, message in (
        ('{"cat": 3}', r"prompt of 'cat' is 3"),
        ("{}", r"has no prompt"),
        ("[1]", r"prompts\.json"),
        ('{"cat": "a cat", "dog": "a dog", "cat": "the cat"}', r"prompts\.json cannot be read: 'cat' is there twice"),
        ('{" ": "a cat"}', r"the class of 'a cat' has no name"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            Options(prompts=str(file)).texts()


def test_prompts_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    for name, text, found in (
        ("prompts.txt", "a cat\na dog", {"a cat": "a cat", "a dog": "a dog"}),
        ("prompts.JSON", '{"cat": "a cat"}', {"cat": "a cat"}),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert Options(prompts=str(tmp_path / name)).texts() == found


@pytest.mark.parametrize("name", ["none.json", "none.txt", ""])
def test_prompts_that_are_not_there_are_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--generator-options\.prompts .* cannot be read: there is no such file"):
        Options(prompts=str(tmp_path / name)).texts()
