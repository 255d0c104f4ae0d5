"""Images of a generator in files: which they are, that an interruption changes nothing, and mistakes."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pyarrow import parquet as arrow

from semisynth import generators, noise, weights
from semisynth.cli import main
from semisynth.data import datasets, parquet
from semisynth.data.datasets import Reading
from semisynth.errors import UserError
from semisynth.recipes import generate as recipe
from semisynth.recipes import single
from semisynth.recipes.generate import Generate, generate
from semisynth.recipes.mix import Mix, mix


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "SHARD", 8)


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = arrow.read_table(out / "images.parquet").to_pylist()
    return found


def test_images_are_of_the_classes_in_turn_from_latents_of_their_own(small: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(Generate("glyphs", count=21, classes=["B", "a"], seed=3), out, show=False)
    found = rows(out)
    assert [row["index"] for row in found] == list(range(21))
    assert [row["label"] for row in found] == ["B", "a"] * 10 + ["B"]
    generator, names = generators.load("glyphs"), generators.class_names("glyphs")
    z = torch.randn(generator.latent_shape, generator=torch.Generator().manual_seed(noise.derive("generate", 3, 9)))
    expected = generator(z[None], torch.tensor([names.index("a")]))[0]
    image = parquet.pixels(found[9]["image"])
    assert (image / 255 - expected).abs().amax() <= 0.5 / 255 + 1e-6
    assert sorted(file.name for file in out.iterdir()) == ["generate.json", "images.parquet", "sheet.png"]
    data = datasets.load(str(out / "images.parquet"), Reading(size=16, holdout=0.0))
    assert data.classes == ("B", "a") and len(data.pool) == 21


def test_classes_are_asked_for_by_number_and_synonym_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ("hen, biddy", "cock, cockerel", *map(str, range(60)))
    monkeypatch.setattr(recipe.generators, "class_names", lambda name, options: there)
    record = generate(Generate("glyphs", count=3, classes=["biddy", "61", "cock, cockerel"]), tmp_path, show=False)
    assert record["classes"] == ["hen, biddy", "59", "cock, cockerel"]
    generator = generators.load("glyphs")
    z = torch.randn(generator.latent_shape, generator=torch.Generator().manual_seed(noise.derive("generate", 0, 1)))
    image = parquet.pixels(rows(tmp_path)[1]["image"])
    assert (image / 255 - generator(z[None], torch.tensor([61]))[0]).abs().amax() <= 0.5 / 255 + 1e-6


def test_an_interruption_changes_nothing(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, whole, cut = Generate("glyphs", count=30), tmp_path / "whole", tmp_path / "cut"
    generate(asked, whole, show=False)
    write, written = parquet.write, []

    def failing(path: Path, columns: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, columns)

    monkeypatch.setattr(recipe.parquet, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        generate(asked, cut, show=False)
    monkeypatch.setattr(
        recipe.parquet, "write", lambda path, columns: (written.append(path.name), write(path, columns))
    )
    with pytest.raises(UserError, match=r"holds other images: seed \(0 there, 1 asked\)"):
        generate(Generate("glyphs", count=30, seed=1), cut, show=False)
    generate(asked, cut, show=False)
    assert written == ["000000.parquet", "000001.parquet", "000002.parquet", "000003.parquet", "images.parquet"]
    for name in ("images.parquet", "sheet.png", "generate.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    kept = (cut / "images.parquet").stat().st_mtime_ns
    assert generate(asked, cut, show=False) == weights.read_json(whole / "generate.json")
    assert (cut / "images.parquet").stat().st_mtime_ns == kept


def own(folder: Path, factor: float = 1.0, wrong: float = 99.0) -> str:
    """A network whose code says by what its images are multiplied, and from which latents on they are no numbers."""
    folder.mkdir(exist_ok=True)
    network = f"""
        import torch
        from torch import nn

        class Network(nn.Module):
            def forward(self, z):
                x = {factor} * z.sigmoid()[:, :3, None, None].expand(-1, -1, 4, 4)
                return torch.where(z[:, :1, None, None] > {wrong}, torch.nan, x)
    """
    (folder / "net.py").write_text(textwrap.dedent(network))
    told = {"module": "net.py:Network", "latent": [5], "range": [0, 1]}
    (folder / "generator.json").write_text(json.dumps(told))
    return str(folder)


@pytest.mark.parametrize("cut", [False, True])
def test_images_of_a_generator_that_changed_are_not_mixed_with_others(
    cut: bool, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, out = Generate(own(tmp_path / "mine"), count=16), tmp_path / "out"
    conclude = recipe._conclude
    if cut:
        monkeypatch.setattr(recipe, "_conclude", lambda *_: {})
    generate(asked, out, show=False)
    monkeypatch.setattr(recipe, "_conclude", conclude)
    own(tmp_path / "mine", 0.5)
    with pytest.raises(UserError, match=r"holds images of another generator: fingerprint \("):
        generate(asked, out, show=False)
    own(tmp_path / "mine")
    assert generate(asked, out, show=False) == weights.read_json(out / "generate.json")


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    place = own(tmp_path / "mine", wrong=2.5)
    with pytest.raises(UserError, match=r"generator .*mine gives values that are not finite: see that"):
        generate(Generate(place, count=3000), tmp_path / "out", show=False)
    assert not (tmp_path / "out" / "images.parquet").exists()
    with pytest.raises(UserError, match=r"generator .*mine gives values that are not finite: see that"):
        mix(Mix("digits-pool", [place], share=0.8, classes="any"), tmp_path / "mix")
    assert not (tmp_path / "mix").exists()
    own(tmp_path / "mine", wrong=-99)
    with pytest.raises(UserError, match=r"gives numbers that are not finite"):
        generate(Generate(place, count=3), tmp_path / "none", show=False)
    assert not (tmp_path / "none").exists()


def test_files_of_images_have_one_channel_or_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(generators.Generator):
        latent_shape, classes = (3,), 0

        def forward(self, z: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            return z.sigmoid()[:, :2, None, None].expand(-1, -1, 4, 4)

    monkeypatch.setattr(recipe.generators, "load", lambda name, options: Two())
    monkeypatch.setattr(recipe.generators, "class_names", lambda name, options: ())
    with pytest.raises(UserError, match="makes images of 2 channels: files of images have 1 or 3"):
        generate(Generate("two", count=2), tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_each_class(tmp_path: Path) -> None:
    assert (
        main(["generate", "--generator", "glyphs", "--count", "6", "--format", "png", "--out", str(tmp_path / "o")])
        == 0
    )
    names = generators.class_names("glyphs")[:6]
    found = sorted(file.relative_to(tmp_path / "o").as_posix() for file in (tmp_path / "o").glob("*/*.png"))
    assert found == sorted(f"{name}/{i:08}.png" for i, name in enumerate(names))
    generate(Generate("glyphs", count=6), tmp_path / "table", show=False)
    assert (tmp_path / "o" / found[0]).read_bytes() in [row["image"] for row in rows(tmp_path / "table")]


def test_names_of_classes_lead_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe.generators, "class_names", lambda name, options: ("..", "a/b", *map(str, range(60))))
    generate(Generate("glyphs", count=2, format="png"), tmp_path / "in" / "out", show=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in"]
    assert {file.parent.name for file in (tmp_path / "in" / "out").glob("*/*.png")} == {"%2E.", "a%2Fb"}


def test_a_folder_has_the_name_of_its_class_where_it_can() -> None:
    names = ["für", "猫", "cock, cockerel", "50% (new)", "a.b", "what?", "..", "a/b", "a%2Fb", "x\0", "\ud800"]
    found = [recipe._folder(name) for name in names]
    assert found[:6] == names[:6] and found[6:] == ["%2E.", "a%2Fb", "a%252Fb", "x%00", "%ED%A0%80"]
    windows = [recipe._folder(name, recipe.WINDOWS) for name in ("für", "what?", "a\\b", "end.", ".")]
    assert windows == ["für", "what%3F", "a%5Cb", "end%2E", "%2E"]


@pytest.mark.parametrize("name", ["parts", "sheet.png", "train", "unlabeled", "x" * 256, "猫" * 86, ""])
def test_a_class_that_can_have_no_folder_is_told_before_an_image_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe.generators, "class_names", lambda generator, options: (name, *map(str, range(61))))
    with pytest.raises(UserError, match="cannot have a folder of its name: give --format parquet"):
        generate(Generate("glyphs", count=2, format="png"), tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()
    generate(Generate("glyphs", count=2, classes=["3"], format="png"), tmp_path / "out", show=False)
    assert {file.parent.name for file in (tmp_path / "out").glob("*/*.png")} == {"3"}


def test_a_runs_mapper_is_asked(small: None, tmp_path: Path, generator: str) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    single.fit(tiny.config("mpssl", generator, steps=3), run, show=False)
    generate(Generate(run=str(run), count=20), out, show=False)
    found = rows(out)
    assert [row["label"] for row in found[8:16]] == list("01234567")
    method = single.again(run, torch.device("cpu")).method
    kept = torch.load(run / "checkpoint.pt", weights_only=True)["method"]
    assert tiny.same(dict(method.state_dict()), dict(kept)) and not method.training
    with torch.no_grad(), noise.seeded(0, "generate", 8):
        expected = method.samples(8, torch.empty(0))["mapped"]
    assert (parquet.pixels(found[11]["image"]) / 255 - expected[3]).abs().amax() <= 0.5 / 255 + 1e-6


def test_mistakes_are_told(tmp_path: Path, generator: str, capsys: Any) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["generate", *out]) == 2 and "either --generator or --run" in capsys.readouterr().err
    assert main(["generate", "--generator", "glyphs", "--classes", "dog", *out]) == 2
    assert "class" in capsys.readouterr().err
    assert main(["generate", "--generator", "glyphs", "--count", "0", *out]) == 2
    assert main(["generate", "--generator", generator, "--run", "r", *out]) == 2
    single.fit(tiny.config("supervised", steps=1), tmp_path / "run", show=False)
    assert main(["generate", "--run", str(tmp_path / "run"), *out]) == 2
    assert "has no mapper: give --generator" in capsys.readouterr().err
    assert main(["generate", "--run", str(tmp_path / "run"), "--classes", "1", *out]) == 2
    assert not (tmp_path / "out").exists()
    (tmp_path / "theirs" / "parts").mkdir(parents=True)
    (tmp_path / "theirs" / "parts" / "thesis.txt").write_text("precious")
    assert main(["generate", "--generator", "glyphs", "--count", "4", "--out", str(tmp_path / "theirs")]) == 2
    assert (tmp_path / "theirs" / "parts" / "thesis.txt").read_text() == "precious"
    capsys.readouterr()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    assert main(["generate", "--generator", "glyphs", "--out", str(tmp_path / "other")]) == 2
    assert "is not a set of generated images" in capsys.readouterr().err
