"""Encodings are made once for the same images and encoder, whole or not at all, and read as they were made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from semisynth.data import cache
from semisynth.data.datasets import Images
from semisynth.data.encoded import encoded
from semisynth.data.stream import Stream, to_float
from semisynth.errors import UserError
from semisynth.method import External

CPU = torch.device("cpu")


class Encoder(nn.Module):
    """Half the side, twice the channels; it counts the images that it saw."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return torch.cat([x[:, :, ::2, ::2], -x[:, :, 1::2, ::2]], 1) * self.scale


def images(n: int = 37) -> Images:
    x = torch.randint(256, (n, 2, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(x, torch.arange(n) % 3)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEMISYNTH_CACHE", str(tmp_path / "cache"))
    return cache.folder()


def test_they_are_what_the_encoder_makes_and_lie_in_a_file(place: Path) -> None:
    given, encoder = images(), Encoder()
    found = encoded(given, External(encoder), CPU)
    expected = Encoder()(to_float(given.x))  # type: ignore[arg-type]
    index = torch.tensor([36, 0, 17])
    assert found.x.shape == (37, 4, 2, 3) and found.y.equal(given.y) and not isinstance(found.x, Tensor)
    assert found.x[index].equal(expected[index]) and found.x[index].dtype == torch.float32
    assert found.subset(index).x[torch.arange(3)].equal(expected[index])
    batch = Stream(found, None, batch=8, steps=1, seed=0, device=CPU)(0)
    rows = [(expected == row).flatten(1).all(1).nonzero().item() for row in batch.x]
    assert given.y[rows].equal(batch.y)
    assert [file.name for file in place.glob("*/*")] in (["encoded.npy", "lock"], ["lock", "encoded.npy"])


def test_they_are_made_once_for_the_same_images_and_encoder() -> None:
    encoder = Encoder()
    for _ in range(2):
        encoded(images(), External(encoder), CPU)
    encoded(Images(images().x, torch.zeros(37, dtype=torch.int64)), External(encoder), CPU)  # labels do not matter
    assert encoder.seen == 37
    other, changed = Encoder(2.0), images()
    encoded(changed, External(other), CPU)
    assert other.seen == 37
    changed.x[3, 0, 0, 0] += 1  # type: ignore[index]
    encoded(changed, External(encoder), CPU)
    assert encoder.seen == 2 * 37


def test_cut_off_they_are_made_anew(place: Path) -> None:
    class Failing(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            if self.seen:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        encoded(images(), External(Failing()), CPU)
    assert not list(place.glob("*/encoded.npy"))
    found = encoded(images(), External(Encoder()), CPU)
    assert found.x[torch.arange(37)].equal(Encoder()(to_float(images().x)))  # type: ignore[arg-type]


def test_a_file_that_is_damaged_or_cannot_be_written_is_told(place: Path) -> None:
    encoded(images(), External(Encoder()), CPU)
    (file,) = place.glob("*/encoded.npy")
    os.truncate(file, 300)
    with pytest.raises(UserError, match=r"damaged .* delete it"):
        encoded(images(), External(Encoder()), CPU)
    os.environ["SEMISYNTH_CACHE"] = str(file)
    with pytest.raises(UserError, match=r"cannot be written .* SEMISYNTH_CACHE"):
        encoded(images(), External(Encoder()), CPU)
