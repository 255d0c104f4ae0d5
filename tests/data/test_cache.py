"""Decoding once: what is kept, when it is made again, how it goes on after an interruption, and where it fails."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pictures
import pytest

from semisynth.data import cache, catalog, chunks, items
from semisynth.data.cache import Decoded
from semisynth.data.decode import Preparation, open_image, prepare
from semisynth.errors import UserError

PREPARATION = Preparation((6, 6), 3, "crop")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    return str(pictures.folder(tmp_path / "set", 10))


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The rows that were decoded in this process, in order."""
    rows: list[int] = []
    decode = chunks.decode

    def counted(items, first, *rest):
        rows.extend(range(first, first + len(items)))
        return decode(items, first, *rest)

    monkeypatch.setattr(chunks, "decode", counted)
    return rows


def pixels(found: Decoded) -> np.ndarray:
    return np.fromfile(found.path, np.uint8).reshape(found.shape)


def expected(source: str, preparation: Preparation = PREPARATION) -> np.ndarray:
    return np.stack([prepare(open_image(item.read(), "x"), preparation) for item in catalog.read(source).items])


def test_images_are_decoded_once_into_a_file(source, decoded, place):
    found = cache.load(catalog.read(source), PREPARATION)
    assert found.shape == (40, 3, 6, 6) and np.array_equal(pixels(found), expected(source))
    assert found.done == {"resized to 6x6 (crop)": 40} and found.unreadable == {}
    assert cache.load(catalog.read(source), PREPARATION) == found and decoded == list(range(40))
    (folder,) = place.iterdir()
    assert {file.name for file in folder.iterdir()} == {"images.u8", "meta.json", "lock"}
    meta = json.loads((folder / "meta.json").read_text())
    assert f"{meta['hash']:032x}" == found.hash and meta["preparation"] == {
        "size": [6, 6],
        "channels": 3,
        "fit": "crop",
    }


def test_another_preparation_and_changed_files_are_decoded_anew(source, decoded, tmp_path):
    first = cache.load(catalog.read(source), PREPARATION)
    gray = cache.load(catalog.read(source), Preparation((6, 6), 1, "crop"))
    assert gray.path != first.path and gray.hash == first.hash and len(decoded) == 80
    assert gray.done == {"RGB made gray": 40, "resized to 6x6 (crop)": 40}
    os.utime(tmp_path / "set" / "train" / "cat" / "0.png", ns=(1, 1))
    touched = cache.load(catalog.read(source), PREPARATION)
    assert touched.path != first.path and touched.hash == first.hash
    pictures.save(tmp_path / "set" / "train" / "cat" / "0.png", 77)
    assert cache.load(catalog.read(source), PREPARATION).hash != first.hash


def test_the_hash_is_that_of_contents_in_order_however_they_were_divided(source, tmp_path, monkeypatch):
    whole = cache.load(catalog.read(source), PREPARATION)
    monkeypatch.setattr(cache, "FIRST", 7)
    shutil.copytree(source, tmp_path / "copy")
    assert cache.load(catalog.read(str(tmp_path / "copy")), PREPARATION).hash == whole.hash
    one, other = (tmp_path / "set" / "train" / "cat" / name for name in ("0.png", "1.png"))
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    assert cache.load(catalog.read(source), PREPARATION).hash != whole.hash


def interrupted(monkeypatch, at: int) -> None:
    """Ctrl-C after so many chunks."""
    step, count = cache.Bar.step, [0]

    def stepped(self, images):
        count[0] += 1
        if count[0] == at:
            raise KeyboardInterrupt
        step(self, images)

    monkeypatch.setattr(cache.Bar, "step", stepped)


@pytest.mark.parametrize("parallel", [False, True])
def test_interrupted_decoding_goes_on_without_decoding_twice(parallel, source, place, monkeypatch):
    monkeypatch.setattr(cache, "FIRST", 4)
    monkeypatch.setattr(cache, "TASK", 0)  # one image a task
    if parallel:
        monkeypatch.setattr(cache, "MEASURED", 0)
        monkeypatch.setattr(cache, "PATIENCE", 0)
        monkeypatch.setattr(cache, "_cores", lambda: 2)
    with monkeypatch.context() as context:
        interrupted(context, 9)
        with pytest.raises(KeyboardInterrupt):
            cache.load(catalog.read(source), PREPARATION)
    (folder,) = place.iterdir()
    assert {file.name for file in folder.iterdir()} == {"images.part", "journal.jsonl", "lock"}
    before = [
        row
        for chunk in chunks.journaled(folder / "journal.jsonl", 40)
        for row in range(chunk.first, chunk.first + chunk.count)
    ]
    assert 12 <= len(before) < 40
    with monkeypatch.context() as context:
        rows: list[int] = []
        task = cache._Filling._task
        context.setattr(cache._Filling, "_task", lambda self, part: (rows.extend(part), task(self, part))[1])
        found = cache.load(catalog.read(source), PREPARATION)
    assert sorted(before + rows) == list(range(40))
    assert np.array_equal(pixels(found), expected(source)) and found.done == {"resized to 6x6 (crop)": 40}


def test_many_images_are_decoded_by_processes(source, monkeypatch):
    monkeypatch.setattr(cache, "MEASURED", 0)
    monkeypatch.setattr(cache, "PATIENCE", 0)
    monkeypatch.setattr(cache, "TASK", 1e-3)
    monkeypatch.setattr(cache, "_cores", lambda: 2)
    alone = cache.load(catalog.read(source), Preparation((6, 6), 3, "pad"))
    (alone.path.parent / "meta.json").unlink()
    monkeypatch.setattr(cache, "PATIENCE", 1e9)
    together = cache.load(catalog.read(source), Preparation((6, 6), 3, "pad"))
    assert together == alone and np.array_equal(pixels(together), expected(source, Preparation((6, 6), 3, "pad")))


def test_a_torn_journal_loses_its_torn_line_alone(source, place, monkeypatch, decoded):
    monkeypatch.setattr(cache, "FIRST", 4)
    monkeypatch.setattr(cache, "TASK", 0)
    with monkeypatch.context() as context:
        interrupted(context, 9)
        with pytest.raises(KeyboardInterrupt):
            cache.load(catalog.read(source), PREPARATION)
    journal = next(place.iterdir()) / "journal.jsonl"
    journal.write_text(journal.read_text()[:-10])
    decoded.clear()
    found = cache.load(catalog.read(source), PREPARATION)
    assert decoded == list(range(11, 40)) and np.array_equal(pixels(found), expected(source))


@pytest.mark.parametrize("lost", ["images.u8", "meta.json", "half"])
def test_what_was_lost_is_made_again(lost, source, place):
    found = cache.load(catalog.read(source), PREPARATION)
    if lost == "half":
        found.path.write_bytes(found.path.read_bytes()[:100])
    else:
        (found.path.parent / lost).unlink()
    assert cache.load(catalog.read(source), PREPARATION) == found
    assert np.array_equal(pixels(found), expected(source))


@pytest.mark.parametrize(
    "change",
    [
        *("", "{", "{}", "[]", "null", "[" * 9999, "\xff\xfe\0"),
        *(
            {"first": 1},
            {"count": 39},
            {"count": 41},
            {"hash": "x"},
            {"hash": True},
            {"done": []},
            {"done": {"x": "y"}},
        ),
        *({"unreadable": []}, {"unreadable": {"40": "x"}}, {"unreadable": {"-1": "x"}}, {"unreadable": {"1": 2}}),
    ],
)
def test_what_was_damaged_is_made_again(change, source, place, decoded):
    found = cache.load(catalog.read(source), PREPARATION)
    meta = found.path.parent / "meta.json"
    text = change if isinstance(change, str) else json.dumps(json.loads(meta.read_text()) | change)
    meta.write_bytes(text.encode("latin-1"))
    assert cache.load(catalog.read(source), PREPARATION) == found and decoded == [*range(40), *range(40)]


@pytest.mark.parametrize(
    "lines, anew",
    [
        (("",), range(40)),
        (("{}", "[]", "\0", "[" * 9999), range(40)),
        (('{"first": -4, "count": 44, "hash": 0, "done": {}, "unreadable": {}}',), range(40)),
        (('{"first": 0, "count": 41, "hash": 0, "done": {}, "unreadable": {}}',), range(40)),
        (('{"first": "a", "count": 4, "hash": 0, "done": {}, "unreadable": {}}',), range(40)),
        (('{"first": 0, "count": 4, "hash": 0, "done": {"x": []}, "unreadable": {}}',), range(40)),
        (('{"first": 0, "count": 4, "hash": 0, "done": {}, "unreadable": {}}',) * 2, range(4, 40)),
    ],
)
def test_a_journal_counts_where_it_is_whole(lines, anew, source, place, decoded):
    found = cache.load(catalog.read(source), PREPARATION)
    decoded.clear()
    (found.path.parent / "meta.json").unlink()
    found.path.rename(found.path.parent / "images.part")
    (found.path.parent / "journal.jsonl").write_text("\n".join(lines))
    again = cache.load(catalog.read(source), PREPARATION)
    assert decoded == [*anew] and np.array_equal(pixels(again), expected(source))


def test_a_cache_that_is_removed_meanwhile_is_told(source, place, monkeypatch):
    step = cache.Bar.step
    monkeypatch.setattr(cache, "FIRST", 4)
    monkeypatch.setattr(cache.Bar, "step", lambda self, count: (step(self, count), shutil.rmtree(place))[0])
    message = r"was removed while the images of \S+set were decoded into it: give the same command again\."
    with pytest.raises(UserError, match=message):
        cache.load(catalog.read(source), PREPARATION)
    monkeypatch.setattr(cache.Bar, "step", lambda *_: [file.unlink() for file in place.glob("*/journal.jsonl")])
    with pytest.raises(UserError, match=message):
        cache.load(catalog.read(source), PREPARATION)


@pytest.mark.parametrize("whole", [True, False])
def test_an_image_that_has_become_readable_is_read(whole, source, monkeypatch, decoded):
    good = cache.load(catalog.read(source), Preparation((6, 6), 3, "crop"))
    shutil.rmtree(good.path.parent)
    read, denied = items.content, ["cat/3.png", *(f"cat/{i}.png" for i in range(4, 9) if not whole)]

    def flaky(path, name):
        if path.endswith(tuple(denied)):
            raise UserError(f"{name}: Permission denied")
        return read(path, name)

    monkeypatch.setattr(items, "content", flaky)
    if whole:
        found = cache.load(catalog.read(source), PREPARATION, skip=True)
        assert list(found.unreadable) == [3, 23] and found.hash != good.hash
    else:
        monkeypatch.setattr(cache, "FIRST", 4)
        monkeypatch.setattr(cache, "TASK", 0)
        with pytest.raises(UserError, match="Permission denied"):
            cache.load(catalog.read(source), PREPARATION)
    denied[:] = ["test/cat/3.png"]
    found = cache.load(catalog.read(source), PREPARATION, skip=True)
    assert found.unreadable == {23: "test/cat/3.png: Permission denied"}
    denied[:] = ["nothing"]
    assert cache.load(catalog.read(source), PREPARATION) == good and np.array_equal(pixels(good), expected(source))
    assert cache.load(catalog.read(source), PREPARATION) == good


def test_unreadable_images_are_refused_with_their_names_or_left_black(source, tmp_path, decoded):
    names = [tmp_path / "set" / "test" / "dog" / f"{i}.png" for i in range(3)]
    names[0].write_bytes(b"")
    names[1].write_text("dear reader")
    names[2].write_bytes(names[2].read_bytes()[:99])
    message = (
        r"set has images that cannot be read: test/dog/0\.png is empty; test/dog/1\.png is no image that can be read "
        r"\(unknown format\); test/dog/2\.png cannot be decoded \(.*\)\. Mend or remove them \(semisynth data check"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            cache.load(catalog.read(source), PREPARATION)
    found = cache.load(catalog.read(source), PREPARATION, skip=True)
    assert set(found.unreadable) == {30, 31, 32} and not pixels(found)[30:33].any()
    assert len(decoded) == 40


def test_five_unreadable_images_end_it(source, tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(cache, "FIRST", 4)
    monkeypatch.setattr(cache, "TASK", 0)
    for i in range(7):
        (tmp_path / "set" / "train" / "cat" / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"(train/cat/\d\.png is empty; ){4}train/cat/4\.png is empty\. Mend"):
        cache.load(catalog.read(source), PREPARATION)
    assert decoded == list(range(5))
    assert len(cache.load(catalog.read(source), PREPARATION, skip=True).unreadable) == 7 and len(decoded) == 40


def test_a_full_disk_is_told_before_anything_is_decoded(source, place, monkeypatch, decoded):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        UserError, match=r"cannot be kept in \S+: No space left on device\. Make room, or set SEMISYNTH_CACHE"
    ):
        cache.load(catalog.read(source), PREPARATION)
    assert decoded == [] and {file.name for file in next(place.iterdir()).iterdir()} == {"lock"}


def test_a_place_that_cannot_be_written_is_told(source, place):
    place.write_text("a file")
    with pytest.raises(UserError, match=r"cannot be kept in .*: (Not a directory|File exists)\. Make room"):
        cache.load(catalog.read(source), PREPARATION)


def test_tasks_cover_their_gaps_when_their_size_changes(source):
    filling = cache._Filling(catalog.read(source), PREPARATION, cache.folder(), (40, 3, 6, 6), False, size=2)
    found = []
    for rows in filling._tasks([range(3, 9), range(20, 31)]):
        found += rows
        filling.size = 4 if len(found) < 8 else 1
    assert found == [*range(3, 9), *range(20, 31)]


def test_progress_is_told_where_decoding_takes_longer_than_a_moment(source, monkeypatch, capfd):
    monkeypatch.setattr(cache, "MOMENT", 0)
    monkeypatch.setattr(cache, "TOLD", 0)
    cache.load(catalog.read(source), PREPARATION)
    assert "40/40 images" in capfd.readouterr().err.replace("\n", "")


def test_it_lies_in_the_users_cache_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SEMISYNTH_CACHE")
    assert cache.folder() == tmp_path / ".cache" / "semisynth"
