"""The tokenizer that a build makes for its texts, and the one that all sources of a blend share. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from trainer.config.blend_sources import READY_MADE, source_configs
from trainer.config.held_out import names_validation, trained_on
from trainer.config.schema import RecordKind, TokenizerKind, TridentConfig
from trainer.data.examples import training_texts
from trainer.data.opening_checks import check_vocabulary
from trainer.data.pieces import training_pieces
from trainer.data.pretrained_tokenizer import load_pretrained
from trainer.data.shared_cache import check_readable, published, remove_leftovers, set_aside, turn
from trainer.data.split import parts_of
from trainer.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, train_bpe, wanted_entries
from trainer.errors import DataError

_PREFIX = "tokenizer-"
Say = Callable[[str], None]


def tokenizer_of(config: TridentConfig, say: Say, texts: Iterable[str] | None = None) -> Tokenizer:
    """Return the tokenizer that a config asks for; one that is trained may get fewer entries, which is said.

    Args:
        config: a validated config.
        say: is told.
        texts: to train on; None: those of the config's only source.

    Raises:
        DataError: the texts, or a pretrained tokenizer, cannot be used.
    """
    settings = config.tokenizer
    tokenizer = make_tokenizer(config, _training(config) if texts is None else texts)
    if settings.kind is TokenizerKind.bpe and tokenizer.vocab_size < wanted_entries(config):
        key = "model.vocab_size" if settings.vocab_size is None and config.model.vocab_size else "tokenizer.vocab_size"
        say(f"the text is enough for {tokenizer.vocab_size} of {key}={wanted_entries(config)} tokenizer entries")
    return tokenizer


def _training(config: TridentConfig) -> Iterator[str]:
    """Yield the texts of a source that are not held out."""
    return training_pieces(config) if config.data.records is RecordKind.text else training_texts(config)


class SharedTokenizer:
    """The tokenizer of a blend that trains one: a folder of the cache, named by all that decides it.

    Args:
        config: config of a run with a blend.
        cache: the cache folder.
        name_of: config of a source of text -> hash of all that decides its tokens, were it the only source.
    """

    def __init__(self, config: TridentConfig, cache: Path, name_of: Callable[[TridentConfig], str]) -> None:
        self._config = config
        self._name_of = name_of
        self._sources = {
            name: replace(own, data=trained_on(own.data)) if names_validation(own.data) else own
            for name, own in sorted(source_configs(config).items())
        }
        is_trained = config.tokenizer.kind is TokenizerKind.bpe
        has_texts = not any(own.data.source in READY_MADE for own in self._sources.values())
        self._folder = cache / self._name() if is_trained and has_texts else None

    def where_there(self) -> TridentConfig | None:
        """Return the config with the tokenizer's folder in the place of its training; None if it is not there."""
        if self._folder is None:
            return self._config
        return self._with(self._folder) if _is_whole(self._folder) else None

    def trained(self, say: Say) -> TridentConfig:
        """Return the config with the tokenizer's folder, which is made where it is not there: one process trains.

        Raises:
            DataError: a source cannot be read, files have changed on the way, or `model.vocab_size` does not fit.
            OSError: the cache cannot be written.
        """
        folder = self._folder
        if folder is None:
            return self._config
        check_readable(folder)
        if not _is_whole(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with turn(folder, lambda: _is_whole(folder), say) as has_lock:
                # Another process may have made it while this one waited.
                if not _is_whole(folder):
                    if has_lock:
                        remove_leftovers(folder)
                    self._make(folder, say)
        return self._with(folder)

    def _with(self, folder: Path) -> TridentConfig:
        check_vocabulary(self._config, load_tokenizer(folder).vocab_size)
        kind = TokenizerKind.pretrained
        return replace(
            self._config, tokenizer=replace(self._config.tokenizer, kind=kind, path=str(folder), vocab_size=None)
        )

    def _name(self) -> str:
        names = [_of_source(name, lambda own=own: self._name_of(own)) for name, own in self._sources.items()]  # type: ignore[misc]
        return _PREFIX + hashlib.blake2b(json.dumps(names).encode(), digest_size=12).hexdigest()

    def _make(self, folder: Path, say: Say) -> None:
        say(f"training one tokenizer for the sources of data.blend: {', '.join(self._sources)}")
        set_aside(folder)
        published(folder, lambda partial: self._train(partial, folder.name, say), lambda: _is_whole(folder) or None)

    def _train(self, partial: Path, name: str, say: Say) -> bool:
        texts = {source: _named(source, _training(own)) for source, own in self._sources.items()}
        tokenizer_of(self._config, say, in_turn(texts)).save(partial)
        if self._name() != name:
            raise DataError(
                "the files of the sources must not change while a tokenizer is trained on them, but one has "
                "changed; start the same command again when nothing writes them any more"
            )
        return True


def shared_name(path: str | None, cache: Path) -> str | None:
    """Return the name of a blend's tokenizer, which says all that decides it; None if the path is of another one."""
    if path is None or Path(path).parent != cache or not Path(path).name.startswith(_PREFIX):
        return None
    return Path(path).name


def in_turn(texts: Mapping[str, Iterator[str]]) -> Iterator[str]:
    """Yield the texts of sources in turn, long ones in parts: the next is of the source that has given the least.

    So sources have equal shares, counted in characters, until one has no more. Of two that have given the same, the
    earlier one is next.
    """
    waiting = {name: (part for text in found for part in parts_of((text,))) for name, found in texts.items()}
    given = dict.fromkeys(waiting, 0)
    while given:
        name = min(given, key=given.__getitem__)
        text = next(waiting[name], None)
        if text is None:
            del given[name]
            continue
        given[name] += len(text)
        yield text


def _is_whole(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer that can be used; it appears whole, but a disk may lose files."""
    try:
        load_tokenizer(folder)
    except DataError:
        return False
    return True


def _named(name: str, texts: Iterator[str]) -> Iterator[str]:
    while (text := _of_source(name, lambda: next(texts, None))) is not None:
        yield text


def _of_source(name: str, run: Callable[[], str | None]) -> str | None:
    try:
        return run()
    except DataError as error:
        raise DataError(f"data.blend.{name}: {error}", error.hints) from error


def make_tokenizer(config: TridentConfig, texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer that the config asks for; `texts` are read only to train one.

    Raises:
        DataError: a pretrained tokenizer cannot be used.
    """
    settings = config.tokenizer
    if settings.kind is TokenizerKind.bytes:
        return ByteTokenizer()
    if settings.kind is TokenizerKind.pretrained:
        return load_pretrained(settings)
    return train_bpe(texts, wanted_entries(config))
