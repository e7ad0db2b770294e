"""samples.jsonl: the texts that the model wrote at evaluations, one JSON object for each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from trainer.files import storage_faults
from trainer.metrics.jsonl import drop_rows_from, line_of
from trainer.metrics.sink import Sample, Sink


class TextSink(Sink):
    """Appends texts to `path`, which appears with the first of them. A resumed run drops those it writes again.

    Raises:
        StorageError: the disk is full, read-only, or not writable by this user.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, first_step: int) -> None:
        """Drop the texts of steps from `first_step` on."""
        if self._path.is_file():
            drop_rows_from(self._path, first_step)

    def rewind(self, step: int) -> None:
        """Drop the texts of later steps."""
        self.start(step + 1)

    def show(self, samples: Sequence[Sample]) -> None:
        """Append the texts."""
        with storage_faults(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write("".join(line_of(asdict(sample)) for sample in samples))
