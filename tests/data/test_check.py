"""What a check finds in folders that were made with known faults."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semisynth import cli
from semisynth.data import catalog, check
from semisynth.data.items import Item


def image(seed: int, side: int = 24) -> Image.Image:
    """Smooth noise: thumbnails of different seeds differ much."""
    coarse = np.random.RandomState(seed).randint(256, size=(6, 6)).astype(np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def save(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of eight different images, and some for tests."""
    root = tmp_path / "images"
    for label, number in itertools.product("ab", range(8)):
        save(root / "train" / label / f"{number}.png", image(100 * ord(label) + number))
    for label in "ab":
        save(root / "test" / label / "0.png", image(100 * ord(label) + 50))
    return root


def found(root: Path) -> dict:
    return check.check(catalog.read(str(root)))


def test_what_there_is_is_counted(folder: Path) -> None:
    save(folder / "unlabeled" / "x.png", image(7, 30).convert("RGB"))
    palette = image(8).convert("RGB").quantize(4)
    save(folder / "unlabeled" / "y.png", palette)
    told = found(folder)
    assert told["images"] == 20
    assert told["classes"] == {
        "a": {"train": 8, "validation": 0, "test": 1},
        "b": {"train": 8, "validation": 0, "test": 1},
        "": {"unlabeled": 2},
    }
    assert told["sizes"] == {"24x24": 19, "30x30": 1} and told["channels"] == {"gray": 18, "RGB": 2}
    assert told["conversions"] == {"palette made RGB": 1}
    assert not any(told[key] for key in ("unreadable", "duplicates", "near_duplicates", "notes"))
    assert check.problems(told) == 0


def test_wide_images_are_told_with_their_width_first(folder: Path) -> None:
    save(folder / "unlabeled" / "x.png", image(7).resize((40, 10)))
    assert found(folder)["sizes"] == {"24x24": 18, "40x10": 1}


def test_many_sizes_are_told_in_short() -> None:
    told = check._common(str(min(n, 12)) for n in range(20))
    assert list(told) == ["12", *map(str, range(9)), "3 others"] and told["12"] == 8 and told["3 others"] == 3


def test_unreadable_images_are_listed_and_the_rest_is_looked_at(folder: Path) -> None:
    (folder / "train" / "a" / "bad.png").write_text("no image")
    told = found(folder)
    assert list(told["unreadable"]) == ["train/a/bad.png"] and "no image" in told["unreadable"]["train/a/bad.png"]
    assert sum(told["sizes"].values()) == 18 and check.problems(told) == 1


def test_copies_are_those_of_the_same_pixels_in_any_format(folder: Path) -> None:
    same = image(100 * ord("a"))
    save(folder / "train" / "a" / "copy.bmp", same)
    told = found(folder)
    assert [group["images"] for group in told["duplicates"]] == [["train/a/0.png", "train/a/copy.bmp"]]
    assert not told["duplicates"][0]["across_splits"] and not told["duplicates"][0]["contradictory"]
    assert check.problems(told) == 0


def test_the_same_bytes_in_another_shape_are_no_copy(folder: Path) -> None:
    pixels = np.random.RandomState(0).randint(256, size=(4, 9)).astype(np.uint8)
    save(folder / "unlabeled" / "a.png", Image.fromarray(pixels))
    save(folder / "unlabeled" / "b.png", Image.fromarray(pixels.reshape(9, 4)))
    assert not found(folder)["duplicates"]


@pytest.mark.parametrize(
    ("place", "across", "contradictory"),
    [("test/a", True, False), ("train/b", False, True), ("unlabeled", True, False)],
)
def test_copies_across_splits_or_with_two_labels_are_to_be_mended(
    folder: Path, place: str, across: bool, contradictory: bool
) -> None:
    save(folder / place / "copy.png", image(100 * ord("a")))
    told = found(folder)
    [group] = told["duplicates"]
    assert (group["across_splits"], group["contradictory"]) == (across, contradictory)
    assert check.problems(told) == 1


@pytest.mark.parametrize("change", ["brighter", "compressed", "resized"])
def test_near_copies_are_found(folder: Path, change: str) -> None:
    source, place = image(100 * ord("a"), 64), folder / "test" / "a"
    save(folder / "train" / "a" / "large.png", source)
    if change == "compressed":
        save(place / "near.jpg", source)
    else:
        near = source.resize((48, 48)) if change == "resized" else source.point(lambda value: min(value + 2, 255))
        save(place / "near.png", near)
    told = found(folder)
    names = [set(group["images"]) for group in told["near_duplicates"]]
    assert any("train/a/large.png" in group and any("near" in name for name in group) for group in names)
    assert check.problems(told) >= 1


def seen(hashes: list[int], thumbnails: list[int]) -> check.Seen:
    """Images of these hashes whose thumbnails are plain."""
    plain = np.repeat(np.array(thumbnails, np.uint8), check.SIDE**2).reshape(-1, check.SIDE, check.SIDE)
    digests = [str(i).encode() for i in range(len(hashes))]
    counts: dict = {"channels": check.Counter(), "done": check.Counter()}
    return check.Seen(
        np.arange(len(hashes)), [(1, 1)] * len(hashes), digests, plain, np.array(hashes, np.uint64), **counts
    )


def test_near_means_up_to_three_bits_and_four_grey_levels() -> None:
    base = 0x0123456789ABCDEF
    for bits in itertools.combinations(range(0, 64, 7), 3):
        assert check.near(seen([base, base ^ sum(1 << bit for bit in bits)], [10, 14]), []) == [(0, 1)]
    assert check.near(seen([base, base ^ 0b1111], [10, 10]), []) == []
    assert check.near(seen([base, base], [10, 15]), []) == []


def test_near_pairs_are_those_of_a_loop_over_all_pairs() -> None:
    source = np.random.RandomState(0)
    hashes = [int(source.randint(8)) << 60 | sum(1 << int(b) for b in source.choice(20, 2)) for _ in range(80)]
    levels = source.randint(0, 9, 80).tolist()
    expected = [
        (i, j)
        for i, j in itertools.combinations(range(80), 2)
        if (hashes[i] ^ hashes[j]).bit_count() <= 3 and abs(levels[i] - levels[j]) <= 4
    ]
    assert check.near(seen(hashes, levels), []) == expected and len(expected) > 9


def test_exact_copies_are_not_told_again_as_near_ones() -> None:
    assert check.near(seen([5, 5, 5], [0, 0, 0]), [[0, 2]]) == [(0, 1)]


def test_a_label_that_its_neighbours_contradict_is_suspicious(tmp_path: Path) -> None:
    light, dark = image(1), image(2)
    for number in range(8):
        shade = Image.fromarray(np.random.RandomState(number).randint(30, size=(24, 24)).astype(np.uint8))
        save(tmp_path / "a" / f"{number}.png", Image.blend(light, shade, 0.3))
        save(tmp_path / "b" / f"{number}.png", Image.blend(dark, shade, 0.3))
    assert found(tmp_path)["suspicious_labels"] == []
    (tmp_path / "a" / "3.png").rename(tmp_path / "b" / "wrong.png")
    told = found(tmp_path)
    assert told["suspicious_labels"] == [{"image": "b/wrong.png", "label": "b", "neighbours": "a"}]
    assert "b/wrong.png is labeled b, its neighbours a" in check.told(told)


def test_few_labels_are_not_questioned(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png", image(1))
    save(tmp_path / "b" / "0.png", image(2))
    told = found(tmp_path)
    assert not told["labels_questioned"] and "labels were not questioned" in check.told(told)


def test_the_command_prints_and_writes_what_it_found(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "check.json"
    assert cli.main(["data", "check", str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "18 images, 2 classes" in printed and "a: 8 train, 1 test" in printed and "no findings to mend" in printed
    assert json.loads(out.read_text())["images"] == 18
    (folder / "train" / "a" / "bad.png").write_bytes(b"")
    assert cli.main(["data", "check", str(folder), "--out", str(out), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())


def test_what_was_found_until_an_interruption_is_kept(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    look, out = check.Reading.look, tmp_path / "check.json"

    def interrupted(reading: check.Reading, row: int, item: Item) -> None:
        if row == 5:
            raise KeyboardInterrupt
        look(reading, row, item)

    monkeypatch.setattr(check.Reading, "look", interrupted)
    (folder / "test" / "a" / "0.png").write_bytes(b"")
    assert cli.main(["data", "check", str(folder), "--out", str(out)]) == 130
    told = capsys.readouterr()
    assert told.err == f"semisynth: interrupted; what was found until then is in {out}.\n"
    assert "18 images, 2 classes\nonly the first 5 were looked at\n" in told.out
    assert json.loads(out.read_text())["looked_at"] == 5 and sum(json.loads(out.read_text())["sizes"].values()) == 5


def test_a_wrong_place_is_told_before_anything_is_written(tmp_path: Path, capsys) -> None:
    assert cli.main(["data", "check", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x.json")]) == 2
    assert "does not exist" in capsys.readouterr().err and not (tmp_path / "x.json").exists()
    assert cli.main(["data", "look", str(tmp_path)]) == 2


@pytest.mark.parametrize("name", ["x.png", "x", "x.JSON.jpg", "x.csv"])
def test_what_was_found_overwrites_nothing_but_such_files(folder: Path, name: str, capsys) -> None:
    assert cli.main(["data", "check", str(folder), "--out", str(folder / name)]) == 2
    assert f"{name}: give the name of a file that ends in .json" in capsys.readouterr().err
    assert not (folder / name).exists()


def test_copies_that_will_be_kept_together_are_told(folder: Path) -> None:
    for i in range(2):
        save(folder / "train" / "a" / f"copy{i}.png", image(100 * ord("a")))
    both = "copies among the training images: 2; when some are set aside for {}, copies stay together"
    assert found(folder)["notes"] == [both.format("validation")]
    shutil.rmtree(folder / "test")
    told = found(folder)
    assert told["notes"] == [both.format("validation and test")] and "note: copies among" in check.told(told)
    shutil.copytree(folder / "train", folder / "validation")
    shutil.copytree(folder / "train", folder / "test")
    assert found(folder)["notes"] == []


@pytest.mark.parametrize(
    "bad, told", [(0, "no findings to mend"), (1, "\n1 finding to mend"), (2, "\n2 findings to mend")]
)
def test_findings_are_counted_in_words(bad: int, told: str, folder: Path) -> None:
    for i in range(bad):
        (folder / "train" / "a" / f"bad{i}.png").write_bytes(b"")
    assert check.told(found(folder)).endswith(told)
