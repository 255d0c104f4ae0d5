"""What a set of images holds, and what may be wrong with it: nothing is changed, and torch is not needed.

Images are compared as gray thumbnails. Near duplicates are found by a difference hash (neighbouring pixels compared)
in bands, which finds every pair that differs in up to three of 64 bits, and confirmed pixel by pixel. A label is
suspicious when the nearest thumbnails of other images agree on another class: a hint, and no verdict.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from semisynth.data.catalog import SPLITS, Catalog
from semisynth.data.decode import converted
from semisynth.data.items import Item
from semisynth.errors import UserError

SIDE = 16  # of a thumbnail
BANDS, BITS = 4, 16  # of a hash
CLOSE = 3  # bits in which the hashes of near duplicates may differ
SAME = 4.0  # grey levels by which their thumbnails may differ on average
CROWD = 200  # images with a band in common, above which they are plain or all alike: pairs among them are not sought
NEIGHBOURS, AGREED = 5, 5  # how many are asked, and how many must agree on one other class
MANY = 50_000  # labeled images up to which labels are questioned


@dataclass(frozen=True)
class Seen:
    """What is kept of each readable image, row by row of the catalog."""

    rows: npt.NDArray[np.int64]
    sizes: Sequence[tuple[int, int]]
    digests: Sequence[bytes]
    thumbnails: npt.NDArray[np.uint8]
    hashes: npt.NDArray[np.uint64]
    channels: Counter[str]
    done: Counter[str]


@dataclass
class Reading:
    """What was seen so far, and the unreadable images by their names."""

    rows: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    thumbnails: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    channels: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)

    def look(self, row: int, item: Item) -> None:
        """Read an image; one that cannot be is noted."""
        try:
            image, done = converted(item.read(), item.name)
        except UserError as error:
            self.unreadable[item.name] = str(error)
            return
        self.rows.append(row)
        self.sizes.append((image.height, image.width))
        self.digests.append(
            hashlib.blake2b(image.convert("RGB").tobytes(), digest_size=16, key=repr(image.size).encode()).digest()
        )
        gray = image if image.mode == "L" else image.convert("L")
        self.thumbnails.append(np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX)))
        self.hashes.append(difference_hash(gray))
        self.channels["gray" if image.mode == "L" else "RGB"] += 1
        self.done.update(done)

    def seen(self) -> Seen:
        """All of it."""
        thumbnails = np.stack(self.thumbnails) if self.rows else np.empty((0, SIDE, SIDE), np.uint8)
        rows, hashes = np.array(self.rows, np.int64), np.array(self.hashes, np.uint64)
        return Seen(rows, self.sizes, self.digests, thumbnails, hashes, self.channels, self.done)


def difference_hash(gray: Image.Image) -> int:
    """64 bits: whether each of 8x8 pixels is darker than the one right of it."""
    small = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(small[:, :-1] < small[:, 1:]).tobytes(), "big")


def check(catalog: Catalog, step: Iterable[int] | None = None) -> dict[str, Any]:
    """What is in a catalog and what may be wrong with it, as plain numbers and names ready for JSON.

    step: the rows in order, by which a caller shows progress. After Ctrl-C it is what was found until then.
    """
    reading = Reading()
    with contextlib.suppress(KeyboardInterrupt):
        for row in range(len(catalog.items)) if step is None else step:
            reading.look(row, catalog.items[row])
    seen = reading.seen()
    exact = list(_exact(seen))
    return {
        "source": catalog.name,
        "images": len(catalog.items),
        "looked_at": len(seen.sizes) + len(reading.unreadable),
        "classes": _counts(catalog),
        "sizes": _common(f"{w}x{h}" for h, w in seen.sizes),
        "channels": dict(seen.channels),
        "conversions": dict(seen.done.most_common()),
        "notes": [*catalog.notes, *_kept_together(catalog, seen, exact)],
        "unreadable": reading.unreadable,
        "duplicates": [_group(catalog, seen.rows[group]) for group in exact],
        "near_duplicates": [_group(catalog, seen.rows[list(pair)]) for pair in near(seen, exact)],
        "suspicious_labels": list(_suspicious(catalog, seen)),
        "labels_questioned": _questioned(catalog, seen) is not None,
    }


def problems(found: dict[str, Any]) -> int:
    """How many findings should be mended: unreadable images, and copies that cross splits or have two labels."""
    copies = [*found["duplicates"], *found["near_duplicates"]]
    return len(found["unreadable"]) + sum(1 for group in copies if group["across_splits"] or group["contradictory"])


def _counts(catalog: Catalog) -> dict[str, dict[str, int]]:
    """Images of each split, by class where they have one."""
    counts = {name: dict.fromkeys(SPLITS[:-1], 0) for name in catalog.classes}
    for label, split in zip(catalog.labels.tolist(), catalog.splits.tolist(), strict=True):
        if label >= 0:
            counts[catalog.classes[label]][SPLITS[split]] += 1
    unlabeled = int((catalog.labels < 0).sum())
    return counts | ({"": {SPLITS[-1]: unlabeled}} if unlabeled else {})


def _common(values: Iterable[str], most: int = 10) -> dict[str, int]:
    """The commonest values; the rest together."""
    counts = Counter(values).most_common()
    rest = sum(count for _, count in counts[most:])
    return dict(counts[:most]) | ({f"{len(counts) - most} others": rest} if rest else {})


def _group(catalog: Catalog, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Images that are copies of one another: their names, and whether that is worse than untidy."""
    splits, labels = set(catalog.splits[rows].tolist()), set(catalog.labels[rows].tolist())
    return {
        "images": [catalog.items[row].name for row in rows.tolist()],
        "labels": [catalog.classes[label] if label >= 0 else "" for label in catalog.labels[rows].tolist()],
        "splits": [SPLITS[split] for split in catalog.splits[rows].tolist()],
        "across_splits": len(splits) > 1,
        "contradictory": len(labels - {-1}) > 1,
    }


# ---- copies ---------------------------------------------------------------------------------------------------------


def _exact(seen: Seen) -> Iterator[list[int]]:
    """Positions of images whose pixels are the same."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for position, digest in enumerate(seen.digests):
        groups[digest].append(position)
    yield from (group for group in groups.values() if len(group) > 1)


def near(seen: Seen, exact: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Pairs of positions whose thumbnails are nearly the same and that are not exact copies."""
    first = {position: group[0] for group in exact for position in group}
    single = np.array([p for p in range(len(seen.hashes)) if first.get(p, p) == p], np.int64)
    pairs: set[tuple[int, int]] = set()
    for band in range(BANDS):
        keys = (seen.hashes[single] >> np.uint64(band * BITS)) & np.uint64(2**BITS - 1)
        order = keys.argsort(kind="stable")
        for alike in np.split(single[order], np.flatnonzero(np.diff(keys[order])) + 1):
            if 1 < len(alike) <= CROWD:
                pairs |= set(_close(seen, np.sort(alike)))
    return sorted(pairs)


def _close(seen: Seen, members: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The pairs of these that are near duplicates."""
    hashes, thumbnails = seen.hashes[members], seen.thumbnails[members].reshape(len(members), -1).astype(np.int16)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1)
    for i in range(len(members) - 1):
        apart = (bits[i + 1 :] != bits[i]).sum(1) <= CLOSE
        apart[apart] = np.abs(thumbnails[i + 1 :][apart] - thumbnails[i]).mean(1) <= SAME
        yield from ((int(members[i]), int(members[i + 1 + j])) for j in np.flatnonzero(apart))


def _kept_together(catalog: Catalog, seen: Seen, exact: Iterable[Sequence[int]]) -> Iterator[str]:
    """How many copies there are among the training images, where some of these will be set aside."""
    train = SPLITS.index("train")
    copies = sum(max(int((catalog.splits[seen.rows[group]] == train).sum()) - 1, 0) for group in exact)
    lacking = [split for split in ("validation", "test") if SPLITS.index(split) not in catalog.splits]
    if copies and lacking:
        what = " and ".join(lacking)
        yield f"copies among the training images: {copies}; when some are set aside for {what}, copies stay together"


# ---- labels ---------------------------------------------------------------------------------------------------------


def _questioned(catalog: Catalog, seen: Seen) -> npt.NDArray[np.int64] | None:
    """The positions of labeled images, or None if they are too few or too many to question their labels."""
    labeled = np.flatnonzero(catalog.labels[seen.rows] >= 0)
    return labeled if NEIGHBOURS < len(labeled) <= MANY else None


def _suspicious(catalog: Catalog, seen: Seen) -> Iterator[dict[str, Any]]:
    """Images whose nearest neighbours agree on another class."""
    from sklearn.neighbors import NearestNeighbors

    labeled = _questioned(catalog, seen)
    if labeled is None:
        return
    x = seen.thumbnails[labeled].reshape(len(labeled), -1).astype(np.float32)
    x -= x.mean(1, keepdims=True)  # light is not what makes a class
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    index = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(x).kneighbors(return_distance=False)
    labels = catalog.labels[seen.rows[labeled]]
    for position, around in enumerate(labels[index]):
        votes = np.bincount(around, minlength=len(catalog.classes))
        other = int(votes.argmax())
        if other != labels[position] and votes[other] >= AGREED:
            name = catalog.items[int(seen.rows[labeled[position]])].name
            yield {"image": name, "label": catalog.classes[labels[position]], "neighbours": catalog.classes[other]}


# ---- telling --------------------------------------------------------------------------------------------------------


def told(found: dict[str, Any], most: int = 5) -> str:
    """The findings as text; of long lists only the first are shown."""
    lines = [f"{found['source']}: {found['images']} images, {len([*filter(None, found['classes'])])} classes"]
    if found["looked_at"] < found["images"]:
        lines.append(f"only the first {found['looked_at']} were looked at")
    lines += [
        f"  {name or 'no label'}: " + ", ".join(f"{count} {split}" for split, count in counts.items() if count)
        for name, counts in found["classes"].items()
    ]
    for name in ("sizes", "channels", "conversions"):
        lines += [f"{name}: " + ", ".join(f"{what} ({count})" for what, count in found[name].items())]
    lines += [f"note: {note}" for note in found["notes"]]
    lines += _listed("unreadable images", [*found["unreadable"].values()], most)
    for name, title in (("duplicates", "copies of one image"), ("near_duplicates", "nearly the same image")):
        lines += _listed(title, [_copies(group) for group in _worst_first(found[name])], most)
    lines += _listed(
        "suspicious labels, by their nearest neighbours",
        [_suspicion(entry) for entry in found["suspicious_labels"]],
        most,
    )
    if not found["labels_questioned"]:
        lines += [f"labels were not questioned: that needs from {NEIGHBOURS + 1} to {MANY:,} labeled images"]
    bad = problems(found)
    return "\n".join(
        [*(line for line in lines if not line.endswith(": ")), f"{bad or 'no'} finding{'s' * (bad != 1)} to mend"]
    )


def _listed(title: str, entries: Sequence[str], most: int) -> list[str]:
    more = [f"  ... and {len(entries) - most} more"] if len(entries) > most else []
    return [f"{title}: {len(entries)}", *(f"  {entry}" for entry in entries[:most]), *more]


def _worst_first(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(groups, key=lambda group: (not group["contradictory"], not group["across_splits"]))


def _copies(group: dict[str, Any]) -> str:
    places = zip(group["images"], group["labels"], group["splits"], strict=True)
    named = ", ".join(f"{image} ({split}{f', {label}' if label else ''})" for image, label, split in places)
    return named + (": two labels" if group["contradictory"] else "")


def _suspicion(entry: dict[str, str]) -> str:
    return f"{entry['image']} is labeled {entry['label']}, its neighbours {entry['neighbours']}"
