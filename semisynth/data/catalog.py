"""What one's own data are: where each image is, its label and its split. Nothing is decoded, and torch is not needed.

A folder is `train/<class>/*`, or `<class>/*` where there is no `train`, and beside them, where there are,
`validation/<class>/*`, `test/<class>/*` and, at any depth, `unlabeled/*`. `manifests` and `hub` read the rest.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from semisynth.data.items import Files, Item, filesystem, joined, reason, remote, shown
from semisynth.errors import UserError

SPLITS = ("train", "validation", "test", "unlabeled")
UNLABELED = SPLITS.index("unlabeled")
MOST = 1000  # classes: a confusion matrix has the square of it
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm", ".pnm")
MANIFESTS = (".csv", ".tsv", ".parquet", ".npz")
HUB = "hub:"
WHOLE = r"[+-]?[0-9]{1,18}"  # a label that is a number
BUILT_IN = ("digits", "digits-others", "digits-pool", "glyphs", "letters")  # what `datasets` makes itself


@dataclass(frozen=True)
class Catalog:
    """All images of a source, with labels (n,) int64, -1 where there is none, and splits (n,), indices into `SPLITS`.

    notes: what was converted or odd, for the user to know.
    """

    name: str
    items: Sequence[Item]
    labels: npt.NDArray[np.int64]
    splits: npt.NDArray[np.uint8]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    @functools.cached_property
    def stamp(self) -> str:
        """A hash that changes with the path, the size or the time of change of any image."""
        digest = hashlib.blake2b(digest_size=16)
        for item in self.items:
            digest.update(item.stamp.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()


@dataclass
class Listing:
    """What a reader found, row by row: the label's text or None, and the split; `classes`, if they have an order.

    typed: whether labels were typed row by row, so that those which look alike are a mistake and no classes.
    """

    items: Sequence[Item]
    labels: list[str | None]
    splits: array[int]
    notes: list[str] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    typed: bool = False


def read(source: str, classes: bool = True) -> Catalog:
    """The catalog of a folder, a manifest, an .npz file or a set of `datasets`; `UserError` for what is wrong in it.

    classes: whether two classes are needed. Where they are not, and there are none, all images are unlabeled ones, and
    so are those of a folder that has nothing but images, and of a table without a column of labels.
    """
    from semisynth.data import hub, manifests, npz

    suffix = os.path.splitext(source)[1].lower()
    if source in BUILT_IN:
        raise UserError(f"'{source}' is a set that is built in: for a folder of that name give ./{source}.")
    if source.startswith(HUB):
        listing = hub.read(source.removeprefix(HUB), source)
    elif suffix in MANIFESTS and not os.path.isdir(source):
        if not remote(source) and not os.path.isfile(source):
            raise UserError(f"{source} {'is no file' if os.path.exists(source) else 'does not exist'}.")
        listing = npz.read(source, classes) if suffix == ".npz" else manifests.read(source, suffix, classes)
    elif remote(source) or os.path.isdir(source):
        listing = _folder(source, loose=not classes)
    elif os.path.exists(source):
        raise UserError(f"{source} is neither a folder nor a file that ends in {', '.join(MANIFESTS)}.")
    else:
        raise UserError(f"{source} does not exist: give a folder, a file ({', '.join(MANIFESTS)}) or hub:NAME.")
    labels = {label for label in listing.labels if label is not None}
    return assemble(source, listing) if classes or len(labels) > 1 else _unlabeled(source, listing, labels)


def _unlabeled(source: str, listing: Listing, labels: Iterable[str]) -> Catalog:
    """The catalog of a listing in which no label tells anything; `UserError` for one without images."""
    n = len(listing.items)
    if not n:
        raise UserError(f"{source} holds no image{''.join(f' ({note})' for note in listing.notes)}.")
    notes = [*listing.notes, *(f"one class only, '{shown(label)}': taken for no label" for label in labels)]
    return Catalog(source, listing.items, np.full(n, -1), np.full(n, UNLABELED, np.uint8), (), tuple(notes))


def assemble(source: str, listing: Listing) -> Catalog:
    """The catalog of a listing; `UserError` for labels that are alike, and for classes that cannot be learned."""
    texts = dict.fromkeys(text for text in listing.labels if text is not None)
    names = {text: shown(text.strip() if listing.typed else text) for text in texts}
    notes = [*listing.notes, *_alike(source, names, listing.typed)]
    classes = listing.classes or tuple(sorted(names.values(), key=_rank(names.values())))
    number = {text: classes.index(name) for text, name in names.items()} if len(classes) <= MOST else {}
    labels = np.fromiter((number.get(text or "", -1) for text in listing.labels), np.int64, len(listing.labels))
    splits = np.frombuffer(listing.splits, np.uint8).copy()
    if len(classes) > MOST:
        raise UserError(f"{source} has {len(classes)} classes, more than {MOST}: is the right column the label?")
    if len(classes) < 2:
        told = f"one class only, '{classes[0]}'" if classes else "no labeled image"
        told += f" ({'; '.join(notes)})" if notes else ""
        raise UserError(f"{source} has {told}: a classifier needs at least two classes.")
    train = np.bincount(labels[(splits == 0) & (labels >= 0)], minlength=len(classes))
    if not train.all():
        lacking = ", ".join(f"'{classes[c]}'" for c in np.flatnonzero(train == 0)[:5])
        raise UserError(f"{source}: no labeled training image of class {lacking}. Add some, or leave the class out.")
    return Catalog(source, listing.items, labels, splits, classes, tuple(notes))


def _alike(source: str, names: dict[str, str], typed: bool) -> Iterator[str]:
    """Notes of labels, by their text, that look alike; `UserError` if they were typed, or are shown as one."""
    seen: dict[str, str] = {}
    for text, name in names.items():
        for key in (text, name):
            other = seen.setdefault(unicodedata.normalize("NFKC", key.strip()).casefold(), text)
            if other != text:
                told = f"'{shown(other)}' and '{shown(text)}' differ only in case, blanks or encoding"
                if typed or names[other] == name:
                    raise UserError(f"{source}: the labels {told}: write the label of a class in one way.")
                yield f"the classes {told}"
                break


def _rank(names: Iterable[str]) -> functools.partial[tuple[int, str]]:
    """The key that sorts names, by their number when all are whole numbers."""
    numeric = all(re.fullmatch(WHOLE, name) for name in names)
    return functools.partial(_place, numeric)


def _place(numeric: bool, name: str) -> tuple[int, str]:
    return int(name) if numeric else 0, name


# ---- a folder -------------------------------------------------------------------------------------------------------


class Tree:
    """The folders below a root, local or remote, each listed once; symbolic links that lead back are counted.

    passed: files that are no images by their names; loose, inner: images in no class folder, and folders within one.
    """

    def __init__(self, root: str) -> None:
        self.root, self.loops, self.passed, self.loose = root, 0, 0, 0
        self.inner: list[str] = []
        self.seen = {self._identity("")}

    def names(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the images in a folder, sorted; hidden ones are left out."""
        folders, files = self._remote(folder) if remote(self.root) else self._local(folder)
        images = [name for name in files if name.lower().endswith(SUFFIXES)]
        self.passed += len(files) - len(images)
        return sorted(folders), sorted(images)

    def walk(self, folder: str) -> Iterator[str]:
        """The images at any depth; a folder that was seen is not entered again."""
        folders, images = self.names(folder)
        yield from (f"{folder}/{name}".lstrip("/") for name in images)
        for name in folders:
            inner = f"{folder}/{name}".lstrip("/")
            if self.enter(inner):
                yield from self.walk(inner)

    def enter(self, folder: str) -> bool:
        """Whether this folder was not seen under another path."""
        known = (identity := self._identity(folder)) in self.seen
        self.seen.add(identity)
        self.loops += known
        return not known

    def _identity(self, folder: str) -> str:
        return folder if remote(self.root) else os.path.realpath(os.path.join(self.root, folder))

    def _local(self, folder: str) -> tuple[list[str], list[str]]:
        place = os.path.join(self.root, folder)
        try:
            with os.scandir(place) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
            folders = {entry.name for entry in visible if entry.is_dir()}
        except OSError as error:
            raise UserError(f"{place} cannot be read: {error.strerror}. Mend it, or leave it out.") from error
        return sorted(folders), [entry.name for entry in visible if entry.name not in folders]

    def _remote(self, folder: str) -> tuple[list[str], list[str]]:
        place = joined(self.root, folder)
        system, path = filesystem(place)
        try:
            found = {info["name"].rstrip("/").rsplit("/", 1)[-1]: info["type"] for info in system.ls(path, detail=True)}
        except Exception as error:  # each file system has its own
            told = f"{place} cannot be read: {reason(error)}"
            raise UserError(f"{told}. Check the address and your access to it.") from error
        visible = {name: kind for name, kind in found.items() if not name.startswith(".")}
        folders = [name for name, kind in visible.items() if kind == "directory"]
        return folders, [name for name, kind in visible.items() if kind != "directory"]


def _folder(root: str, loose: bool = False) -> Listing:
    """A folder of each class; `UserError` if one is empty, or if a folder beside `train` is none that is known.

    loose: whether a folder of nothing but images is one of unlabeled images.
    """
    tree = Tree(root)
    tops, names = tree.names("")
    if loose and not tops:
        return Listing(Files(root, names), [None] * len(names), array("B", [UNLABELED] * len(names)), _oddities(tree))
    tree.loose = len(names)
    base = "train" if "train" in tops else ""
    if base and (unknown := [top for top in tops if top not in SPLITS]):
        raise UserError(f"{joined(root, unknown[0])}: beside train there may be {', '.join(SPLITS[1:])}. Rename it.")
    paths: list[str] = []
    labels: list[str | None] = []
    splits = array("B")
    for split, name in enumerate(SPLITS[:UNLABELED]):
        top = base if name == "train" else name
        for label in _classes(tree, top, tops):
            found = _images(tree, f"{top}/{label}".lstrip("/"))
            paths += found
            labels += [label] * len(found)
            splits.extend([split] * len(found))
    if "unlabeled" in tops and tree.enter("unlabeled"):
        paths += tree.walk("unlabeled")
        labels += [None] * (len(paths) - len(labels))
        splits.extend([UNLABELED] * (len(paths) - len(splits)))
    return Listing(Files(root, paths), labels, splits, _oddities(tree))


def _classes(tree: Tree, top: str, tops: Sequence[str]) -> list[str]:
    if top == "":
        return [name for name in tops if name not in SPLITS]
    if top not in tops or not tree.enter(top):
        return []
    folders, loose = tree.names(top)
    if loose and top != "train":
        raise UserError(
            f"{shown(joined(tree.root, f'{top}/{loose[0]}'))} is in no class folder: images for {top} need labels. "
            f"Move it to {top}/<class>, or to unlabeled if it has none."
        )
    tree.loose += len(loose)
    return folders


def _images(tree: Tree, path: str) -> list[str]:
    before = tree.passed
    inner, images = tree.names(path) if tree.enter(path) else ([], [])
    if not images:
        deeper = f", only folders such as '{shown(inner[0])}'" if inner else ""
        if tree.passed > before:
            deeper = f", only files of other names than *{', *'.join(SUFFIXES)}"
        raise UserError(f"class folder {shown(joined(tree.root, path))} holds no image{deeper}: fill it or remove it.")
    tree.inner += (f"{path}/{name}" for name in inner)
    return [f"{path}/{name}" for name in images]


def _oddities(tree: Tree) -> list[str]:
    deeper = sum(1 for folder in tree.inner if tree.enter(folder) for _ in tree.walk(folder))
    counts = {
        "images passed over, as they are in no class folder": tree.loose,
        "images passed over, as they are in a folder within a class folder": deeper,
        "files passed over, as their names are not those of images": tree.passed,
        "links not followed, as they lead to a folder that was read": tree.loops,
    }
    return [f"{what}: {count}" for what, count in counts.items() if count]
