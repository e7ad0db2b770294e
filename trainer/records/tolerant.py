"""Files that may be missing, half written, damaged or of another version are read; what cannot be read is noted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from trainer.errors import first_line

_BLOCK_BYTES = 1 << 22
LONGEST_LINE_BYTES = 1 << 20
"""Length from which on a line is taken for garbage."""
_ROW_BEGINS = b'{"'


def read_object(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is no file, or nothing that can be read, which is noted."""
    text = read_bytes(path, notes)
    if text is None:
        return None
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read: {first_line(error)}")
        return None
    if not isinstance(held, dict):
        notes.append(f"{path.name} cannot be read: it must be a JSON object, but is a {type(held).__name__}")
        return None
    return held


def read_bytes(path: Path, notes: list[str]) -> bytes | None:
    """Return the content of a file; None if there is none, or it cannot be read, which is noted."""
    try:
        # A pipe or a device would never end.
        return path.read_bytes() if path.is_file() else None
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror or first_line(error)}")
        return None


class LineReader:
    """Reads the JSON objects of a file with one a line, and counts the lines that hold none.

    A line that a kill cut off and that another one was appended to holds the second one; a last line without its end
    is one that is being written.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.bad_lines = 0
        """Lines that hold no object."""
        self.first_bad = 0
        """Number of the first of them, counted from 1."""
        self.mended = 0
        """Lines whose beginning was cut off, and whose last object was read."""
        self.is_cut_off = False
        """True if the last line has no end and holds no whole object."""

    def objects(self) -> Iterator[dict[str, Any]]:
        """Yield the objects in order. No file: none.

        Raises:
            OSError: the file cannot be read.
        """
        for number, (line, has_end) in enumerate(self._lines(), start=1):
            found = object_of(line)
            if found is not None:
                yield found
            elif (rest := _last_object(line)) is not None:
                self.mended += 1
                yield rest
            elif not has_end:
                self.is_cut_off = True
            elif line.strip():
                self.first_bad = self.first_bad or number
                self.bad_lines += 1

    def note(self, notes: list[str]) -> None:
        """Note what was found wrong, a line for the file."""
        name, said = self._path.name, []
        if self.bad_lines:
            many, first = self.bad_lines > 1, f" (the first is line {self.first_bad})" if self.first_bad else ""
            said.append(f"{self.bad_lines} line{'s' * many} hold{'s' * (not many)} no row{first}")
        if self.mended:
            many = self.mended > 1
            said.append(f"{self.mended} line{'s' * many} hold{'s' * (not many)} a row behind the beginning of another")
        if self.is_cut_off:
            said.append("the last line is not whole: it is being written, or the run was killed")
        if said:
            notes.append(f"{name}: {'; '.join(said)}")

    def _lines(self) -> Iterator[tuple[bytes, bool]]:
        """Yield lines without their ends, and whether each had one."""
        if not self._path.is_file():
            return
        rest = b""
        with self._path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    yield line, True
                # What is that long is no row, and must not fill the memory.
                rest = rest if len(rest) <= LONGEST_LINE_BYTES else rest[:LONGEST_LINE_BYTES]
        if rest:
            yield rest, False


def object_of(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a line holds; NaN and infinities are understood. None: it holds none."""
    try:
        held = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            held = json.loads(line)
        except (ValueError, RecursionError):
            return None
    return held if isinstance(held, dict) else None


def _last_object(line: bytes) -> dict[str, Any] | None:
    """Return the object that a line ends with, behind the beginning of another one that was cut off."""
    start = line.rfind(_ROW_BEGINS)
    return object_of(line[start:]) if start > 0 and len(line) <= LONGEST_LINE_BYTES else None


def last_objects(path: Path, at_most_bytes: int, notes: list[str]) -> list[dict[str, Any]]:
    """Return the whole objects in the last bytes of a file with one a line. No file: none; none that opens is noted."""
    try:
        if not path.is_file():
            return []
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - at_most_bytes))
            lines = file.read(at_most_bytes).split(b"\n")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror or first_line(error)}")
        return []
    # The first one may be cut off here.
    lines = lines if size <= at_most_bytes else lines[1:]
    return [found for line in lines if (found := object_of(line)) is not None]
