"""The text in the field of a record, whatever the record was read from."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from trainer.corpus.document import EXCERPT_BYTES, BadRecord, Origin
from trainer.corpus.units import Kind
from trainer.corpus.wording import listed


class Row(NamedTuple):
    """A record as its file holds it, before anybody asks what is in it."""

    origin: Origin
    value: Any


def text_in(row: Row, key: str, kind: Kind) -> str | BadRecord | None:
    """Return the text of a record; None if the field is null.

    Args:
        row: the record.
        key: name of the field.
        kind: form of its file; the wording of the fault depends on it.
    """
    origin, held = row
    if isinstance(held, dict):
        text = held.get(key, held)
        if text is None or isinstance(text, str):
            return text
    return _without_text(origin, held, key, kind)


def _without_text(origin: Origin, held: object, key: str, kind: Kind) -> BadRecord:
    if not isinstance(held, dict):
        have = f"is {type(held).__name__}, no object"
    elif key not in held:
        have = f"has the keys {listed(sorted(map(str, held)))}"
    else:
        have = f"has {type(held[key]).__name__} there"
    if kind is Kind.parquet:
        found = type(held[key]).__name__ if isinstance(held, dict) and key in held else "nothing"
        problem = f"data.text_key={key} must be a column of text in {origin.path}, but holds {found}"
    elif kind is Kind.hub:
        problem = f"{origin.path} must have the text field data.text_key={key}, but {_hub_has(held, key)}"
    else:
        problem = (
            f"each {origin.what} of {origin.path} must be an object with the text in data.text_key={key}, but "
            f"{origin.what} {origin.number} {have}"
        )
        problem = problem.replace("each byte of", "each line of", 1)
    return BadRecord(origin, problem, json.dumps(held, default=str).encode()[:EXCERPT_BYTES])


def _hub_has(held: object, key: str) -> str:
    if isinstance(held, dict) and key in held:
        return f"holds {type(held[key]).__name__} there"
    return f"has {listed(held)}" if isinstance(held, dict) else f"a row is {type(held).__name__}"
