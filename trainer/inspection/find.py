"""Finding out what a path is: prepared tokens, a Megatron pair, a run, or files of text. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.checkpoint.kept_tokenizer import saved_config
from trainer.config.places import absolute_path
from trainer.config.schema import DataConfig, DataSource, RecordKind, TokenizerKind, TridentConfig
from trainer.corpus.addresses import is_address
from trainer.corpus.inputs import input_files
from trainer.corpus.units import Compression, InputFile, Kind
from trainer.corpus.wording import reason
from trainer.data.megatron_index import PairIndex
from trainer.data.prepare import look_up
from trainer.data.shard_set import ShardSet
from trainer.data.token_manifest import MANIFEST, PARTS, Manifest, Shard, read_manifest
from trainer.data.tokenizer import ByteTokenizer, Tokenizer, load_pretrained, load_tokenizer
from trainer.errors import DataError, TridentError
from trainer.inspection.seen import Facts, Part, Source
from trainer.inspection.text_source import TextSource
from trainer.inspection.token_source import TokenSource
from trainer.run_paths import RunPaths, run_of_checkpoint

PATH = "PATH"
_OLD_META = "meta.json"
_CHECKED = 1 << 20
"""Entries of an index that are checked at once."""
_KINDS = "a folder of prepared tokens, a Megatron pair, a run's folder, or files of text"


class Inspected:
    """A source and the tokenizer that reads its ids, if there is one.

    Args:
        source: the documents.
        tokenizer: the tokenizer, or None.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer | None) -> None:
        self.source = source
        self.tokenizer = tokenizer


def find(name: str, config: TridentConfig) -> Inspected:
    """Return what lies at a path.

    Args:
        name: the path, as a person wrote it.
        config: its `data.*` say which field of records is the text, and its `tokenizer.*` which tokenizer is meant
            where there is none beside the data.

    Raises:
        DataError: there is nothing that can be read, or it is damaged.
        CheckpointError: the config of a run cannot be read.
    """
    if is_address(name):
        return _text(name, config)
    path = absolute_path(name, PATH)
    run = _run_at(path)
    if run is not None:
        return _run(run, config)
    if path.is_dir() and (path / MANIFEST).is_file():
        return _prepared(path, config, {})
    if path.is_dir() and (path / _OLD_META).is_file() and any(path.glob("*.bin")):
        raise DataError(
            f"{PATH} must hold tokens that this version has prepared, but {path} is of an earlier one; run "
            "`trident data` with the settings that it was made with"
        )
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    pair = [prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx")]
    there = [one.is_file() for one in pair]
    if all(there):
        return _pair(prefix, config)
    if any(there):
        missing = pair[there.index(False)]
        raise DataError(f"{PATH} must be a Megatron pair, .bin and .idx, but {missing} is missing")
    if path.is_dir() and (inside := _prepared_inside(path)):
        raise DataError(
            f"{PATH} must be a folder of prepared tokens, but {path} holds such folders; name one of them, for example "
            f"{inside[0]}"
        )
    if not path.exists() and not any(letter in path.name for letter in "*?["):
        raise DataError(f"{PATH} must be {_KINDS}, but there is nothing at {path}")
    return _text(str(path), config)


def _run_at(path: Path) -> RunPaths | None:
    run = RunPaths(path)
    if run.config.is_file():
        # A checkpoint has a config of its own.
        return run_of_checkpoint(path) or run
    return None


def _run(run: RunPaths, config: TridentConfig) -> Inspected:
    folder, prepared = look_up(saved_config(run.config))
    if prepared is None:
        raise DataError(
            f"{PATH} must be a run whose data are prepared here, but those of {run.path} are not ({folder}); run "
            f"`trident data` with its settings"
        )
    return _prepared(folder, config, {"run": str(run.path)})


def _prepared_inside(path: Path) -> list[Path]:
    found = [inner.parent for inner in path.glob(f"*/{MANIFEST}") if read_manifest(inner.parent) is not None]
    return sorted(found, key=lambda folder: -folder.stat().st_mtime)


def _prepared(folder: Path, config: TridentConfig, details: Mapping[str, str]) -> Inspected:
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"{PATH} must be a whole folder of prepared tokens, but {folder} is damaged, or not one of this version: "
            f"{MANIFEST} does not fit its files; run `trident data` again"
        )
    own = folder / "tokenizer"
    tokenizer = load_tokenizer(own) if own.is_dir() else _asked_tokenizer(config)
    parts = {part: manifest.parts[part] for part in (*PARTS, *manifest.parts) if part in manifest.parts}
    return Inspected(
        _token_source(
            Facts(
                kind="prepared tokens",
                place=str(folder),
                documents=_total(parts, "documents"),
                tokens=_total(parts, "tokens"),
                content_bytes=_text_bytes(parts),
                counts=manifest.counts,
                tokenizer=_tokenizer_in_words(tokenizer),
                vocab_size=manifest.vocab_size,
                details={**details, **_packed(manifest), "source": manifest.name},
            ),
            folder,
            parts,
        ),
        tokenizer,
    )


def _packed(manifest: Manifest) -> dict[str, str]:
    if manifest.packed is None:
        return {}
    packed = manifest.packed
    return {"packed": f"{packed.examples:,} examples in sequences of {packed.seq_length:,} tokens"}


def _token_source(facts: Facts, folder: Path, parts: Mapping[str, Sequence[Shard]]) -> TokenSource:
    shown = tuple(
        Part(
            name=name,
            files=len(shards),
            documents=sum(shard.documents for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            dtype=", ".join(dict.fromkeys(shard.dtype for shard in shards)),
        )
        for name, shards in parts.items()
    )
    if not any(part.tokens for part in shown):
        raise DataError(f"{PATH} must hold at least one token, but {facts.place} holds none")
    return TokenSource(replace(facts, parts=shown), {name: ShardSet(folder, parts[name]) for name in parts})


def _total(parts: Mapping[str, Sequence[Shard]], field: str) -> int:
    return sum(getattr(shard, field) for shards in parts.values() for shard in shards)


def _text_bytes(parts: Mapping[str, Sequence[Shard]]) -> int | None:
    known = [shard.text_bytes for shards in parts.values() for shard in shards if shard.tokens]
    told = [size for size in known if size is not None]
    return sum(told) if told and len(told) == len(known) else None


def _pair(prefix: Path, config: TridentConfig) -> Inspected:
    path = prefix.with_name(prefix.name + ".bin")
    try:
        index = PairIndex(prefix.with_name(prefix.name + ".idx"))
        tokens = _checked(index, path)
    except DataError as error:
        raise DataError(str(error).removeprefix("data.files: ")) from error
    except OSError as error:
        raise DataError(f"{PATH} must be readable, but {prefix}: {reason(error)}") from error
    documents = max(0, len(index.first_sequences) - 1)
    shard = Shard(str(path), index.dtype, 0, tokens, documents, -1, None, "", "idx")
    tokenizer = _asked_tokenizer(config)
    facts = Facts(
        kind="a Megatron pair",
        place=str(prefix),
        documents=documents,
        tokens=tokens,
        content_bytes=None,
        tokenizer=_tokenizer_in_words(tokenizer),
        vocab_size=None if tokenizer is None else tokenizer.vocab_size,
        details={"sequences": f"{index.sequences:,}"},
    )
    return Inspected(_token_source(facts, prefix.parent, {prefix.name: (shard,)}), tokenizer)


def _checked(index: PairIndex, path: Path) -> int:
    """Return the number of tokens of a pair whose sequences follow each other.

    Raises:
        DataError: the index is damaged, or not that of these ids.
    """
    size = np.dtype(index.dtype).itemsize
    place = 0
    for first in range(0, index.sequences, _CHECKED):
        sizes = index.sizes[first : first + _CHECKED].astype(np.int64)
        if int(sizes.min()) < 0:
            raise DataError(f"{index.path} must hold sizes of at least 0, but holds negative ones: it is damaged")
        expected = place + np.cumsum(sizes * size) - sizes * size
        wrong = np.flatnonzero(index.offsets[first : first + _CHECKED] != expected)
        if len(wrong):
            number = first + int(wrong[0])
            raise DataError(
                f"{index.path} must have its sequences one behind the other, but sequence {number} begins at byte "
                f"{int(index.offsets[number])} and not {int(expected[wrong[0]])}; prepare it with `trident data "
                f"data=megatron`, and look at the folder that this makes"
            )
        place = int(expected[-1] + sizes[-1] * size)
    found = path.stat().st_size
    if found < place:
        raise DataError(f"{path} must have {place} bytes by its index, but has {found}: it is truncated")
    firsts = index.first_sequences
    rises = len(firsts) == 0 or (firsts[0] >= 0 and firsts[-1] <= index.sequences and np.all(firsts[1:] >= firsts[:-1]))
    if not rises:
        raise DataError(f"{index.path} must name its own sequences as documents, rising, but does not: it is damaged")
    return place // size


def _text(path: str, config: TridentConfig) -> Inspected:
    data: DataConfig = replace(config.data, source=DataSource.files, files=(path,), records=RecordKind.text)
    try:
        files = input_files(data)
    except TridentError as error:
        raise DataError(f"{PATH} must be {_KINDS}, but {path} is none: {_without_key(str(error))}") from error
    tokenizer = _asked_tokenizer(config)
    facts = Facts(
        kind="files of text",
        place=path,
        documents=len(files) if all(file.kind is Kind.text for file in files) and _is_whole(data) else None,
        tokens=None,
        content_bytes=_plain_bytes(files),
        tokenizer=_tokenizer_in_words(tokenizer),
        vocab_size=None if tokenizer is None else tokenizer.vocab_size,
        details={"files": _forms(files)},
    )
    return Inspected(TextSource(facts, data, files, tokenizer), tokenizer)


def _without_key(problem: str) -> str:
    return problem.removeprefix("data.files ").removeprefix("must ")


def _is_whole(data: DataConfig) -> bool:
    """Return whether a file of text is one document."""
    return data.document_separator is None


def _plain_bytes(files: Sequence[InputFile]) -> int | None:
    """Return the size of files whose content is about as long as they are; None if it is not."""
    tables = (Kind.parquet, Kind.arrow, Kind.hub)
    if any(file.size is None or file.kind in tables or file.compression is not Compression.none for file in files):
        return None
    return sum(file.size or 0 for file in files)


def _forms(files: Sequence[InputFile]) -> str:
    names = Counter(
        f"{file.kind.value}{'.' * (file.compression is not Compression.none)}{file.compression.value}" for file in files
    )
    told = ", ".join(f"{count:,} {name}" for name, count in names.most_common())
    return f"{told}, {sum(file.size or 0 for file in files):,} bytes"


def _asked_tokenizer(config: TridentConfig) -> Tokenizer | None:
    settings = config.tokenizer
    if settings.kind is TokenizerKind.pretrained:
        return load_pretrained(settings)
    return ByteTokenizer() if settings.kind is TokenizerKind.bytes else None


def _tokenizer_in_words(tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return "none"
    kind = "bytes" if isinstance(tokenizer, ByteTokenizer) else "tokenizer.json"
    return f"{kind}, {tokenizer.vocab_size:,} ids, documents end with {tokenizer.token(tokenizer.eos_id)}"
