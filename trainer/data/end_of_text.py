"""The search for the token that ends a document. No torch.

The places are asked in this order: the user's `tokenizer.eos_token`; `eos_token` of the tokenizer_config.json and then
of the special_tokens_map.json beside a tokenizer.json; `eos_token_id` of the generation_config.json there; the one
known name that is among the special tokens. Nothing is guessed where several could be meant.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.corpus.wording import listed, reason
from trainer.errors import DataError

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
KNOWN_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|eos|>")
SETTINGS = "tokenizer_config.json"
_BY_TEXT = (SETTINGS, "special_tokens_map.json")
_BY_ID = "generation_config.json"
KEY = "tokenizer.eos_token"
_MORE_IDS = 2**32
"""More ids than the library can count."""
ReadFile = Callable[[str], str | None]
"""Name of a file that may lie beside a tokenizer.json -> its text, or None where there is none."""
Declared = tuple[str, str | int]
"""A file's declaration: (file, token or id)."""


def beside(file: Path) -> ReadFile:
    """Return a function that reads the files in the folder of a tokenizer.json."""

    def read(name: str) -> str | None:
        try:
            return file.with_name(name).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise DataError(
                f"{file.with_name(name)} must be readable, since it may say which token ends a document, but is not: "
                f"{reason(error)}; set {KEY}, or let it be read"
            ) from error

    return read


def nothing_beside(_name: str) -> None:
    """Read no file, because there is none."""


def end_of_text(tokenizer: tokenizers.Tokenizer, origin: str, wanted: str | None, read: ReadFile) -> int:
    """Return the id of the token that ends a document.

    Args:
        tokenizer: a tokenizer of the `tokenizers` library.
        origin: the tokenizer's name in errors.
        wanted: `tokenizer.eos_token`.
        read: reads the files beside it; not called where the user names the token.

    Raises:
        DataError: the named token is not in the tokenizer, none is named, or several may be meant.
    """
    if wanted is not None:
        return _named_by_user(tokenizer, origin, wanted)
    found = declared_end(read)
    if found is not None:
        return _named_by_file(tokenizer, origin, *found)
    special = special_tokens(tokenizer)
    known = [name for name in KNOWN_NAMES if name in special]
    known = known or [name for name in KNOWN_NAMES if tokenizer.token_to_id(name) is not None]
    if len(known) == 1:
        return _named_by_file(tokenizer, origin, "", known[0])
    several = f"it has {' and '.join(known)}" if known else f"none of its special tokens ({listed(special)}) is known"
    raise DataError(
        f"{origin} must say which token ends a document, but no {SETTINGS} is beside it that does, and {several}; "
        f"set {KEY} to the token that does",
        hints=[f"for example {_word(known[-1] if known else next(iter(special), END_OF_TEXT))}"],
    )


def first_known(tokenizer: tokenizers.Tokenizer) -> str | None:
    """Return the token that earlier versions used: the first known name that the vocabulary has."""
    return next((name for name in KNOWN_NAMES if tokenizer.token_to_id(name) is not None), None)


def declared_end(read: ReadFile) -> Declared | None:
    """Return the token that the files beside a tokenizer declare to end a document, or None if they declare none.

    Raises:
        DataError: one of them cannot be understood.
    """
    for file in _BY_TEXT:
        token = _entry(file, read, "eos_token")
        # Older files hold the token's text together with flags.
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str):
            return file, text
        if token is not None:
            raise DataError(f"eos_token of {file} must be the text of a token, but is {token!r}; set {KEY}")
    number = _entry(_BY_ID, read, "eos_token_id")
    numbers = number if isinstance(number, list) else [] if number is None else [number]
    if not numbers:
        return None
    ids = {one for one in numbers if isinstance(one, int) and not isinstance(one, bool) and one >= 0}
    different = set(map(str, numbers))
    if len(ids) == len(different) == 1:
        return _BY_ID, ids.pop()
    if len(ids) < len(different):
        raise DataError(f"eos_token_id of {_BY_ID} must be a token's id, but is {number!r}; set {KEY}")
    raise DataError(
        f"one token must end a document, but {_BY_ID} names {len(ids)} (ids {listed(map(str, sorted(ids)))}) and "
        f"{SETTINGS} none; set {KEY} to the one that does"
    )


def ends_of_generation(read: ReadFile) -> tuple[int, ...]:
    """Return the ids that the generation_config.json beside a tokenizer names as ends of a text; none without it.

    Raises:
        DataError: it cannot be understood.
    """
    number = _entry(_BY_ID, read, "eos_token_id")
    numbers = number if isinstance(number, list) else [] if number is None else [number]
    found = tuple(one for one in numbers if isinstance(one, int) and not isinstance(one, bool) and one >= 0)
    if len(found) < len(numbers):
        raise DataError(f"eos_token_id of {_BY_ID} must be a token's id or a list of them, but is {number!r}")
    return found


def special_tokens(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Return the special tokens in the order of their ids."""
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    return [token.content for _, token in added if token.special]


def _entry(file: str, read: ReadFile, key: str) -> object:
    text = read(file)
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} beside the tokenizer must be JSON, since it may say which token ends a document, but is not: "
            f"{reason(error)}; set {KEY}, or repair it"
        ) from error
    return content.get(key) if isinstance(content, dict) else None


def _named_by_user(tokenizer: tokenizers.Tokenizer, origin: str, wanted: str) -> int:
    found = tokenizer.token_to_id(wanted)
    special = special_tokens(tokenizer)
    is_id = wanted.isdecimal() and wanted not in special
    if found is not None and not is_id:
        return int(found)
    token = tokenizer.id_to_token(int(wanted)) if is_id and int(wanted) < _MORE_IDS else None
    if token is not None:
        raise DataError(
            f"{KEY} must be the text of a token and not its id, but is {wanted}; set {KEY} to {token!r}",
            hints=[f"for example {_word(token)}"],
        )
    close = difflib.get_close_matches(wanted, special, 1, 0.5)
    raise DataError(
        f"{KEY} must be a token of {origin}, but {wanted!r} is none; its special tokens are {listed(special)}",
        hints=[f"did you mean {_word(close[0])}?"] if close else [],
    )


def _named_by_file(tokenizer: tokenizers.Tokenizer, origin: str, file: str, end: str | int) -> int:
    if isinstance(end, str):
        found = tokenizer.token_to_id(end)
    else:
        found = end if end < _MORE_IDS and tokenizer.id_to_token(end) is not None else None
    if found is None:
        raise DataError(
            f"{origin} must have the token that ends a document, but has no {end!r}, which {file} names; set {KEY} to "
            f"one that it has (its special tokens are {listed(special_tokens(tokenizer))})"
        )
    return int(found)


def _word(token: str) -> str:
    return f"'{KEY}=\"{token}\"'"
