"""Whatever a manifest, an image, a configuration or a run directory holds, a command ends well or tells a mistake.

Hypothesis makes the inputs, the same ones each time. Of every command: it ends in time with code 0, 1 or 2, not with an
exception; a mistake is one paragraph; and a file is there, whole, exactly when the command ended well.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semisynth import cli
from semisynth.data import cache, catalog
from semisynth.data.decode import Preparation
from semisynth.engine import Engine
from semisynth.recipes import single

SECONDS = 30  # of one command; it takes milliseconds
KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


def examples(count: int) -> Callable[[Any], Any]:
    """So many, whatever the machine: they are derived from the test's name."""
    silent = list(HealthCheck)
    return settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=silent)


@pytest.fixture
def told(capsys) -> Iterator[Callable[..., int]]:
    """What runs a command and returns its code, after a look at what it told."""

    def late(*_: object) -> None:
        raise AssertionError(f"still at work after {SECONDS} s")

    def run(*arguments: str | Path) -> int:
        signal.alarm(SECONDS)
        try:
            code = cli.main(list(map(str, arguments)))
        finally:
            signal.alarm(0)
        error = capsys.readouterr().err
        assert code in (0, 1, 2)
        if code == 2:
            *_, last = error.rstrip("\n").split("\n")  # above it may be lines about single images
            assert last.startswith("semisynth: error: ") and len(last) > 30 and "Traceback" not in error
        return code

    before = signal.signal(signal.SIGALRM, late)
    yield run
    signal.signal(signal.SIGALRM, before)


def leaves_nothing_half(out: Path, code: int) -> None:
    """What a command wrote is there, and nothing beside it, or nothing is; it is gone then."""
    assert out.exists() == (code != 2) and not list(out.parent.glob("*.part"))
    out.unlink(missing_ok=True)


# ---- manifests ------------------------------------------------------------------------------------------------------

CELLS = {
    "path": ("a.png", "b.png", "c.png", "./c.png", "none.png", "folder", "../a.png", "/etc/a.png", "s3://b/a.png"),
    "label": ("cat", "cat", "dog", "dog", "", " ", "Cat", "caf\udce9", "caf\\xe9", "1"),
    "split": ("train", "train", "", "validation", "test", "unlabeled", "trian"),
}
odd = st.text(max_size=8) | st.sampled_from([" ", '"', "\r", "\x85", "\ufeff", "\ud800", "x\0y", "=1+1"])
heads = st.permutations(["path", "label", "split", "image", "label"]).flatmap(
    lambda names: st.integers(0, 5).map(lambda count: names[:count])
)


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """The usual value, or one time in six another."""
    return st.integers(0, 5).flatmap(lambda n: st.just(usual) if n else st.sampled_from(others))


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A manifest that is nearly right."""
    head = draw(mostly(("path", "label", "split"), None)) or draw(heads)
    rows = [["a.png", "cat", "train"], ["b.png", "dog", "train"]] if len(head) == 3 else []
    for _ in range(draw(st.integers(0, 3))):
        rows.append([draw(st.sampled_from(CELLS.get(name, ("",)))) for name in head])
        if not draw(st.integers(0, 3)):
            rows[-1][draw(st.integers(0, len(head)) if head else st.just(0)) :] = [draw(odd)]
    mark, end = draw(mostly(",", "\t", ";")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(mark.join(row) for row in [head, *rows]) + draw(mostly(end, "", '"'))
    return text.encode(draw(mostly("utf-8", "utf-16-le", "utf-8-sig")), "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, contents: tuple[bytes, ...]) -> bytes:
    """One of these with a few bytes changed, and perhaps cut off or with more behind."""
    content = bytearray(draw(st.sampled_from(contents)))
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[place] = value
    cut = draw(st.integers(0, 3 * len(content)))
    return bytes(content[:cut]) + draw(st.just(b"") | st.binary(max_size=9))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with images, and manifests of them in every format."""
    import pyarrow
    from pyarrow import parquet

    root = tmp_path_factory.mktemp("any")
    (root / "folder").mkdir()
    images = [pictures.save(root / f"{name}.png", i, (8, 8), "L").read_bytes() for i, name in enumerate("abc")]
    columns = {"label": ["cat", "dog", None], "split": ["train"] * 3}
    parquet.write_table(pyarrow.table({"path": ["a.png", "b.png", "c.png"], **columns}), root / "paths.parquet")
    parquet.write_table(pyarrow.table({"image": images, **columns}), root / "images.parquet")
    pixels = np.random.RandomState(0).randint(256, size=(3, 8, 8)).astype(np.uint8)
    np.savez(root / "arrays.npz", images=pixels, labels=[0, 1, -1])
    np.savez_compressed(root / "packed.npz", images=pixels / 255, labels=[0, 1, -1], classes=["cat", "dog"])
    return root


def checks(told: Callable[..., int], source: Path) -> int:
    out = source.parent / "found" / "check.json"
    out.parent.mkdir(exist_ok=True)
    code = told("data", "check", source, "--out", out)
    assert code == 2 or json.loads(out.read_text())["images"] > 0
    leaves_nothing_half(out, code)
    return code


def test_any_table_is_read_or_refused(place, told):
    codes = []

    @examples(500)
    @given(tables() | tables() | tables() | st.binary(max_size=60), st.sampled_from([".csv", ".tsv"]))
    def test(content: bytes, suffix: str) -> None:
        (place / f"manifest{suffix}").write_bytes(content)
        codes.append(checks(told, place / f"manifest{suffix}"))

    test()
    assert {0, 2} <= set(codes) and codes.count(2) < 0.9 * len(codes)


def test_any_archive_is_read_or_refused(place, told):
    names = ("paths.parquet", "images.parquet", "arrays.npz", "packed.npz")
    files = {name: (place / name).read_bytes() for name in names}
    codes = []

    @examples(250)
    @given(st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), damaged((files[name],)))))
    def test(case: tuple[str, bytes]) -> None:
        path = place / f"damaged-{case[0]}"
        path.write_bytes(case[1])
        codes.append(checks(told, path))

    test()
    assert {0, 2} <= set(codes)


def test_any_cache_is_read_or_made_again(place, monkeypatch):
    monkeypatch.setenv("SEMISYNTH_CACHE", str(place / "cache"))
    pictures.folder(place / "cached", 2, size=(4, 4))
    images, preparation = catalog.read(str(place / "cached")), Preparation((4, 4), 3, "crop")
    whole = cache.load(images, preparation)
    folder, pixels = whole.path.parent, whole.path.read_bytes()
    meta = (folder / "meta.json").read_bytes()
    journal = json.dumps({"first": 3, "count": 2, "hash": 1, "done": {}, "unreadable": {}}).encode() + b"\n"
    metas = altered(json.loads(meta)) | damaged((meta,)) | st.binary(max_size=60)
    lines = altered(json.loads(journal)) | damaged((journal,)) | damaged((2 * journal,))

    @examples(200)
    @given(st.tuples(st.just("meta.json"), metas) | st.tuples(st.just("journal.jsonl"), lines))
    def test(case: tuple[str, bytes]) -> None:
        for file in folder.iterdir():
            file.unlink()
        (folder / ("images.u8" if case[0] == "meta.json" else "images.part")).write_bytes(pixels)
        (folder / case[0]).write_bytes(case[1])
        found = cache.load(images, preparation, skip=True)
        assert found.shape == whole.shape and found.path.read_bytes() == pixels
        assert {file.name for file in folder.iterdir()} <= {"images.u8", "meta.json", "journal.jsonl", "lock"}

    test()


# ---- images and run directories -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run, and its log and checkpoint."""
    out = tmp_path_factory.mktemp("any") / "run"
    single.fit(tiny.config("supervised"), out, show=False)
    return out


def test_any_image_is_labeled_or_refused(place, run, told):
    kinds = tuple(pictures.encoded(pictures.image(i), kind) for i, kind in enumerate(KINDS))
    kinds += (pictures.encoded(pictures.image(9, mode="P"), "PNG"), pictures.encoded(pictures.image(9), "TIFF"))
    image, out, codes = place / "image.png", place / "found" / "table.csv", []

    @examples(300)
    @given(damaged(kinds) | st.binary(max_size=60))
    def test(content: bytes) -> None:
        image.write_bytes(content)
        codes.append(told("predict", run, image, "--out", out))
        if codes[-1] == 0:
            with out.open(newline="") as file:
                head, row = csv.reader(file)
            assert len(row) == len(head) == 13 and row[0] == str(image)
        leaves_nothing_half(out, codes[-1])

    test()
    assert set(codes) == {0, 2}


numbers = st.sampled_from([-1, 0, 1, 2, 3, 7, 2**31, 2**63, 2**64, 10**400, 0.0, -0.5, 0.5, 1e-300, 1e308])
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from([float("nan"), float("inf"), float("-inf")]) | odd,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd, inner, max_size=2),
    max_leaves=3,
)


def spots(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value in it."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from spots(value, (*path, key))


@st.composite
def altered(draw: st.DrawFn, content: dict[str, Any]) -> bytes:
    """JSON in which some values are others, are gone, or are new."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from([*spots(content), ("new",)]))
        at: Any = content
        for key in path:
            at = at[key]
        if draw(st.booleans()) and last != "new":
            del at[last]
        else:
            at[last] = draw(anything)
    return json.dumps(content).encode()


class Begun(BaseException):
    """Training would have begun."""


def test_any_configuration_begins_or_is_refused(place, told, monkeypatch):
    path, out, began = place / "config.json", place / "found" / "run", []

    def begin(*_: object, **__: object) -> None:
        began.append(1)
        raise Begun

    # Training itself is as long as was asked for: these end where it would begin.
    monkeypatch.setattr(Engine, "fit", begin)
    good = [tiny.config(method, "glyphs").flat() for method in ("supervised", "uda", "gan", "mpssl", "pssl", "mgr")]
    texts = tuple(json.dumps(content).encode() for content in good)

    @examples(250)
    @given(st.sampled_from(good).flatmap(altered) | damaged(texts))
    def test(content: bytes) -> None:
        path.write_bytes(content)
        started = len(began)
        with contextlib.suppress(Begun):
            code = told("fit", "--config", path, "--out", out)
            assert code == 2
        if len(began) > started:
            assert json.loads((out / "config.json").read_text())
            shutil.rmtree(out)
        assert not out.exists()

    test()
    assert len(began) > 20


def test_any_run_directory_is_used_or_refused(place, run, told):
    texts = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in (".json", ".jsonl")}
    objects = {name: json.loads(texts[name]) for name in ("config.json", "result.json")}
    small = (run / "model.safetensors").read_bytes()
    cases = st.one_of(
        *(st.tuples(st.just(name), altered(content)) for name, content in objects.items()),
        *(st.tuples(st.just(name), damaged((content,))) for name, content in texts.items()),
        st.tuples(st.just("model.safetensors"), damaged((small,))),
    )
    out = place / "found"
    codes: dict[str, set[int]] = {"predict": set(), "report": set(), "evaluate": set()}

    @examples(250)
    @given(cases)
    def test(case: tuple[str, bytes]) -> None:
        name, content = case
        kept = (run / name).read_bytes()
        (run / name).write_bytes(content)
        try:
            for command in codes:
                more = {"predict": (place / "a.png", "--out", out / "o.csv"), "report": ("--out", out / "o.csv")}
                code = told(command, run, *more.get(command, ()))
                codes[command].add(code)
                if command != "evaluate":
                    leaves_nothing_half(out / "o.csv", code)
        finally:
            (run / name).write_bytes(kept)

    test()
    assert all(found == {0, 2} for found in codes.values())


def test_any_unfinished_run_goes_on_or_is_refused(place, run, told):
    names = ("config.json", "data.json", "log.jsonl", "checkpoint.pt")
    contents = {name: (run / name).read_bytes() for name in names}
    again, codes = place / "again", []
    again.mkdir()

    @examples(60)
    @given(st.sampled_from(names[1:]).flatmap(lambda name: st.tuples(st.just(name), damaged((contents[name],)))))
    def test(case: tuple[str, bytes]) -> None:
        for name, content in (contents | dict([case])).items():
            (again / name).write_bytes(content)
        codes.append(told("fit", "--config", run / "config.json", "--out", again))
        assert not list(again.glob("*.part")) and (again / "result.json").exists() == (codes[-1] == 0)
        for path in again.iterdir():
            path.unlink()

    test()
    assert set(codes) == {0, 2}
