"""Where one's own images are: each item is a name to show, a stamp that tells whether it changed, and a way to read it.

Sequences of them are compact and make an item when it is asked for, so that a million take tens of megabytes.
"""

from __future__ import annotations

import os
import stat
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from semisynth.errors import UserError, line

LARGEST = 2**29  # bytes of a file: more is no image that could be decoded


class Item(Protocol):
    """One image, wherever it is; reading it raises `UserError` if it cannot be read."""

    @property
    def name(self) -> str: ...
    @property
    def stamp(self) -> str: ...
    def read(self) -> bytes | npt.NDArray[Any]: ...


class Items(Sequence[Item]):
    """Items by their row."""

    @abstractmethod
    def at(self, row: int) -> Item:
        """The item of a row from 0 on."""

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> list[Item]: ...
    def __getitem__(self, row: int | slice) -> Item | list[Item]:
        rows = range(len(self))[row]  # which also refuses a row that there is not
        return self.at(rows) if isinstance(rows, int) else [self.at(i) for i in rows]


def shown(name: str) -> str:
    r"""A name that can be printed: what is no character of UTF-8, or none to be seen, as \x.. or the like."""
    if name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def remote(path: str) -> bool:
    """Whether fsspec is asked for this path."""
    return "://" in path


def joined(root: str, path: str) -> str:
    """A path below a root, which may be remote."""
    return f"{root}{'' if root.endswith('/') else '/'}{path}" if remote(root) else os.path.join(root, path)


def parent(path: str) -> str:
    """The folder that a file is in."""
    return path.rpartition("/")[0] + "/" if remote(path) else os.path.dirname(path) or "."


def reason(error: Exception) -> str:
    """Why a file system refuses; each of the remote ones has errors of its own."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    kind, told = type(error).__name__, line(error)
    return kind if told == kind else f"{kind}: {told}"


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path on it; `UserError` where there is none for its protocol."""
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
    except Exception as error:
        raise UserError(
            f"{url} cannot be reached: {line(error)}. Install what is missing, or copy the data here."
        ) from error
    return system, path


def content(path: str, name: str) -> bytes:
    """The bytes of a file, local or remote; `UserError` under its shown name if there are none to be had."""
    if remote(path):
        return _fetched(path, name)
    try:
        with open(path, "rb", buffering=0, opener=_opener) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{name} is no file")
            if found.st_size > LARGEST:
                raise UserError(f"{name} has {found.st_size:,} bytes: more than {LARGEST:,} is no image")
            return file.readall()
    except IsADirectoryError as error:
        raise UserError(f"{name} is no file") from error
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or line(error)}") from error


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would be waited for


def listed(path: str) -> bytes:
    """The bytes of a remote file that tells of images; `UserError`, with the remedy, if there are none to be had."""
    try:
        return content(path, path)
    except UserError as error:
        raise UserError(f"{error}. Check the address and your access to it.") from error


def _fetched(path: str, name: str) -> bytes:
    system, inner = filesystem(path)
    try:
        return bytes(system.cat_file(inner))
    except Exception as error:
        raise UserError(f"{name} cannot be read: {reason(error)}") from error


def stamp(path: str) -> str:
    """Path, size and time of change; a missing file has a stamp too, and fails when it is read."""
    try:
        if remote(path):
            system, inner = filesystem(path)
            return f"{path} {system.ukey(inner)}"
        found = os.stat(path)
        return f"{os.path.abspath(path)} {found.st_size} {found.st_mtime_ns}"
    except UserError:
        raise
    except Exception as error:
        return f"{path} {type(error).__name__}"


@dataclass(frozen=True)
class File:
    """A file below a root."""

    root: str
    path: str

    @property
    def name(self) -> str:
        """The path below the root."""
        return shown(self.path)

    @property
    def stamp(self) -> str:
        """Of this file."""
        return stamp(joined(self.root, self.path))

    def read(self) -> bytes:
        """Its bytes."""
        return content(joined(self.root, self.path), self.name)


class Files(Items):
    """Files below a root; their paths are one string of bytes, as a list of them would take many times that."""

    def __init__(self, root: str, paths: Iterable[str]) -> None:
        self.root, self.text, self.ends = root, bytearray(), array("q", [0])
        for path in paths:
            self.text += path.encode("utf-8", "surrogateescape")
            self.ends.append(len(self.text))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def at(self, row: int) -> File:
        """The file of a row."""
        text = self.text[self.ends[row] : self.ends[row + 1]]
        return File(self.root, text.decode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class Pixels:
    """An image in memory: (h, w) or (h, w, c)."""

    name: str
    stamp: str
    pixels: npt.NDArray[Any]

    def read(self) -> npt.NDArray[Any]:
        """The array."""
        return self.pixels


class Arrays(Items):
    """Images in memory: (n, h, w) or (n, h, w, c)."""

    def __init__(self, images: npt.NDArray[Any], stamp: str) -> None:
        self.images, self.stamp = images, stamp

    def __len__(self) -> int:
        return len(self.images)

    def at(self, row: int) -> Pixels:
        """The image of a row."""
        return Pixels(f"images[{row}]", f"{self.stamp}[{row}]", np.asarray(self.images[row]))
