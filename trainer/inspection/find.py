"""Finding out what a path is: prepared tokens, a Megatron pair, files of tokens, a run, or texts. No torch."""

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
from trainer.data.megatron import pair_file
from trainer.data.megatron_index import PairIndex
from trainer.data.prepare import look_up
from trainer.data.pretrained_tokenizer import load_pretrained
from trainer.data.ready_made import token_paths
from trainer.data.shard_set import ShardSet
from trainer.data.token_layouts import SUFFIXES, Given, TokenFile, token_file
from trainer.data.token_manifest import MANIFEST, PARTS, Manifest, Shard, read_manifest
from trainer.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from trainer.errors import DataError, TridentError
from trainer.inspection.seen import Facts, Part, Source
from trainer.inspection.text_source import TextSource
from trainer.inspection.token_source import GivenFile, Stream, TokenSource
from trainer.run_paths import RunPaths, run_of_checkpoint

PATH = "PATH"
_OLD_META = "meta.json"
_UNKNOWN = 1 << 16
"""Number of ids, for files that do not say the type of their ids, if no vocabulary is known: two bytes an id."""
_KINDS = "a folder of prepared tokens, a Megatron pair, files of tokens, a run's folder, or files of text"


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
        return _prepared(path, config)
    if path.is_dir() and (path / _OLD_META).is_file() and any(path.glob("*.bin")):
        raise DataError(
            f"{PATH} must hold tokens that this version has prepared, but {path} is of an earlier one; run "
            "`trident data` with the settings that it was made with"
        )
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    pair = [prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx")]
    there = [one.is_file() for one in pair]
    if all(there):
        return _given(pair[:1], str(prefix), config)
    if any(there) and path.suffix != ".bin":
        missing = pair[there.index(False)]
        raise DataError(f"{PATH} must be a Megatron pair, .bin and .idx, but {missing} is missing")
    if path.is_dir() and (inside := _prepared_inside(path)):
        raise DataError(
            f"{PATH} must be a folder of prepared tokens, but {path} holds such folders; name one of them, for example "
            f"{inside[0]}"
        )
    if tokens := _files_of_tokens(path):
        return _given(tokens, str(path), config)
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
    tokenizer = None if prepared.tokenizer_folder is None else load_tokenizer(prepared.tokenizer_folder)
    sources = {f"{one.name} ": one.prepared for one in prepared.sources} or {"": prepared}
    parts = {
        f"{name}{part}": (data.folder, data.manifest.parts[part])
        for name, data in sources.items()
        for part in PARTS
        if part in data.manifest.parts
    }
    places = {f"source{name and f' {name.strip()}'}": str(data.folder) for name, data in sources.items()}
    return _of_manifest(str(run.path), prepared.manifest, parts, tokenizer or _asked_tokenizer(config), places)


def _files_of_tokens(path: Path) -> list[Path]:
    """Return the files of ids that a name, folder or glob means; none if it means something else."""
    is_file = path.is_file() and path.suffix in SUFFIXES
    try:
        return token_paths((str(path),)) if is_file or not path.is_file() else []
    except TridentError:
        return []


def _prepared_inside(path: Path) -> list[Path]:
    found = [inner.parent for inner in path.glob(f"*/{MANIFEST}") if read_manifest(inner.parent) is not None]
    return sorted(found, key=lambda folder: -folder.stat().st_mtime)


def _prepared(folder: Path, config: TridentConfig) -> Inspected:
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"{PATH} must be a whole folder of prepared tokens, but {folder} is damaged, or not one of this version: "
            f"{MANIFEST} does not fit its files; run `trident data` again"
        )
    own = folder / "tokenizer"
    tokenizer = load_tokenizer(own) if own.is_dir() else _asked_tokenizer(config)
    parts = {part: (folder, manifest.parts[part]) for part in PARTS if part in manifest.parts}
    return _of_manifest(str(folder), manifest, parts, tokenizer, {"source": manifest.name})


def _of_manifest(
    place: str,
    manifest: Manifest,
    parts: Mapping[str, tuple[Path, Sequence[Shard]]],
    tokenizer: Tokenizer | None,
    details: Mapping[str, str],
) -> Inspected:
    """Return prepared tokens.

    Args:
        place: their path, as it is shown.
        manifest: what is known of all of them.
        parts: name -> folder and shards of each part.
        tokenizer: reads their ids, or None.
        details: further lines.
    """
    every = [shard for _, shards in parts.values() for shard in shards]
    facts = Facts(
        kind="prepared tokens",
        place=place,
        documents=sum(shard.documents for shard in every),
        tokens=sum(shard.tokens for shard in every),
        content_bytes=_text_bytes(every),
        parts=tuple(_part(name, shards) for name, (_, shards) in parts.items()),
        counts=manifest.counts,
        tokenizer=_tokenizer_in_words(tokenizer),
        vocab_size=manifest.vocab_size,
        details={**details, **_packed(manifest)},
    )
    return _of_streams(facts, {name: ShardSet(folder, shards) for name, (folder, shards) in parts.items()}, tokenizer)


def _of_streams(facts: Facts, streams: Mapping[str, Stream], tokenizer: Tokenizer | None) -> Inspected:
    if not facts.tokens:
        raise DataError(f"{PATH} must hold at least one token, but {facts.place} holds none")
    return Inspected(TokenSource(facts, streams), tokenizer)


def _packed(manifest: Manifest) -> dict[str, str]:
    if manifest.packed is None:
        return {}
    packed = manifest.packed
    return {"packed": f"{packed.examples:,} examples in sequences of {packed.seq_length:,} tokens"}


def _part(name: str, shards: Sequence[Shard]) -> Part:
    return Part(
        name=name,
        files=len(shards),
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        dtype=", ".join(dict.fromkeys(shard.dtype for shard in shards)),
    )


def _text_bytes(shards: Sequence[Shard]) -> int | None:
    known = [shard.text_bytes for shard in shards if shard.tokens]
    told = [size for size in known if size is not None]
    return sum(told) if told and len(told) == len(known) else None


def _given(paths: Sequence[Path], place: str, config: TridentConfig) -> Inspected:
    """Return files of ids that another program wrote: one Megatron pair, or those that data=tokens reads."""
    tokenizer = _asked_tokenizer(config)
    vocab_size = config.model.vocab_size or (None if tokenizer is None else tokenizer.vocab_size)
    dtype = None if config.data.token_dtype is None else config.data.token_dtype.value
    eos_id = config.data.eos_id if config.data.eos_id is not None or tokenizer is None else tokenizer.eos_id
    try:
        files = [_opened(path, Given(dtype, vocab_size or _UNKNOWN, eos_id)) for path in paths]
    except DataError as error:
        raise DataError(f"{PATH} must be whole: {str(error).removeprefix('data.files: ')}", error.hints) from error
    streams = {path.name: _stream(file) for path, file in zip(paths, files, strict=True)}
    parts = tuple(
        Part(path.name, 1, _documents(file), file.tokens, file.dtype) for path, file in zip(paths, files, strict=True)
    )
    counts = [part.documents for part in parts]
    facts = Facts(
        kind="files of tokens",
        place=place,
        documents=None if None in counts else sum(count or 0 for count in counts),
        tokens=sum(file.tokens for file in files),
        content_bytes=None,
        parts=parts,
        tokenizer=_tokenizer_in_words(tokenizer),
        vocab_size=vocab_size,
    )
    return _of_streams(facts, streams, tokenizer)


def _opened(path: Path, given: Given) -> TokenFile:
    index = path.with_suffix(".idx")
    return pair_file(path, index) if path.suffix == ".bin" and index.is_file() else token_file(path, given)


def _stream(file: TokenFile) -> Stream:
    if not file.is_indexed:
        return GivenFile(file)
    # Its index is read in place: nothing is held for a document.
    shard = Shard(str(file.path), file.dtype, file.first_byte, file.tokens, 0, -1, None, "", "idx")
    return ShardSet(file.path.parent, [shard])


def _documents(file: TokenFile) -> int | None:
    """Return the number of documents where an index has it; None where only their ends, or nothing, tells."""
    if file.is_indexed:
        return max(0, len(PairIndex(file.path.with_suffix(".idx")).first_sequences) - 1)
    if file.documents is None or file.ended_by is not None:
        return None
    return sum(int(np.count_nonzero(np.diff(some.documents, prepend=-1))) for some in file.documents())


def _text(path: str, config: TridentConfig) -> Inspected:
    data: DataConfig = replace(config.data, source=DataSource.files, files=(path,), records=RecordKind.text)
    try:
        files = input_files(data)
    except TridentError as error:
        raise DataError(f"{PATH} must be {_KINDS}, but {path} is none: {error}") from error
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
