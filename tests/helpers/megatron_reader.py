"""A reader of Megatron pairs, written from the description of the format and not from our code.

The index holds, little endian and without padding: nine bytes `MMIDIDX` and two zeros; the version, an unsigned number
of eight bytes, 1; the code of the type, one byte; the number of sequences and the length of the document index, eight
bytes each; then the sizes, four bytes each, the byte offsets, eight bytes each, and the document index, eight each,
whose entry d is the first sequence of document d and whose last one is the number of sequences.
"""

from __future__ import annotations

from io import BytesIO
from itertools import pairwise
from pathlib import Path

ITEMS = {1: (1, False), 2: (1, True), 3: (2, True), 4: (4, True), 5: (8, True), 8: (2, False)}
"""Code of a type -> bytes of an id, and whether it may be negative."""


def read_sequences(prefix: Path) -> tuple[list[list[int]], list[int]]:
    """Return the ids of each sequence, and the document index."""
    index = BytesIO(Path(f"{prefix}.idx").read_bytes())

    def number(size: int, signed: bool = True) -> int:
        held = index.read(size)
        assert len(held) == size
        return int.from_bytes(held, "little", signed=signed)

    assert index.read(9) == b"MMIDIDX\x00\x00"
    assert number(8, signed=False) == 1
    size, signed = ITEMS[number(1)]
    count, documents = number(8), number(8)
    sizes = [number(4) for _ in range(count)]
    offsets = [number(8) for _ in range(count)]
    first = [number(8) for _ in range(documents)]
    assert index.read() == b""
    held = Path(f"{prefix}.bin").read_bytes()
    found = []
    for length, offset in zip(sizes, offsets, strict=True):
        places = range(offset, offset + length * size, size)
        found.append([int.from_bytes(held[place : place + size], "little", signed=signed) for place in places])
    return found, first


def read_documents(prefix: Path) -> list[list[int]]:
    """Return the ids of each document."""
    sequences, first = read_sequences(prefix)
    assert first[0] == 0
    assert first[-1] == len(sequences)
    return [[id_ for sequence in sequences[start:end] for id_ in sequence] for start, end in pairwise(first)]
