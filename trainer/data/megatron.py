"""Megatron-LM and GPT-NeoX `.bin`/`.idx` pairs that people already have, read where they lie. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.config.places import local_path
from trainer.corpus.wording import reason
from trainer.data.megatron_index import PairIndex
from trainer.data.token_layouts import Stretches, TokenFile
from trainer.errors import DataError

_ITEMS = 1 << 20
"""Sequences that are checked together."""
_DOCUMENTS = 1 << 16
"""Documents that are read together."""


def megatron_pairs(names: tuple[str, ...], key: str = "data.files") -> list[tuple[Path, Path]]:
    """Return the (.bin, .idx) files of each prefix, in that order, each once.

    Args:
        names: the prefixes.
        key: the key that holds them.

    Raises:
        DataError: no file is named, or one is missing.
    """
    if not names:
        raise DataError(f"data.source=megatron needs at least one .bin/.idx prefix in {key}, but it is empty")
    pairs: dict[Path, tuple[Path, Path]] = {}
    for name in names:
        prefix = local_path(name, key).removesuffix(".bin").removesuffix(".idx")
        pair = (Path(prefix + ".bin").absolute(), Path(prefix + ".idx").absolute())
        for path in pair:
            if not path.is_file():
                raise DataError(f"{key} must name prefixes of .bin/.idx pairs, but {path} is missing")
        pairs.setdefault(pair[0].resolve(), pair)
    return list(pairs.values())


def pair_file(data: Path, path: Path) -> TokenFile:
    """Return what a pair holds. Its index is read once, to see that it fits the data.

    A document is the sequences that the index says; where its document index is not one of its sequences, as merging
    with some versions left it, each sequence is a document, as other readers have it.

    Raises:
        DataError: the index is not of this format, or does not fit the data.
    """
    try:
        index = PairIndex(path)
        size = data.stat().st_size
    except OSError as error:
        raise DataError(f"data.files must be readable, but {data.with_suffix('')}: {reason(error)}") from error
    is_in_order = _check(index, data, size)
    firsts = index.first_sequences if knows_documents(index) else np.arange(index.sequences + 1)
    return TokenFile(
        path=data,
        dtype=index.dtype,
        first_byte=0,
        tokens=size // np.dtype(index.dtype).itemsize,
        documents=partial(_documents, index, firsts),
        is_indexed=is_in_order and firsts is index.first_sequences,
    )


def knows_documents(index: PairIndex) -> bool:
    """Return whether the document index is one of the sequences: it rises from 0 to their number."""
    firsts = index.first_sequences
    if len(firsts) == 0 or firsts[0] != 0 or firsts[-1] != index.sequences:
        return False
    return all((np.diff(firsts[at : at + _ITEMS + 1]) >= 0).all() for at in range(0, len(firsts), _ITEMS))


def _check(index: PairIndex, data: Path, size: int) -> bool:
    """Check that the sequences lie in the data and fill them; return whether each follows the one before.

    Raises:
        DataError: they do not.
    """
    item, end, place, is_in_order = np.dtype(index.dtype).itemsize, 0, 0, True
    for at in range(0, index.sequences, _ITEMS):
        offsets = index.offsets[at : at + _ITEMS].astype(np.int64)
        bytes_ = index.sizes[at : at + _ITEMS].astype(np.int64) * item
        ends = offsets + bytes_
        # An end is negative if a damaged offset overflows.
        if min(int(numbers.min()) for numbers in (bytes_, offsets, ends)) < 0:
            raise DataError(
                f"data.files: {index.path} must hold sizes and offsets of at least 0, but holds negative ones"
            )
        if (offsets % item).any():
            raise DataError(
                f"data.files: {index.path} must hold offsets that are multiples of an id's {item} bytes, but does not: "
                "it is damaged or belongs to another file"
            )
        end = max(end, int(ends.max()))
        is_in_order = is_in_order and bool((offsets == np.concatenate([[place], ends[:-1]])).all())
        place = int(ends[-1])
    if size != end:
        why = "it is truncated" if size < end else "it is longer"
        raise DataError(
            f"data.files: {data} must have {end} bytes by its index, but has {size}: {why}, or the index is another "
            "file's"
        )
    return is_in_order


def _documents(index: PairIndex, firsts: npt.NDArray[np.int64]) -> Iterator[Stretches]:
    item = np.dtype(index.dtype).itemsize
    for first in range(0, len(firsts) - 1, _DOCUMENTS):
        here = firsts[first : first + _DOCUMENTS + 1].astype(np.int64)
        sequences = slice(int(here[0]), int(here[-1]))
        numbers = np.repeat(np.arange(first, first + len(here) - 1), np.diff(here))
        yield Stretches(index.offsets[sequences] // item, index.sizes[sequences].astype(np.int64), numbers)
