"""Files of one JSON value a line. A unit of one begins with the first whole line in it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO

from trainer.corpus.document import EXCERPT_BYTES, BadDocument, BadRecord, Origin
from trainer.corpus.opening import not_utf8, readable
from trainer.corpus.record_text import Row
from trainer.corpus.units import InputFile, Span
from trainer.corpus.wording import reason

_SKIPPED_BYTES = 1 << 20
"""Bytes of a line of the unit before that are read at once."""


def json_line_rows(file: InputFile, span: Span) -> Iterator[Row | BadRecord]:
    """Yield the content of each line that is not empty and begins in the span."""
    try:
        with readable(file) as content:
            yield from _rows(file, span, content)
    except BadDocument as bad:
        yield bad.record


def _rows(file: InputFile, span: Span, content: IO[bytes]) -> Iterator[Row | BadRecord]:
    position = _line_start(content, span.first)
    what = "byte" if span.first else "line"
    for number, line in enumerate(content, start=1):
        if span.end is not None and position >= span.end:
            return
        held = line.removeprefix(codecs.BOM_UTF8 if position == 0 else b"").strip()
        origin = Origin(what, position if span.first else number, file.path)
        position += len(line)
        if held:
            yield _parsed(held, origin)


def _parsed(held: bytes, origin: Origin) -> Row | BadRecord:
    try:
        return Row(origin, json.loads(held.decode("utf-8")))
    except UnicodeDecodeError:
        return not_utf8(origin, origin.path, f"in {origin.what} {origin.number}", held[:EXCERPT_BYTES])
    # Numbers of thousands of digits and very deep nesting have errors of their own.
    except (ValueError, RecursionError) as error:
        problem = f"each line of data.files must be JSON, but {origin} is not: {reason(error)}"
        return BadRecord(origin, problem, held[:EXCERPT_BYTES])


def _line_start(content: IO[bytes], first: int) -> int:
    """Go to the first line that begins at a byte or behind it, and return where that is."""
    if first == 0:
        return 0
    position = content.seek(first - 1)
    while part := content.readline(_SKIPPED_BYTES):
        position += len(part)
        if part.endswith(b"\n"):
            break
    return position
