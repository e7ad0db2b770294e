"""Text files: each is a document, or several with a separator between them.

A long document is read in chunks. A unit in the middle begins with a whole character, and goes on in the document that
the unit before began.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from trainer.config.schema import DataConfig, DataSource
from trainer.corpus.document import EXCERPT_BYTES, BadDocument, BadRecord, Document, EmptyRecord, Origin
from trainer.corpus.opening import FILES, not_utf8, readable
from trainer.corpus.record_text import written_out
from trainer.corpus.separated import Part, Parts, State, parts_of
from trainer.corpus.units import InputFile, Span

_BOM = "\ufeff"


def text_documents(data: DataConfig, file: InputFile, span: Span) -> Iterator[Document | EmptyRecord | BadRecord]:
    """Yield the documents of a text file that begin in a span, and the part that is in it of one that began before.

    A part of a document is kept also where it is blank. Of a document with a fault that
    is in several units only the part with the fault is left out.
    """
    is_library = data.source is DataSource.stdlib
    separator = written_out(data.document_separator or "").encode()
    try:
        with readable(file, "data.source=stdlib: library modules" if is_library else FILES) as content:
            following = parts_of(content, span, file.size, separator)
            may_stay_open = span.end is not None and span.end != file.size
            for number, first in enumerate(following, start=1):
                parts = Parts(first, following)
                origin = _origin(file, span, separator, number, first)
                for found in _documents(origin, first, _Reading(parts, may_stay_open, is_library)):
                    # A few modules of the library are in other encodings on purpose.
                    if not (is_library and isinstance(found, BadRecord)):
                        yield found
                for _ in parts:
                    continue
    except BadDocument as bad:
        yield bad.record


def _origin(file: InputFile, span: Span, separator: bytes, number: int, first: Part) -> Origin:
    if not separator:
        return Origin("file", 0, file.path)
    return Origin("byte", first.position, file.path) if span.first else Origin("document", number, file.path)


class _Reading(NamedTuple):
    parts: Parts
    may_stay_open: bool
    """True if the document may go on behind the span: it is read whole, to know whether it does."""
    keeps_mark: bool
    """True if a byte order mark is text."""


def _documents(origin: Origin, first: Part, reading: _Reading) -> Iterator[Document | EmptyRecord | BadRecord]:
    """Yield the document of some parts; its fault, and what is left of it if other units have parts of it, too."""
    parts = reading.parts
    chunks = _decoded(origin, parts, reading.keeps_mark)
    held: list[str] = []
    bad: BadRecord | None = None
    try:
        # Most documents are one chunk, and their faults are known before they are a document.
        for chunk in chunks:
            held.append(chunk)
            if len(held) > 1 and chunk.strip() and not reading.may_stay_open:
                break
    except BadDocument as error:
        bad, held = error.record, []
        for _ in parts:
            continue
    is_open = parts.state is State.open
    if bad is not None:
        yield bad
    if first.continues or is_open or any(chunk.strip() for chunk in held):
        yield Document(origin, chain(held, chunks), continues=first.continues, is_open=is_open)
    elif bad is None:
        yield EmptyRecord(origin)


def _decoded(origin: Origin, parts: Parts, keeps_mark: bool) -> Iterator[str]:
    rest = b""
    for part in parts:
        held = rest + part.held
        try:
            text, used = codecs.utf_8_decode(held, "strict", part.state is not State.more)
        except UnicodeDecodeError as error:
            at = part.position - len(rest) + error.start
            excerpt = held[error.start : error.start + EXCERPT_BYTES]
            raise BadDocument(not_utf8(origin, origin.path, f"at byte {at}", excerpt)) from error
        if part.position == 0 and not keeps_mark:
            text = text.removeprefix(_BOM)
        rest = held[used:]
        if text:
            yield text
