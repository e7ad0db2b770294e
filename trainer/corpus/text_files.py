"""Text files: each is a document, or several with a separator between them.

A long document is read in chunks. A unit in the middle begins with a whole character, and goes on in the document that
the unit before began.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import chain

from trainer.config.schema import DataConfig, DataSource
from trainer.corpus.document import EXCERPT_BYTES, BadDocument, BadRecord, Document, EmptyRecord, Origin
from trainer.corpus.opening import FILES, faults_told, not_utf8, readable
from trainer.corpus.record_text import written_out
from trainer.corpus.separated import Part, Parts, State, parts_of
from trainer.corpus.units import InputFile, Span

_BOM = "\ufeff"


def text_documents(data: DataConfig, file: InputFile, span: Span) -> Iterator[Document | EmptyRecord | BadRecord]:
    """Yield the documents of a text file that begin in a span, and the part that is in it of one that began before.

    A part of a document is kept also where it is blank. Of a document with a fault that
    is in several units only the part with the fault is left out, by whoever takes its chunks if it is long.
    """
    is_library = data.source is DataSource.stdlib
    separator = written_out(data.document_separator or "").encode()
    what = "data.source=stdlib: library modules" if is_library else FILES
    try:
        with readable(file, what) as content:
            following = parts_of(content, span, file.size, separator)
            for number, first in enumerate(following, start=1):
                parts = Parts(first, following)
                document = Document(_origin(file, span, separator, number, first), iter(()), first.continues)
                chunks = _chunks(document, parts, faults_told(file, what), keeps_mark=is_library)
                for found in _documents(document, chunks, is_held=is_library):
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


def _documents(
    document: Document, chunks: Iterator[str], is_held: bool
) -> Iterator[Document | EmptyRecord | BadRecord]:
    """Yield a document; its fault, and what is left of it if other units have parts of it, too.

    Args:
        document: the document without its chunks.
        chunks: those.
        is_held: true if all faults must be known before it is a document, however long it is.
    """
    held: list[str] = []
    bad: BadRecord | None = None
    try:
        # Most documents are one chunk, and their faults are known before they are a document.
        for chunk in chunks:
            held.append(chunk)
            if len(held) > 1 and chunk.strip() and not is_held:
                break
    except BadDocument as error:
        bad, held = error.record, []
        yield bad
    if document.continues or document.is_open or any(chunk.strip() for chunk in held):
        document.chunks = chain(held, chunks)
        yield document
    elif bad is None:
        yield EmptyRecord(document.origin)


def _chunks(document: Document, parts: Parts, faults: AbstractContextManager[None], keeps_mark: bool) -> Iterator[str]:
    with faults:
        yield from _decoded(document, parts, keeps_mark)


def _decoded(document: Document, parts: Parts, keeps_mark: bool) -> Iterator[str]:
    """Yield the text of a document's parts; behind the last one, or a fault, note whether the document stays open."""
    origin, rest = document.origin, b""
    for part in parts:
        held = rest + part.held
        try:
            text, used = codecs.utf_8_decode(held, "strict", part.state is not State.more)
        except UnicodeDecodeError as error:
            at = part.position - len(rest) + error.start
            excerpt = held[error.start : error.start + EXCERPT_BYTES]
            for _ in parts:
                continue
            document.is_open = parts.state is State.open
            raise BadDocument(not_utf8(origin, origin.path, f"at byte {at}", excerpt)) from error
        if part.position == 0 and not keeps_mark:
            text = text.removeprefix(_BOM)
        rest = held[used:]
        if text:
            yield text
    document.is_open = parts.state is State.open
