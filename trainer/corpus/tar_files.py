"""Tar files, as WebDataset has them: neighbours whose names differ only behind the first dot are a sample."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from trainer.corpus.document import EXCERPT_BYTES, BadDocument, BadRecord, Origin
from trainer.corpus.json_lines import parsed
from trainer.corpus.opening import not_utf8, readable, unreadable
from trainer.corpus.record_text import ABSENT, Row, field_in
from trainer.corpus.units import InputFile
from trainer.corpus.wording import reason

_TEXT, _JSON = "txt", "json"


@dataclass
class _Sample:
    name: str
    number: int
    parts: dict[str, bytes] = field(default_factory=dict)


def tar_rows(file: InputFile, text_key: str) -> Iterator[Row | BadRecord]:
    """Yield the samples of a tar file: the object of the .json member, with the text of the .txt one if there is one.

    Args:
        file: the file.
        text_key: field under which the text of the .txt member stands, unless the object has it itself.
    """
    try:
        with readable(file) as content:
            for sample in _samples(file, content):
                yield _row(file, sample, text_key)
    except BadDocument as bad:
        yield bad.record


def _samples(file: InputFile, content: IO[bytes]) -> Iterator[_Sample]:
    sample: _Sample | None = None
    try:
        with tarfile.open(fileobj=content, mode="r|") as members:
            for number, member in enumerate(members, start=1):
                folder, name = posixpath.split(member.name)
                stem, _, suffix = name.partition(".")
                kind = suffix.rsplit(".", 1)[-1].lower()
                # What begins with a dot is made by other systems, not by people.
                if not member.isfile() or not stem or kind not in (_TEXT, _JSON):
                    continue
                key = posixpath.join(folder, stem)
                if sample is None or sample.name != key or kind in sample.parts:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key, number)
                held = members.extractfile(member)
                assert held is not None, "it is a file"
                sample.parts[kind] = held.read()
                # The library would keep every member that it has seen.
                members.members = []  # type: ignore[attr-defined]
    except tarfile.TarError as error:
        raise unreadable(
            file, f"data.files must be readable, but {file.path} is no good tar file: {reason(error)}"
        ) from error
    if sample is not None:
        yield sample


def _row(file: InputFile, sample: _Sample, text_key: str) -> Row | BadRecord:
    origin = Origin("member", sample.number, file.path)
    fields: Any = {}
    if _JSON in sample.parts:
        found = parsed(sample.parts[_JSON], origin)
        if isinstance(found, BadRecord):
            return found
        fields = found.value
    if _TEXT not in sample.parts or (fields and field_in(fields, text_key) is not ABSENT):
        return Row(origin, fields)
    held = sample.parts[_TEXT]
    try:
        text = held.decode("utf-8-sig")
    except UnicodeDecodeError:
        return not_utf8(origin, file.path, f"in member {origin.number}", held[:EXCERPT_BYTES])
    return Row(origin, {**fields, text_key: text} if isinstance(fields, dict) else {text_key: text})
