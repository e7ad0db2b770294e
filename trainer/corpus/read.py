"""Units to documents and records. What cannot be read is a value: whether it ends the reading, the caller decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice

from trainer.config.schema import DataConfig, OnBadRecord, RecordKind
from trainer.corpus.csv_files import csv_rows
from trainer.corpus.cutting import cut
from trainer.corpus.document import BadDocument, BadRecord, Document, EmptyRecord, Origin, Record
from trainer.corpus.hub import hub_rows
from trainer.corpus.inputs import input_files
from trainer.corpus.json_lines import json_line_rows
from trainer.corpus.json_values import json_rows
from trainer.corpus.record_text import Row, text_in, whole
from trainer.corpus.tables import table_rows
from trainer.corpus.tar_files import tar_rows
from trainer.corpus.text_files import text_documents
from trainer.corpus.units import InputFile, Kind, Span, Unit
from trainer.errors import DataError


def read_unit(data: DataConfig, files: Sequence[InputFile], unit: Unit) -> Iterator[Document | EmptyRecord | BadRecord]:
    """Yield the documents whose first byte lies in a unit, in order, and what is empty or cannot be read as one.

    The chunks of a document must be taken before the next one is. Blank lines of a file of records are nothing.

    Args:
        data: source and fields.
        files: the input, as `input_files` returns it.
        unit: one of those that `cut` makes of these files.

    Raises:
        DataError: the data set of data.source=hub cannot be read.
    """
    for span in unit.spans:
        file = files[span.file]
        if file.kind is Kind.text:
            yield from text_documents(data, file, span)
            continue
        for row in _rows(data, file, span, {"data.text_key": data.text_key}, is_alone=True):
            text = row if isinstance(row, BadRecord) else text_in(row, data, file.kind)
            if text is None or isinstance(text, str):
                is_empty = not text or text.isspace()
                yield EmptyRecord(row.origin) if is_empty else Document.of(row.origin, str(text))
            elif isinstance(text, BadRecord):
                yield text
            else:
                yield from _long_document(row.origin, text)


def read_unit_records(
    data: DataConfig, files: Sequence[InputFile], unit: Unit, keys: Mapping[str, str]
) -> Iterator[Record | BadRecord]:
    """Yield the objects whose first byte lies in a unit, in order, and what cannot be read as one.

    Args:
        data: source and fields.
        files: the input, as `input_files` returns it.
        unit: one of those that `cut` makes of these files.
        keys: key of the config -> name of a field that every object must have; only columns are checked here.

    Raises:
        DataError: the data set of data.source=hub cannot be read, or a file cannot hold objects.
    """
    for span in unit.spans:
        file = files[span.file]
        if file.kind is Kind.text:
            raise DataError(
                f"data.files must hold objects for data.records={data.records.value}, as .jsonl and .parquet do, "
                f"but {file.path} is text"
            )
        for row in _rows(data, file, span, keys):
            if isinstance(row, BadRecord):
                yield row
                continue
            value = whole(row)
            if isinstance(value, BadRecord):
                yield value
            elif isinstance(value, Mapping):
                yield Record(row.origin, value)
            else:
                problem = f"{row.origin} must be an object, but is {type(value).__name__}"
                yield BadRecord(row.origin, problem)


def documents(data: DataConfig) -> Iterator[str]:
    """Yield the documents of a text source as whole texts, in a fixed order; empty and null ones are left out.

    With data.on_bad_record=skip bad ones are left out, too.

    Raises:
        DataError: a file or data set is missing, unreadable, or of the wrong form.
    """
    if data.records is not RecordKind.text:
        raise DataError(f"data.records must be text where documents are read, but is {data.records.value}")
    return islice(_texts(data), data.max_documents)


def records(data: DataConfig, keys: Mapping[str, str]) -> Iterator[Record]:
    """Yield the objects of a source, in a fixed order; empty lines are left out.

    With data.on_bad_record=skip bad ones are left out, too.

    Args:
        data: source and files.
        keys: key of the config -> name of a field that every object must have; only columns are checked here.

    Raises:
        DataError: a file or data set is missing, unreadable, or of the wrong form.
    """
    return islice(_objects(data, keys), data.max_documents)


def open_documents(data: DataConfig) -> Iterator[Document]:
    """Yield the documents of a text source in a fixed order; their chunks are read when they are taken.

    Raises:
        DataError: as `documents`; with data.on_bad_record=skip only where nothing can be read. Taking the chunks may
            raise it too.
    """
    files = input_files(data)
    for unit in cut(files, unit_bytes=None):
        for document in read_unit(data, files, unit):
            if isinstance(document, Document):
                yield document
            elif isinstance(document, BadRecord) and data.on_bad_record is OnBadRecord.error:
                raise BadDocument(document)


def _texts(data: DataConfig) -> Iterator[str]:
    for document in open_documents(data):
        try:
            text = "".join(document.chunks)
        except BadDocument:
            if data.on_bad_record is OnBadRecord.error:
                raise
            continue
        yield text


def _objects(data: DataConfig, keys: Mapping[str, str]) -> Iterator[Record]:
    files = input_files(data)
    for unit in cut(files, unit_bytes=None):
        for record in read_unit_records(data, files, unit, keys):
            if isinstance(record, Record):
                yield record
            elif data.on_bad_record is OnBadRecord.error:
                raise BadDocument(record)


def _long_document(origin: Origin, chunks: Iterator[str]) -> Iterator[Document | EmptyRecord | BadRecord]:
    held: list[str] = []
    try:
        for chunk in chunks:
            held.append(chunk)
            if chunk.strip():
                yield Document(origin, chain(held, chunks))
                return
        yield EmptyRecord(origin)
    except BadDocument as bad:
        yield bad.record


def _rows(
    data: DataConfig, file: InputFile, span: Span, keys: Mapping[str, str], is_alone: bool = False
) -> Iterator[Row | BadRecord]:
    if file.kind is Kind.hub:
        return hub_rows(data)
    if file.kind is Kind.json_lines:
        return json_line_rows(file, span)
    if file.kind is Kind.json:
        return json_rows(file)
    if file.kind in (Kind.csv, Kind.tsv):
        return csv_rows(file, keys)
    if file.kind is Kind.tar:
        return tar_rows(file, data.text_key)
    return table_rows(file, span, keys, is_alone)
