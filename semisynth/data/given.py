"""Images to be looked at, whatever is said of their labels: files, folders, manifests, arrays, remote or not."""

from __future__ import annotations

import os
from collections.abc import Sequence

from semisynth.data import hub, manifests, npz
from semisynth.data.catalog import HUB, MANIFESTS, SUFFIXES, Tree
from semisynth.data.items import Arrays, Files, Item, joined, remote, stamp
from semisynth.data.parquet import Parquet
from semisynth.errors import UserError


def images(source: str) -> Sequence[Item]:
    """The images of one source; `UserError` where there are none.

    They are named as they can be opened from here, with what cannot be printed in escapes; those of a manifest as it
    names them; others "row 12", "images[12]".
    """
    suffix = os.path.splitext(source)[1].lower()
    if source.startswith(HUB):
        found = hub.read(source.removeprefix(HUB), source).items
    elif os.path.isdir(source) or (remote(source) and suffix not in (*MANIFESTS, *SUFFIXES)):
        found = Files("", (joined(source, path) for path in Tree(source).walk("")))
    elif not remote(source) and not os.path.exists(source):
        raise UserError(f"{source} does not exist: give images, folders of images, or a file {', '.join(MANIFESTS)}.")
    else:
        found = _listed(source, suffix) if suffix in MANIFESTS else Files("", [source])
    if not len(found):
        raise UserError(f"{source} holds no image: they are told by their names, which end in {', '.join(SUFFIXES)}.")
    return found


def _listed(path: str, suffix: str) -> Sequence[Item]:
    if suffix == ".npz":
        arrays = npz.loaded(path, ["images"])
        if not arrays:
            raise UserError(f"{path}: the array 'images' is missing.")
        return Arrays(npz.eight_bits(path, arrays["images"])[0], stamp(path))
    if suffix != ".parquet":
        rows = manifests.lines(path, "\t" if suffix == ".tsv" else ",", ["path"])
        return Files(os.path.dirname(path), (manifests.inside(f"{path}, {where}", row[0]) for where, row in rows))
    table = Parquet.open(path)
    if "image" in table.columns:
        return table
    cells = ((f"{path}, row {i}", row[0] or "") for i, row in table.rows(["path"]))
    return Files(os.path.dirname(path), (manifests.inside(where, name) for where, name in cells))
