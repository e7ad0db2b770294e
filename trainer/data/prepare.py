"""Turn a source into token shards, once. Any number of processes may ask at the same time. No torch.

The cache is addressed by content: a folder's name is a hash of everything that decides its tokens. One process builds
it under a lock and renames it into place; the others wait and map it. `shared_cache` is about several users.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from trainer.config.held_out import names_validation
from trainer.config.places import absolute_path
from trainer.config.schema import DataConfig, DataSource, Dedup, OnBadRecord, RecordKind, TokenizerKind, TridentConfig
from trainer.config.schema_data import ID_FILES
from trainer.corpus.inputs import file_identity, identity
from trainer.corpus.wording import reason
from trainer.data.blended import blended, blended_where_there
from trainer.data.build.assembly import Assembled, Parts, assemble
from trainer.data.build.chosen import DamagedUnit, Places
from trainer.data.build.run import do_units
from trainer.data.build.schedule import ALONE, Share
from trainer.data.build.work_folder import WorkFolder
from trainer.data.dataset import attended_in
from trainer.data.examples import examples_identity
from trainer.data.kept_template import keep_template
from trainer.data.megatron_pair import PairWriter
from trainer.data.opening_checks import check_prepared, check_vocabulary
from trainer.data.own_validation import with_own_validation
from trainer.data.pieces import synthetic_pieces
from trainer.data.prepared import PreparedData, looks_at_documents, samples_of
from trainer.data.pretrained_tokenizer import load_pretrained, pretrained_file, pretrained_identity
from trainer.data.ready_made import ready_made_identity, token_sources, write_parts
from trainer.data.shared_cache import check_readable, published, remove_leftovers, set_aside, share, silent, turn
from trainer.data.token_files import TRAIN, VALIDATION, dtype_for, file_sizes, shard_prefix
from trainer.data.token_manifest import FORMAT_VERSION, Counts, Manifest, folder_hash, read_manifest, write_manifest
from trainer.data.tokenizer import Tokenizer, load_tokenizer, wanted_entries
from trainer.data.trained_tokenizer import SharedTokenizer, shared_name, tokenizer_of
from trainer.errors import ConfigError, DataError, StorageError, TridentError
from trainer.progress import PREPARING, current

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_PLAIN = (OnBadRecord.error, Dedup.none)
Say = Callable[[str], None]


def cache_folder(config: TridentConfig) -> Path:
    """Return the folder in which shards are cached: `data.cache_dir`, $TRIDENT_CACHE, or ~/.cache/trident.

    Raises:
        ConfigError: it is below a home folder that does not exist.
    """
    named = config.data.cache_dir or os.environ.get("TRIDENT_CACHE") or "~/.cache/trident"
    try:
        return absolute_path(named, "data.cache_dir")
    # Users of a container often have no home folder.
    except ConfigError as error:
        raise ConfigError(error.problems, ["set data.cache_dir or TRIDENT_CACHE to a folder"]) from None


def prepare(config: TridentConfig, say: Say | None = None, node: Share = ALONE) -> PreparedData:
    """Return the tokens of a config's data, building them first where needed: one process of a node builds.

    Args:
        config: a validated config.
        say: is told what is being done when it takes a while.
        node: this machine among those that do the same at the same time, and may share the work.

    Raises:
        DataError: source, tokenizer or cache folder cannot be used, or vocabularies do not fit.
        OutOfMemoryError: a process that tokenises was ended for its memory.
        PeerLostError: a process that tokenises stands still.
        StorageError: the cache's disk is full, read-only or failing.
    """
    with current().during(PREPARING):
        return _prepared(config, say or silent, node)


def _prepared(config: TridentConfig, say: Say, node: Share) -> PreparedData:
    if config.data.blend.sources:
        try:
            config = SharedTokenizer(config, cache_folder(config), _plain_name).trained(say)
        except (OSError, StorageError) as error:
            raise _cache_fault(cache_folder(config), error) from error
        return blended(config, lambda own: prepare(own, say, node))
    if names_validation(config.data):
        found = with_own_validation(config, lambda own: prepare(own, say, node))
        assert found is not None, "it is prepared"
        return found
    folder, plain = (cache_folder(config) / name for name in _names(config))
    check_readable(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        shares = bool(node.others) and _is_text(config.data)
        # The two values of data.on_bad_record share the folder of the units, and so the lock.
        locked = plain.with_name(f"{plain.name}.node{node.node}") if shares else plain
        with ExitStack() as held:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                has_lock = held.enter_context(turn(locked, lambda: read_manifest(folder) is not None, say))
            except OSError as error:
                raise _cache_fault(folder.parent, error) from error
            # Another process may have built it while this one waited.
            check_readable(folder)
            manifest = read_manifest(folder) or _build(config, folder, plain, has_lock, node if shares else ALONE, say)
    elif _is_text(config.data):
        _remove_work_left(config, plain, say)
    return _opened(config, folder, manifest)


def look_up(config: TridentConfig) -> tuple[Path, PreparedData | None]:
    """Return a config's cache folder, or of several sources the cache, and the data if they are there. Writes nothing.

    Raises:
        DataError: source, tokenizer or cache folder cannot be used, or vocabularies do not fit.
    """
    if config.data.blend.sources:
        cache = cache_folder(config)
        known = SharedTokenizer(config, cache, _plain_name).where_there()
        return cache, None if known is None else blended_where_there(known, lambda own: look_up(own)[1])
    if names_validation(config.data):
        return cache_folder(config), with_own_validation(config, lambda own: look_up(own)[1])
    folder = cache_folder(config) / _fingerprint(config)
    return folder, look_into(folder, config)


def look_into(folder: Path, config: TridentConfig) -> PreparedData | None:
    """Return the data of a config in a folder of the cache; None if they are not there. Raises as `look_up`."""
    manifest = read_manifest(folder)
    return None if manifest is None else _opened(config, folder, manifest)


class _Names(NamedTuple):
    """Names in the cache, from one look at the files of a source, which may be a million."""

    own: str
    """Hash of everything that decides the tokens: the folder of the shards."""
    plain: str
    """The same with data.on_bad_record=error: it names units and locks, so that changing the key keeps what is done."""


def _fingerprint(config: TridentConfig) -> str:
    return _names(config).own


def _plain_name(config: TridentConfig) -> str:
    return _names(config).plain


def _names(config: TridentConfig) -> _Names:
    data, made_of = config.data, _made_of(config)

    def name(on_bad_record: OnBadRecord) -> str:
        facts: list[object] = [FORMAT_VERSION, data.source.value, data.max_documents, data.validation_fraction]
        # Only where they are set: folders of earlier versions stay.
        facts += [data.test_fraction] if data.test_fraction else []
        facts += [value.value for value in (on_bad_record, data.dedup) if value not in _PLAIN]
        return hashlib.blake2b(json.dumps([*facts, *made_of]).encode(), digest_size=12).hexdigest()

    return _Names(name(data.on_bad_record), name(OnBadRecord.error))


def _made_of(config: TridentConfig) -> list[object]:
    """Return the facts about source, tokenizer and vocabulary. Looks at the files."""
    data, tokenizer = config.data, config.tokenizer
    facts: list[object] = []
    if data.source is DataSource.synthetic:
        facts += [data.synthetic_tokens, config.model.vocab_size, config.train.seed]
    else:
        facts += ready_made_identity(data) if data.source in ID_FILES else identity(data)
        # A blend's own tokenizer is known by its name, wherever the cache is.
        shared = shared_name(tokenizer.path, cache_folder(config))
        facts += [tokenizer.kind.value, shared or tokenizer.path]
        if data.records is not RecordKind.text:
            facts += examples_identity(config)
        if data.source in ID_FILES:
            # Ids are checked against the vocabulary when the shards are built.
            facts.append(config.model.vocab_size)
        elif tokenizer.kind is TokenizerKind.bpe:
            facts.append(wanted_entries(config))
        if tokenizer.kind is TokenizerKind.pretrained and shared is None:
            file = pretrained_file(str(tokenizer.path))
            facts += [None if file is None else file_identity(file), *pretrained_identity(tokenizer)]
    return facts


def _cache_fault(root: Path, error: BaseException) -> DataError | StorageError:
    # The error of the tokenizer's file names run_dir; the disk's own error is its cause.
    cause = error.__cause__ if isinstance(error, StorageError) and error.__cause__ else error
    if isinstance(cause, OSError) and cause.errno in _STORAGE:
        return StorageError(
            f"data.cache_dir must be on a disk that takes the tokens, but {root}: {reason(cause)}",
            hints=["free some space, or set data.cache_dir or TRIDENT_CACHE to a folder on another disk"],
        )
    return DataError(
        f"data.cache_dir must be a folder that can be written, but {root}: {reason(cause)}",
        hints=["set data.cache_dir or TRIDENT_CACHE to a folder on a local disk that this user can write"],
    )


def _is_text(data: DataConfig) -> bool:
    """Return whether a source is texts or records, from which the tokens are made here."""
    return data.source not in (DataSource.synthetic, *ID_FILES)


def _build(config: TridentConfig, folder: Path, plain: Path, has_lock: bool, node: Share, say: Say) -> Manifest:
    try:
        if _is_text(config.data):
            return _from_units(config, folder, plain, has_lock, node, say)
        _clear(folder, has_lock, say)
        return _published(folder, lambda partial: _write_tokens(config, partial, say))
    except (OSError, StorageError) as error:
        raise _cache_fault(folder.parent, error) from error


def _clear(folder: Path, has_lock: bool, say: Say) -> None:
    if os.path.lexists(folder):
        say(f"the cached tokens in {folder} are damaged: building them again")
        set_aside(folder)
    if has_lock:
        remove_leftovers(folder)


def _published(folder: Path, write: Callable[[Path], Manifest]) -> Manifest:
    def described(partial: Path) -> Manifest:
        manifest = write(partial)
        write_manifest(partial, manifest)
        return manifest

    return published(folder, described, lambda: read_manifest(folder))


def _from_units(config: TridentConfig, folder: Path, plain: Path, has_lock: bool, node: Share, say: Say) -> Manifest:
    """Build from units. Each of several nodes holds a lock of its own; beginning and end have the common one."""

    def common() -> AbstractContextManager[bool]:
        return turn(plain, is_done, say) if node.others else nullcontext(has_lock)

    def is_done() -> bool:
        return read_manifest(folder) is not None

    work = _work_folder(config, plain)
    try:
        with common() as is_alone:
            if is_done():
                return _whole(folder)
            _clear(folder, is_alone, say)
            work.make()
            if is_alone and not node.others:
                work.remove_unfinished()
            tokenizer = _kept_tokenizer(config, work, say)
        check_vocabulary(config, tokenizer.vocab_size)
        while True:
            places = do_units(config, work, node, say, is_done)
            with common():
                if is_done():
                    return _whole(folder)
                with suppress(DamagedUnit):
                    manifest = _published(folder, lambda partial: _assembled(config, tokenizer, work, places, partial))  # noqa: B023 - called at once
                    work.remove()
                    return manifest
    except (OSError, TridentError):
        # Whoever has made the shards removes the folder of the units.
        if is_done():
            return _whole(folder)
        if not node.others:
            work.remove_if_empty()
        raise


def _whole(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None, "it is whole"
    return manifest


def _work_folder(config: TridentConfig, plain: Path) -> WorkFolder:
    return WorkFolder.beside(plain, config.data.on_bad_record is OnBadRecord.skip)


def _remove_work_left(config: TridentConfig, plain: Path, say: Say) -> None:
    """Remove the folder of the units that a kill between the last two steps of a build has left."""
    work = _work_folder(config, plain)
    if not work.path.exists():
        return
    # Whoever has the lock is at work in it, with the other data.on_bad_record.
    with suppress(OSError), turn(plain, lambda: True, say) as has_lock:
        if has_lock:
            work.remove()


def _kept_tokenizer(config: TridentConfig, work: WorkFolder, say: Say) -> Tokenizer:
    """Return the tokenizer that the work folder has, or gets: all processes and nodes use the same."""
    say(f"tokenising data.source={config.data.source.value}")
    if not work.tokenizer.is_dir():
        with work.making_tokenizer() as made:
            tokenizer = tokenizer_of(config, say)
            tokenizer.save(made)
            if config.data.records is not RecordKind.text:
                keep_template(config, tokenizer, made)
    return load_tokenizer(work.tokenizer)


def _assembled(
    config: TridentConfig, tokenizer: Tokenizer, work: WorkFolder, places: Places, partial: Path
) -> Manifest:
    if _fingerprint(config) not in partial.name:
        raise DataError(
            "the files of the source must not change while they are tokenised, but one has changed; start the same "
            "command again when nothing writes them any more"
        )
    shutil.copytree(work.tokenizer, partial / "tokenizer")
    made = assemble(config, tokenizer, work, places, partial)
    return _described(config, partial, tokenizer, made)


def _write_tokens(config: TridentConfig, folder: Path, say: Say) -> Manifest:
    """Write the tokens of a source whose ids come ready-made."""
    tokenizer = None
    if config.data.source in ID_FILES and config.tokenizer.kind is TokenizerKind.pretrained:
        # Not needed for training: it travels with the run, so that the model can be sampled from.
        tokenizer = load_pretrained(config.tokenizer)
        (folder / "tokenizer").mkdir()
        share(folder / "tokenizer")
        tokenizer.save(folder / "tokenizer")
    if config.data.source in ID_FILES:
        eos_id = None if tokenizer is None else tokenizer.eos_id
        parts: Parts = write_parts(config, token_sources(config, eos_id, say), folder)
        documents = sum(shard.documents for shards in parts.values() for shard in shards)
        return _described(config, folder, tokenizer, Assembled(parts, Counts(read=documents), None))
    pieces = synthetic_pieces(config)
    assert config.model.vocab_size is not None, "validation asks for it"
    dtype = dtype_for(config.model.vocab_size)
    with ExitStack() as files:
        writers = {
            part: files.enter_context(PairWriter(shard_prefix(folder, part), dtype)) for part in (TRAIN, VALIDATION)
        }
        for held_out, tokens in pieces:
            writers[VALIDATION if held_out else TRAIN].append(tokens)
    parts = {part: (writer.shard(),) for part, writer in writers.items()}
    counts = Counts(read=sum(shard.documents for shards in parts.values() for shard in shards))
    return _described(config, folder, tokenizer, Assembled(parts, counts, None))


def _described(config: TridentConfig, folder: Path, tokenizer: Tokenizer | None, made: Assembled) -> Manifest:
    vocab_size = config.model.vocab_size if tokenizer is None else tokenizer.vocab_size
    assert vocab_size is not None, "validation asks for it"
    return Manifest(
        name=config.data.source.value,
        tokenizer=None if tokenizer is None else folder_hash(folder / "tokenizer"),
        vocab_size=vocab_size,
        eos_id=None if tokenizer is None else tokenizer.eos_id,
        parts=made.parts,
        counts=made.counts,
        inputs=tuple(_inputs(config)),
        sizes=file_sizes(folder),
        packed=made.packed,
    )


def _inputs(config: TridentConfig) -> list[str]:
    if config.data.source is DataSource.synthetic:
        return []
    return ready_made_identity(config.data) if config.data.source in ID_FILES else identity(config.data)


def _opened(config: TridentConfig, folder: Path, manifest: Manifest) -> PreparedData:
    check_prepared(config, manifest)
    prepared = PreparedData(
        folder=folder,
        vocab_size=config.model.vocab_size or manifest.vocab_size,
        manifest=manifest,
        tokenizer_folder=None if manifest.tokenizer is None else folder / "tokenizer",
        fingerprint=folder.name,
        boundaries=manifest.ends() if looks_at_documents(config.data) else None,
    )
    if prepared.packed is None and not config.data.mask_documents:
        return prepared
    return replace(prepared, attended=attended_in(samples_of(prepared, config.data, TRAIN, config.model.seq_length)))
