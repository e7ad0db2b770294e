"""The text in a field of a record, whatever the record was read from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from trainer.config.schema import DataConfig
from trainer.corpus.document import EXCERPT_BYTES, BadRecord, Origin
from trainer.corpus.long_json import LongValue
from trainer.corpus.opening import not_utf8
from trainer.corpus.units import Kind
from trainer.corpus.wording import listed, reason

ABSENT: Any = object()
"""Value of a field that is not there."""


class Row(NamedTuple):
    """A record as its file holds it, before anybody asks what is in it."""

    origin: Origin
    value: Any
    """A value of JSON, a row as a dict, or a `LongValue`."""


def field_in(held: object, key: str) -> Any:
    """Return the value at a dotted key; `ABSENT` if there is none.

    A literal key wins over a path. On the way lists stand for their items: the value is the list of what is in them.
    """
    if isinstance(held, list):
        found = [field_in(item, key) for item in held]
        return [value for value in found if value is not ABSENT] if found else found
    if isinstance(held, LongValue):
        held = _opened(held, key)
    if held is None:
        return None
    if not isinstance(held, Mapping):
        return ABSENT
    if key in held:
        return held[key]
    for head, rest in paths(key):
        if head in held and (value := field_in(held[head], rest)) is not ABSENT:
            return value
    return ABSENT


def paths(key: str) -> Iterator[tuple[str, str]]:
    """Yield the ways to read a dotted key as a name and a key below it, longest name first."""
    at = len(key)
    while (at := key.rfind(".", 0, at)) > 0:
        yield key[:at], key[at + 1 :]


def text_in(row: Row, data: DataConfig, kind: Kind) -> str | BadRecord | Iterator[str] | None:
    """Return the text of a record, in chunks if it is a long one; None if it is null.

    Args:
        row: the record.
        data: name of the field, and what joins the items of a list.
        kind: form of its file; the wording of the fault depends on it.
    """
    origin, held = row
    key, joint = data.text_key, data.text_join
    # Most records are this.
    text = held.get(key, ABSENT) if isinstance(held, dict) else ABSENT
    if isinstance(text, str):
        return text
    try:
        if isinstance(held, LongValue):
            held = _opened(held, key)
        if text is ABSENT and isinstance(held, dict):
            text = field_in(held, key)
        if isinstance(text, LongValue):
            if text.is_text:
                return text.chunks(origin)
            text = text.whole()
    # A long value is checked for its form only.
    except (ValueError, RecursionError) as error:
        return BadRecord(origin, f"each line of data.files must be JSON, but {origin} is not: {reason(error)}")
    if isinstance(text, bytes):
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            return not_utf8(origin, origin.path, f"in {origin.what} {origin.number}", text[:EXCERPT_BYTES])
    if isinstance(text, list) and joint is not None and all(isinstance(item, str | None) for item in text):
        return written_out(joint).join(item for item in text if item is not None)
    return text if isinstance(text, str | None) else _without_text(origin, held, text, key, kind)


def whole(row: Row) -> Any:
    """Return the value of a record, a long one read as a whole; a `BadRecord` if that cannot be done."""
    if not isinstance(row.value, LongValue):
        return row.value
    try:
        return row.value.whole()
    except (ValueError, RecursionError) as error:
        return BadRecord(row.origin, f"each line of data.files must be JSON, but {row.origin} is not: {reason(error)}")


def written_out(text: str) -> str:
    """Return a text with line ends and tabs where a key has them as backslash and letter, since shells pass them so."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _opened(held: LongValue, key: str) -> Any:
    return held.opened({key, *(head for head, _ in paths(key))})


def _without_text(origin: Origin, held: object, found: object, key: str, kind: Kind) -> BadRecord:
    what = "nothing" if found is ABSENT else type(found).__name__
    more = ", whose items data.text_join would join" if isinstance(found, list) else ""
    if isinstance(found, dict) and found:
        more = f"; its fields are named like data.text_key={key}.{listed(map(str, list(found)[:1]))}"
    if not isinstance(held, dict):
        have = f"is {type(held).__name__}, no object"
    else:
        have = f"has the keys {listed(sorted(map(str, held)))}" if found is ABSENT else f"has {what} there{more}"
    if kind in (Kind.parquet, Kind.arrow):
        problem = f"data.text_key={key} must be a column of text in {origin.path}, but holds {what}{more}"
    elif kind is Kind.hub:
        have = f"has {listed(map(str, held))}" if found is ABSENT and isinstance(held, dict) else f"holds {what} there"
        problem = f"{origin.path} must have the text field data.text_key={key}, but {have}{more}"
    else:
        each = "line" if origin.what == "byte" else origin.what
        problem = (
            f"each {each} of {origin.path} must be an object with the text in data.text_key={key}, but "
            f"{origin.what} {origin.number} {have}"
        )
    return BadRecord(origin, problem, json.dumps(held, default=str).encode()[:EXCERPT_BYTES])
