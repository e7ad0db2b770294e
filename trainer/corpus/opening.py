"""The bytes of an input file, from wherever it is, decompressed, and its faults as values. No torch."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from trainer.corpus.addresses import is_address, open_address
from trainer.corpus.document import BadDocument, BadRecord, Origin
from trainer.corpus.units import Compression, InputFile
from trainer.corpus.wording import reason
from trainer.errors import DataError

FILES = "data.files"
_COPY_BYTES = 1 << 20


@contextmanager
def readable(file: InputFile, what: str = FILES) -> Iterator[IO[bytes]]:
    """Open a file for the time of a `with`.

    Args:
        file: the file.
        what: the key that named it; the error begins with it.

    Raises:
        BadDocument: it cannot be opened, or not be read to where the reader reads it.
    """
    with faults_told(file, what), _stored(file) as stored, _decompressed(stored, file.compression) as content:
        yield content


@contextmanager
def faults_told(file: InputFile, what: str = FILES) -> Iterator[None]:
    """Turn the errors of reading a file into those of the file: for whoever reads on where `readable` does not see it.

    Args:
        file: the file.
        what: the key that named it; the error begins with it.

    Raises:
        BadDocument: as `readable`.
    """
    try:
        yield
    except DataError:
        raise
    # Libraries of compression raise any of these, depending on where the damage is.
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise unreadable(file, f"{what} must be readable, but {file.path} is not: {reason(error)}") from error
    except Exception as error:
        # Clients of remote places raise whatever their transport raises.
        if not is_address(file.path):
            raise
        problem = f"{what} must be readable, but {file.path} is not: {type(error).__name__}: {reason(error)}"
        raise unreadable(file, problem) from error


@contextmanager
def seekable(file: InputFile) -> Iterator[IO[bytes]]:
    """Open a file that is read here and there: a compressed one is decompressed into a temporary file first.

    Raises:
        BadDocument: as `readable`.
    """
    with readable(file) as content:
        if file.compression is Compression.none and (file.size is not None or not is_address(file.path)):
            yield content
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(content, copy, _COPY_BYTES)
            copy.seek(0)
            yield cast(IO[bytes], copy)


def unreadable(file: InputFile, problem: str) -> BadDocument:
    """Return the fault of a file as a whole."""
    return BadDocument(BadRecord(Origin("file", 0, file.path), problem))


def not_utf8(origin: Origin, path: str, where: str, excerpt: bytes = b"") -> BadRecord:
    """Return the fault of bytes that are no UTF-8."""
    problem = f"data.files must be UTF-8, but {path} is not {where}; convert it, for example with iconv"
    return BadRecord(origin, problem, excerpt)


@contextmanager
def _stored(file: InputFile) -> Iterator[IO[bytes]]:
    if is_address(file.path):
        with _buffered(open_address(file.path)) as content:
            yield content
        return
    with Path(file.path).open("rb") as content:
        yield content


@contextmanager
def _decompressed(stored: IO[bytes], compression: Compression) -> Iterator[IO[bytes]]:
    if compression is Compression.none:
        yield stored
        return
    if compression is Compression.gz:
        with gzip.GzipFile(fileobj=stored) as content:
            yield cast(IO[bytes], content)
    elif compression is Compression.bz2:
        with _buffered(_Members(stored, bz2.BZ2Decompressor)) as content:
            yield content
    elif compression is Compression.xz:
        with _buffered(_Members(stored, lzma.LZMADecompressor)) as content:
            yield content
    else:
        with _zstandard(stored) as content:
            yield content


def _zstandard(stored: IO[bytes]) -> IO[bytes]:
    """Decompress with the library that reads parquet, which is here anyway: Python's own has it from 3.14 on."""
    import pyarrow

    return _buffered(pyarrow.CompressedInputStream(pyarrow.PythonFile(stored, mode="r"), "zstd"))


def _buffered(source: Any) -> IO[bytes]:
    """Return a file with all that Python's own can, of one that can be read and perhaps be entered in the middle."""
    return cast(IO[bytes], io.BufferedReader(_Raw(source), _COPY_BYTES))


class _Members:
    """The content of a file of compressed streams, one after the other, perhaps with zeros behind them.

    Python's own readers take bytes that begin no stream for the end of the file, and leave out what stands behind them.

    Args:
        stored: the file.
        begin: makes the decompressor of the next stream.
    """

    def __init__(self, stored: IO[bytes], begin: Callable[[], Any]) -> None:
        self._stored = stored
        self._begin = begin
        self._stream = begin()
        self._next = b""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end.

        Raises:
            EOFError: the file ends within a stream.
            OSError, lzma.LZMAError: what stands there is no stream, or a damaged one.
        """
        found = b""
        while not found:
            if self._stream.eof and not self._next_stream():
                return b""
            more = b""
            if self._stream.needs_input:
                more, self._next = self._next or self._stored.read(_COPY_BYTES), b""
                if not more:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            found = self._stream.decompress(more, size)
        return found

    def seekable(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Leave the file to the one who opened it."""

    def _next_stream(self) -> bool:
        rest = self._stream.unused_data.lstrip(b"\0")
        while not rest:
            more = self._stored.read(_COPY_BYTES)
            if not more:
                return False
            rest = more.lstrip(b"\0")
        self._stream, self._next = self._begin(), rest
        return True


class _Raw(io.RawIOBase):
    """Bytes of another library's file.

    Args:
        source: the file.
    """

    def __init__(self, source: Any) -> None:
        self._source = source

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether reading can begin in the middle."""
        return bool(self._source.seekable())

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a byte, and return its place."""
        return int(self._source.seek(offset, whence))

    def tell(self) -> int:
        """Return the place of the next byte."""
        return int(self._source.tell())

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer, and return the number of bytes that are in it."""
        found = self._source.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._source.close()
        super().close()
