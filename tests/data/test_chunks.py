"""What a decoding process leaves: chunks, and a journal of them."""

from __future__ import annotations

from semisynth.data import chunks
from semisynth.data.chunks import Chunk


def test_gaps_are_what_no_chunk_has():
    kept = [Chunk(2, 3, 0, {}, {}), Chunk(5, 1, 0, {}, {}), Chunk(8, 2, 0, {}, {})]
    assert list(chunks.gaps(kept, 12)) == [range(2), range(6, 8), range(10, 12)]
    assert list(chunks.gaps([], 3)) == [range(3)] and list(chunks.gaps([Chunk(0, 3, 0, {}, {})], 3)) == []


def test_chunks_are_joined():
    parts = [Chunk(0, 2, 7, {"b": 1, "a": 1}, {"1": "why"}), Chunk(2, 1, chunks.MODULUS - 1, {"a": 1}, {})]
    assert chunks.joined(parts) == Chunk(0, 3, 6, {"a": 2, "b": 1}, {"1": "why"})


def test_of_chunks_that_overlap_the_first_counts(tmp_path):
    line = '{{"first": {}, "count": {}, "hash": 1, "done": {{}}, "unreadable": {{}}, "more": 0}}\n'
    (tmp_path / "j").write_text(line.format(4, 4) + line.format(6, 4) + line.format(0, 4) + line.format(8, 1))
    assert [(c.first, c.count) for c in chunks.journaled(tmp_path / "j", 10)] == [(0, 4), (4, 4), (8, 1)]
    assert chunks.journaled(tmp_path / "none", 10) == []
