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
        self._last: Mapping[str, Any] = {}

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

    @property
    def row(self) -> dict[str, float]:
        """The finite numbers of the last row; empty: there is none."""
        return {name: value for name in self._last if (value := _finite(self._last[name])) is not None}

    def _take(self, row: Mapping[str, Any] | None) -> None:
        step = None if row is None else step_of(row)
        if row is None or step is None:
            return
        for name, kept in (("train/loss", self.losses), ("eval/loss", self.evaluations)):
            while kept and kept[-1][0] >= step:
                kept.pop()
            if (value := _finite(row.get(name))) is not None:
                kept.append((step, value))
        self._last = row


def _finite(value: object) -> float | None:
    """Return a finite number; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
