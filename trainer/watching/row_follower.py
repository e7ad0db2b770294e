"""A file of rows that grows, read on from where it was read before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.records.metric_columns import step_of
from trainer.records.signs import is_regular
from trainer.records.tolerant import LONGEST_LINE_BYTES, object_of

_BLOCK_BYTES = 1 << 22


class RowFollower:
    """Holds the losses and the last row of metrics.jsonl.

    A run that goes back to an earlier step writes the file anew; then it is read from its beginning.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self._inode, self._offset, self._rest = inode, 0, b""
        self.losses: list[tuple[int, float]] = []
        """Steps and losses so far, ascending."""
        self.evaluations: list[tuple[int, float]] = []
        self.row: dict[str, float] = {}
        """The last row; empty: there is none."""

    def read(self) -> bool:
        """Read what has been written since, and return whether there was anything."""
        # A pipe would wait, and a device might never end.
        if not is_regular(self._path):
            return False
        with suppress(OSError), self._path.open("rb") as file:
            found = self._path.stat()
            if found.st_ino != self._inode or found.st_size < self._offset:
                self._begin(found.st_ino)
            file.seek(self._offset)
            is_new = False
            while block := file.read(_BLOCK_BYTES):
                is_new = True
                self._offset += len(block)
                *lines, rest = (self._rest + block).split(b"\n")
                self._rest = rest[:LONGEST_LINE_BYTES]
                for line in lines:
                    self._take(object_of(line))
            return is_new
        return False

    def _take(self, row: Mapping[str, Any] | None) -> None:
        step = None if row is None else step_of(row)
        if row is None or step is None:
            return
        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
        }
        for name, kept in (("train/loss", self.losses), ("eval/loss", self.evaluations)):
            while kept and kept[-1][0] >= step:
                kept.pop()
            if name in numbers:
                kept.append((step, numbers[name]))
        self.row = numbers


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
