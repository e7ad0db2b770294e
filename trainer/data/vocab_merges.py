"""Tokenizers as GPT-2 and GPT-NeoX keep them: a vocab.json and a merges.txt, without a tokenizer.json. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.corpus.wording import reason
from trainer.data.end_of_text import END_OF_TEXT, SETTINGS, beside
from trainer.errors import DataError

VOCAB, MERGES = "vocab.json", "merges.txt"
SENTENCEPIECE = ("tokenizer.model", "spiece.model")
"""Files of a sentencepiece model."""
_SPECIAL = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
"""Names by which tokenizer_config.json says that the text is divided as GPT-2 does."""


def has_merges(folder: str) -> bool:
    """Return whether a folder holds a vocabulary and merges."""
    return Path(folder, VOCAB).is_file() and Path(folder, MERGES).is_file()


def conversion(folder: str) -> str:
    """Return the command that writes a tokenizer.json for a folder of an older form."""
    code = f"from transformers import AutoTokenizer as A; A.from_pretrained({folder!r}).save_pretrained({folder!r})"
    return f'python -c "{code}"'


def as_tokenizer_json(vocab: Path, origin: str) -> str:
    """Return the tokenizer.json that says the same as a vocabulary and the merges beside it.

    Args:
        vocab: the vocab.json.
        origin: the tokenizer's name in errors.

    Raises:
        DataError: the files cannot be read, do not fit, or belong to a tokenizer that divides text in another way.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    settings = _object(vocab, SETTINGS)
    kind = settings.get("tokenizer_class")
    if kind is not None and kind not in _CLASSES:
        raise DataError(
            f"{origin} must have a tokenizer.json, since {VOCAB} and {MERGES} do not say how a {kind} divides a text",
            hints=[f"write one with {conversion(str(vocab.parent))}"],
        )
    try:
        model = models.BPE.from_file(str(vocab), str(vocab.with_name(MERGES)))
    # The library raises bare Exception.
    except Exception as error:
        raise DataError(f"{origin} must have a {VOCAB} and a {MERGES} that fit, but: {reason(error)}") from error
    has_blank = bool(settings.get("add_prefix_space", False))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_blank)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - set(tokenizer.get_vocab())
    if missing:
        raise DataError(f"{origin} must have all 256 bytes in {VOCAB}, but {len(missing)} are missing")
    for token, number, is_special in _added(vocab, settings):
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)([token])
        if number is not None and tokenizer.token_to_id(token) != number:
            found = tokenizer.token_to_id(token)
            raise DataError(f"{origin} must have token {token!r} as id {number}, but behind {VOCAB} it is {found}")
    return str(tokenizer.to_str())


def _added(vocab: Path, settings: Mapping[str, Any]) -> Iterator[tuple[str, int | None, bool]]:
    """Yield (token, its id if that is said, True if it is special), in the order in which new ones get their ids."""
    told: dict[str, tuple[int, bool]] = {}
    for number, token in settings.get("added_tokens_decoder", {}).items():
        told[str(token["content"])] = (int(number), bool(token.get("special", True)))
    for text, number in _object(vocab, _ADDED).items():
        told.setdefault(str(text), (int(number), False))
    named: dict[str, None] = {}
    for held in (settings, _object(vocab, _SPECIAL)):
        for key, value in held.items():
            tokens = [value] if key.endswith("_token") else value if key in _LISTS and isinstance(value, list) else []
            texts = [token.get("content") if isinstance(token, Mapping) else token for token in tokens]
            named |= {text: None for text in texts if isinstance(text, str)}
    # The class of GPT-2 has it, whether a file says so or not.
    named.setdefault(END_OF_TEXT, None)
    for text, (number, is_special) in sorted(told.items(), key=lambda item: item[1]):
        yield text, number, is_special or text in named
    for text in named:
        if text not in told:
            yield text, None, True


def _object(vocab: Path, name: str) -> Mapping[str, Any]:
    text = beside(vocab)(name)
    try:
        held = {} if text is None else json.loads(text)
    except ValueError as error:
        raise DataError(f"{vocab.with_name(name)} must be JSON, but is not: {reason(error)}") from error
    return held if isinstance(held, Mapping) else {}
