"""Ids that come ready-made: they are read once, to be checked and divided, and used where they lie. No torch.

The cache gets files that say which ids of a file are of a part (`.extents`), and where documents end (`.ends`).
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config.places import local_path
from trainer.config.schema import DataConfig, DataSource, TridentConfig
from trainer.corpus.inputs import file_identity
from trainer.data.megatron import knows_documents, megatron_pairs, pair_file
from trainer.data.megatron_index import PairIndex
from trainer.data.part_of_file import PartOfFile, check_ids
from trainer.data.split import TRAIN_PART, Fractions, utf8
from trainer.data.token_files import shard_prefix
from trainer.data.token_layouts import (
    LITDATA_INDEX,
    SUFFIXES,
    Given,
    Stretches,
    TokenFile,
    companions,
    litdata_chunks,
    token_file,
)
from trainer.data.token_manifest import PARTS, Shard
from trainer.errors import DataError
from trainer.progress import current

PART_TOKENS = 8192
"""Tokens that are held out together from a file that does not say where its documents end."""
Ids = npt.NDArray[np.integer[Any]]


def ready_made_identity(data: DataConfig) -> list[str]:
    """Return the values that decide the ids and documents: part of the fingerprint under which they are known.

    Raises:
        DataError: a file is missing.
    """
    if data.source is DataSource.megatron:
        # The key is here since earlier versions had it.
        return [data.text_key, *(file_identity(path) for pair in megatron_pairs(data.files) for path in pair)]
    found = [path for file in token_paths(data.files) for path in (file, *companions(file))]
    said = [str(data.token_dtype and data.token_dtype.value), str(data.eos_id)]
    return [*said, *(file_identity(path) for path in dict.fromkeys(found))]


def token_paths(names: tuple[str, ...]) -> list[Path]:
    """Return the files of ids that names, folders and globs of `data.files` mean, each once.

    A folder means its files of ids, or the chunks that its index.json lists; so does that file.

    Raises:
        DataError: a name means none.
    """
    found: dict[Path, Path] = {}
    for name in names:
        expanded = local_path(name, "data.files")
        is_there = os.path.exists(expanded)
        matches = [Path(expanded)] if is_there else sorted(map(Path, glob.glob(expanded, recursive=True)))
        paths = [path for match in matches for path in _files_of(match.absolute(), is_named=is_there)]
        if not paths:
            kinds = ", ".join(SUFFIXES)
            raise DataError(f"data.files must name files of token ids ({kinds}), but {name!r} means none")
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _files_of(path: Path, is_named: bool) -> list[Path]:
    if path.is_dir():
        listed = litdata_chunks(path / LITDATA_INDEX) if (path / LITDATA_INDEX).is_file() else []
        return listed or [each for each in sorted(path.iterdir()) if each.suffix in SUFFIXES and each.is_file()]
    if path.name == LITDATA_INDEX:
        return litdata_chunks(path)
    return [path] if path.is_file() and (is_named or path.suffix in SUFFIXES) else []


def token_sources(config: TridentConfig, eos_id: int | None, say: Callable[[str], None]) -> Iterator[TokenFile]:
    """Yield what the files of data.source=megatron or tokens hold, in order.

    Args:
        config: a validated config.
        eos_id: id that ends a document where data.eos_id does not say it: the tokenizer's.
        say: is told of an index that does not know its documents.

    Raises:
        DataError: a file is missing, damaged, or not of a known layout; or a key has no effect.
    """
    data = config.data
    if data.source is DataSource.megatron:
        for pair in megatron_pairs(data.files):
            file = pair_file(*pair)
            index = PairIndex(pair[1])
            if not knows_documents(index):
                say(
                    f"the document index of {pair[1]} is not one of its {index.sequences} sequences: each is a document"
                )
            yield file
        return
    assert config.model.vocab_size is not None, "validation asks for it"
    dtype = None if data.token_dtype is None else data.token_dtype.value
    given = Given(dtype, config.model.vocab_size, eos_id if data.eos_id is None else data.eos_id)
    is_used = data.eos_id is None
    for path in token_paths(data.files):
        file = token_file(path, given)
        is_used = is_used or file.ended_by is not None
        yield file
    if not is_used:
        raise DataError(
            f"data.eos_id={data.eos_id} has no effect, since every file of data.files says where its documents end; "
            "leave it out"
        )


def write_parts(config: TridentConfig, files: Iterator[TokenFile], folder: Path) -> Mapping[str, tuple[Shard, ...]]:
    """Read all ids once; write which of them are of a part, and where documents end; return the shards of each part.

    Args:
        config: a validated config.
        files: the files.
        folder: existing folder of the cache.

    Raises:
        DataError: a file cannot be read, or an id is not in `model.vocab_size`.
    """
    assert config.model.vocab_size is not None, "validation asks for it"
    vocab_size = config.model.vocab_size
    shards: dict[str, list[Shard]] = {part: [] for part in PARTS}
    left = config.data.max_documents
    for number, file in enumerate(files):
        ids = file.ids()
        with ExitStack() as stack:
            parts = [
                stack.enter_context(PartOfFile(file, ids, shard_prefix(folder, part, number), vocab_size))
                for part in shards
            ]
            for stretches, chosen, documents in _divided(config.data, file, ids, left):
                for number_of_part, part in enumerate(parts):
                    part.add(Stretches(*(numbers[chosen == number_of_part] for numbers in stretches)))
                left = None if left is None else left - documents
        for name, part in zip(shards, parts, strict=True):
            shards[name] += part.shards()
    return {part: tuple(found) for part, found in shards.items()}


def ready_made_pieces(config: TridentConfig, files: Iterator[TokenFile]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield (place of the part in `token_manifest.PARTS`, tokens) of the documents, in order, without empty ones.

    Raises:
        DataError: as `write_parts`.
    """
    assert config.model.vocab_size is not None, "validation asks for it"
    left = config.data.max_documents
    for file in files:
        ids = file.ids()
        for stretches, chosen, documents in _divided(config.data, file, ids, left):
            for place in _by_document(stretches):
                tokens = _content(ids, stretches, place)
                check_ids(file, tokens, int(stretches.starts[place.start]), config.model.vocab_size)
                yield int(chosen[place.start]), tokens
            left = None if left is None else left - documents


def _divided(
    data: DataConfig, file: TokenFile, ids: Ids, most: int | None
) -> Iterator[tuple[Stretches, npt.NDArray[np.uint8], int]]:
    """Yield, for some documents at a time, their stretches, the part of each, and the number of documents.

    Args:
        data: the run's keys.
        file: the file.
        ids: its ids.
        most: number of documents that are still wanted; None: all.
    """
    if file.documents is None and data.max_documents is not None:
        raise DataError(
            f"data.max_documents needs to know where documents end, but {file.path} does not say it; set data.eos_id, "
            "or leave data.max_documents out"
        )
    fractions = Fractions(data.validation_fraction, data.test_fraction)
    for found in (file.documents or (lambda: _parts(file.tokens)))():
        current().beat()
        if most is not None and most <= 0:
            return
        is_full = found.lengths > 0
        stretches = Stretches(*(numbers[is_full] for numbers in found))
        places = _by_document(stretches)
        if most is not None:
            places = places[:most]
            most -= len(places)
            stretches = Stretches(*(numbers[: places[-1].stop if places else 0] for numbers in stretches))
        chosen_parts = np.full(len(stretches.starts), TRAIN_PART, dtype=np.uint8)
        if data.validation_fraction > 0 or data.test_fraction > 0:
            for place in places:
                content = _content(ids, stretches, place)
                chosen_parts[place] = fractions.part_of(utf8(content.tobytes().hex()))
        yield stretches, chosen_parts, len(places)


def _parts(tokens: int) -> Iterator[Stretches]:
    for first in range(0, tokens, PART_TOKENS << 10):
        starts = np.arange(first, min(tokens, first + (PART_TOKENS << 10)), PART_TOKENS)
        yield Stretches(starts, np.minimum(PART_TOKENS, tokens - starts), starts // PART_TOKENS)


def _by_document(stretches: Stretches) -> Sequence[slice]:
    """Return the places of each document's stretches."""
    if len(stretches.documents) == 0:
        return []
    firsts = np.flatnonzero(np.diff(stretches.documents, prepend=-1)).tolist()
    return [slice(first, end) for first, end in zip(firsts, [*firsts[1:], len(stretches.documents)], strict=True)]


def _content(ids: Ids, stretches: Stretches, place: slice) -> npt.NDArray[np.int64]:
    pieces = [
        ids[start : start + length]
        for start, length in zip(stretches.starts[place].tolist(), stretches.lengths[place].tolist(), strict=True)
    ]
    return np.concatenate(pieces).astype(np.int64)
