"""The bytes of an input file, decompressed, and its faults as values. No torch."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from trainer.corpus.document import BadDocument, BadRecord, Origin
from trainer.corpus.units import Compression, InputFile
from trainer.corpus.wording import reason

FILES = "data.files"


@contextmanager
def readable(file: InputFile, what: str = FILES) -> Iterator[IO[bytes]]:
    """Open a file for the time of a `with`.

    Args:
        file: the file.
        what: the key that named it; the error begins with it.

    Raises:
        BadDocument: it cannot be opened, or not be read to where the reader reads it.
    """
    path = Path(file.path)
    try:
        with gzip.open(path, "rb") if file.compression is Compression.gz else path.open("rb") as content:
            yield cast(IO[bytes], content)
    # gzip raises any of the three, depending on where the damage is.
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(file, f"{what} must be readable, but {file.path} is not: {reason(error)}") from error


def unreadable(file: InputFile, problem: str) -> BadDocument:
    """Return the fault of a file as a whole."""
    return BadDocument(BadRecord(Origin("file", 0, file.path), problem))


def not_utf8(origin: Origin, path: str, where: str, excerpt: bytes = b"") -> BadRecord:
    """Return the fault of bytes that are no UTF-8."""
    problem = f"data.files must be UTF-8, but {path} is not {where}; convert it, for example with iconv"
    return BadRecord(origin, problem, excerpt)
