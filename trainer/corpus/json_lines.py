"""Files of one JSON value a line. A unit of one begins with the first whole line in it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import IO, Any

from trainer.corpus.addresses import is_address
from trainer.corpus.document import EXCERPT_BYTES, BadDocument, BadRecord, Origin
from trainer.corpus.long_json import LONG_BYTES, LongValue
from trainer.corpus.opening import not_utf8, readable
from trainer.corpus.record_text import Row
from trainer.corpus.units import Compression, InputFile, Span
from trainer.corpus.wording import reason

_BLOCK_BYTES = 1 << 20
"""Bytes of a long line that are read at once."""


def json_line_rows(file: InputFile, span: Span) -> Iterator[Row | BadRecord]:
    """Yield the content of each line that is not empty and begins in the span."""
    try:
        with readable(file) as content:
            position = _line_start(content, span)
            yield from line_rows(file, content, position, span.end)
    except BadDocument as bad:
        yield bad.record


def line_rows(
    file: InputFile, content: IO[bytes], position: int, end: int | None, before: Iterable[bytes] = ()
) -> Iterator[Row | BadRecord]:
    """Yield the content of lines that are not empty.

    Args:
        file: the file.
        content: its bytes, read to the first line, or behind the lines before.
        position: bytes in front of the first line.
        end: lines that begin there or behind it are left out; None: no line is.
        before: lines that were read already.
    """
    is_start = position == 0
    lines = chain(before, iter(partial(content.readline, LONG_BYTES), b""))
    for number, line in enumerate(lines, start=1):
        if end is not None and position >= end:
            return
        held = line.removeprefix(codecs.BOM_UTF8) if position == 0 else line
        origin = Origin("line", number, file.path) if is_start else Origin("byte", position, file.path)
        if len(line) < LONG_BYTES or line.endswith(b"\n"):
            position += len(line)
            held = held.strip()
            if held.startswith(b"[") and origin.what == "line" and number == 1:
                yield _array(held, origin)
            elif held:
                yield parsed(held, origin)
            continue
        first = position + len(line) - len(held)
        sizes = [len(line)]
        rest = _rest_of_line(content, sizes)
        if file.compression is Compression.none and not is_address(file.path):
            for _ in rest:
                continue
            make = partial(LongValue.of_file, file.path, first, position + sum(sizes))
        else:
            make = partial(LongValue.of_parts, chain((held,), rest))
        yield read_value(make, held, origin)
        position += sum(sizes)


def _array(held: bytes, origin: Origin) -> BadRecord:
    problem = (
        f"each line of {origin.path} must be an object, but line 1 begins an array; a file that is one array must be "
        "named .json"
    )
    return BadRecord(origin, problem, held[:EXCERPT_BYTES])


def parsed(held: bytes, origin: Origin) -> Row | BadRecord:
    """Return the value that some bytes hold."""
    return read_value(lambda: json.loads(held.decode("utf-8")), held, origin)


def read_value(make: Callable[[], Any], held: bytes, origin: Origin) -> Row | BadRecord:
    """Return what a function makes, or its fault.

    Args:
        make: makes a value of JSON.
        held: its bytes, or the first of them.
        origin: its place.
    """
    try:
        return Row(origin, make())
    except UnicodeDecodeError:
        return not_utf8(origin, origin.path, f"in {origin.what} {origin.number}", held[:EXCERPT_BYTES])
    # Numbers of thousands of digits and very deep nesting have errors of their own.
    except (ValueError, RecursionError) as error:
        what = "line" if origin.what == "byte" else origin.what
        problem = f"each {what} of data.files must be JSON, but {origin} is not: {reason(error)}"
        return BadRecord(origin, problem, held[:EXCERPT_BYTES])


def _rest_of_line(content: IO[bytes], sizes: list[int]) -> Iterator[bytes]:
    """Yield what is left of a line, and append the size of each part."""
    while part := content.readline(_BLOCK_BYTES):
        sizes.append(len(part))
        yield part
        if part.endswith(b"\n"):
            return


def _line_start(content: IO[bytes], span: Span) -> int:
    """Go to the first line that begins in a span, and return where that is; a byte behind the span if none does."""
    if span.first == 0:
        return 0
    position = content.seek(span.first - 1)
    for part in _rest_of_line(content, []):
        position += len(part)
        # The end of a long line is not looked for by each unit that is in it.
        if span.end is not None and position > span.end:
            break
    return position
