"""Parquet files, read through pyarrow: their cells as text, and the images that lie in one."""

from __future__ import annotations

import functools
import io
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semisynth.data import items
from semisynth.data.items import Items
from semisynth.errors import UserError, line

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 1000  # of a group that is written: reading one image loads its group


class Parquet(Items):
    """The images in a column of a Parquet file, by its rows; row groups begin at `starts`."""

    def __init__(self, path: str, columns: Sequence[str], starts: Sequence[int], rows: int) -> None:
        self.path, self.columns, self.starts, self.total = path, columns, starts, rows
        self.stamp = items.stamp(path)

    @staticmethod
    def open(path: str) -> Parquet:
        """Of its metadata; `UserError` if it is no Parquet file."""
        try:
            meta = _parquet(path).metadata
        except UserError:
            raise
        except Exception as error:  # Arrow has many, and so has each file system
            raise UserError(f"{path} cannot be read ({line(error)}): it must be a Parquet file.") from error
        starts = [0]
        for group in range(meta.num_row_groups):
            starts.append(starts[-1] + meta.row_group(group).num_rows)
        return Parquet(path, meta.schema.to_arrow_schema().names, starts[:-1], meta.num_rows)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, list[str | None]]]:
        """The texts of these columns, None for a column that is not there."""
        there = [name for name in columns if name in self.columns]
        row = 0
        try:
            for batch in _parquet(self.path).iter_batches(columns=there):
                cells = {name: batch.column(name).to_pylist() for name in there}
                for i in range(batch.num_rows):
                    where = f"{self.path}, row {row}"
                    yield row, [text(cells[name][i], where) if name in cells else None for name in columns]
                    row += 1
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.path}, after row {row}, cannot be read ({line(error)}): restore it.") from error

    def __len__(self) -> int:
        return self.total

    def at(self, row: int) -> Cell:
        """The image of a row."""
        group = bisect_right(self.starts, row) - 1
        return Cell(self.path, self.stamp, row, group, row - self.starts[group])


@dataclass(frozen=True)
class Cell:
    """An image in a Parquet file: bytes, or a struct of bytes and path."""

    path: str
    of: str
    row: int
    group: int
    place: int

    @property
    def name(self) -> str:
        """The row."""
        return f"row {self.row}"

    @property
    def stamp(self) -> str:
        """The file's, and the row."""
        return f"{self.of}[{self.row}]"

    def read(self) -> bytes:
        """The image's bytes."""
        try:
            value = _group(self.path, self.of, self.group)[self.place].as_py()
        except Exception as error:
            raise UserError(f"{self.name} cannot be read: {items.reason(error)}") from error
        return embedded(value, self.name)


@functools.lru_cache(maxsize=1)
def _group(path: str, stamp: str, group: int) -> Any:
    # Kept, as its rows are read one after the other.
    return _parquet(path).read_row_group(group, columns=["image"]).column("image")


def _parquet(path: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow: pip install 'semisynth[parquet]'.") from error
    if not items.remote(path):
        return parquet.ParquetFile(path)
    system, inner = items.filesystem(path)
    return parquet.ParquetFile(system.open(inner, "rb"))


def embedded(value: object, name: str) -> bytes:
    """The bytes of an image as a table stores it: by themselves, or in a struct."""
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise UserError(f"{name} holds no image: it must be bytes, or a struct with bytes")
    return value


def text(value: object, where: str) -> str | None:
    """A cell as text, None where there is nothing: a table with gaps stores whole numbers as floats."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"{where} holds {type(value).__name__}: it must be text or a number.")


def read(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of a table that `write` wrote."""
    table = _parquet(str(path)).read(columns=list(columns))
    yield from zip(*(table.column(name).to_pylist() for name in columns), strict=True)


def png(image: Tensor) -> bytes:
    """An image (c, h, w) uint8 as a cell holds it."""
    from PIL import Image

    pixels, file = image.permute(1, 2, 0).numpy(), io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels).save(file, "png")
    return file.getvalue()


def require(path: Path) -> None:
    """`UserError` where such a table cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow: pip install 'semisynth[parquet]'.") from error


def write(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write a table of these columns, in bytes that depend on nothing else but Arrow's version."""
    require(path)
    import pyarrow
    from pyarrow import parquet

    from semisynth import weights  # loads torch, which reading does not need

    with weights.replacing(path) as beside:
        parquet.write_table(pyarrow.table(dict(columns)), beside, row_group_size=ROWS)


def vectors(rows: Tensor) -> Any:
    """A column of lists of numbers, one of each row of a float tensor (n, d) on the CPU."""
    import numpy as np
    import pyarrow

    def lists(part: Tensor) -> Any:  # of few rows, as the ends of all would not fit an int32
        ends = np.arange(len(part) + 1, dtype=np.int32) * part.shape[1]
        return pyarrow.ListArray.from_arrays(ends, part.flatten().numpy())

    return pyarrow.chunked_array([lists(part) for part in rows.split(ROWS)])


def pixels(cell: bytes) -> Tensor:
    """The image (c, h, w) uint8 that `png` made a cell of."""
    import numpy as np
    import torch
    from PIL import Image

    found = torch.from_numpy(np.array(Image.open(io.BytesIO(cell))))
    return found[None] if found.ndim == 2 else found.permute(2, 0, 1)
