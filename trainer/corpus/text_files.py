"""Text files: each is a document. A long one is read in chunks, and a unit of it begins with a whole character."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import chain, islice
from typing import IO

from trainer.config.schema import DataConfig, DataSource
from trainer.corpus.document import EXCERPT_BYTES, BadDocument, BadRecord, Document, Origin
from trainer.corpus.opening import FILES, not_utf8, readable
from trainer.corpus.units import InputFile, Span

CHUNK_BYTES = 1 << 20
"""Bytes that are read and decoded at once."""
_BOM = "\ufeff"
_CONTINUATION = (0x80, 0xC0)
_LONGEST_REST = 3
"""Largest number of bytes of a character behind its first one."""


def text_documents(data: DataConfig, file: InputFile, span: Span) -> Iterator[Document | BadRecord]:
    """Yield the document of a text file, or the part of it whose characters begin in the span.

    A part is kept also where it is blank.
    """
    is_part = span.first > 0 or (span.end is not None and span.end != file.size)
    is_library = data.source is DataSource.stdlib
    chunks = _chunks(file, span, "data.source=stdlib: library modules" if is_library else FILES)
    try:
        # Most files are one chunk, and their faults are known before they are a document.
        held = list(islice(chunks, 2))
        while not is_part and held and not held[-1].strip() and (more := next(chunks, None)) is not None:
            held.append(more)
    except BadDocument as bad:
        # A few modules of the library are in other encodings on purpose.
        if not (is_library and isinstance(bad.__cause__, UnicodeDecodeError)):
            yield bad.record
        return
    if span.first == 0 and held and not is_library:
        held[0] = held[0].removeprefix(_BOM)
    origin = Origin("file", 0, file.path)
    if is_part:
        is_open = span.end is not None and span.end != file.size
        yield Document(origin, chain(held, chunks), continues=span.first > 0, is_open=is_open)
        return
    if any(chunk.strip() for chunk in held):
        yield Document(origin, chain(held, chunks))


def _chunks(file: InputFile, span: Span, what: str) -> Iterator[str]:
    with readable(file, what) as content:
        start = _whole_character(content, span.first) if span.first else 0
        stop = None
        if span.end is not None and span.end != file.size:
            stop = _whole_character(content, span.end)
        if span.first:
            content.seek(start)
        elif stop is not None:
            content.seek(0)
        position, rest, is_last = start, b"", False
        while not is_last:
            block = content.read(CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - position - len(rest)))
            is_last = not block
            held = rest + block
            try:
                text, used = codecs.utf_8_decode(held, "strict", is_last)
            except UnicodeDecodeError as error:
                raise _fault(file, position, held, error) from error
            position, rest = position + used, held[used:]
            if text:
                yield text


def _fault(file: InputFile, position: int, held: bytes, error: UnicodeDecodeError) -> BadDocument:
    at = position + error.start
    excerpt = held[error.start : error.start + EXCERPT_BYTES]
    return BadDocument(not_utf8(Origin("file", 0, file.path), file.path, f"at byte {at}", excerpt))


def _whole_character(content: IO[bytes], position: int) -> int:
    """Return the position of the first character that begins at a byte or behind it."""
    content.seek(position)
    following = content.read(_LONGEST_REST)
    low, high = _CONTINUATION
    return position + next((index for index, byte in enumerate(following) if not low <= byte < high), len(following))
