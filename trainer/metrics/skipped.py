"""logs/skipped_batches.jsonl: one JSON object for each batch whose update was not applied, with its samples."""

from __future__ import annotations

import json
import math
from pathlib import Path

from trainer.files import storage_faults
from trainer.loop.events import SkippedBatch
from trainer.metrics.sink import Sink


class SkippedBatchesSink(Sink):
    """Appends to `path`, which does not exist until the first skipped batch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def skip(self, batch: SkippedBatch) -> None:
        """Append a line.

        Raises:
            StorageError: the disk is full, read-only, or not writable by this user.
        """
        line = {
            "step": batch.step,
            "reason": "empty" if batch.is_empty else "spike" if batch.is_spike else "not finite",
            "loss": _finite(batch.loss),
            "limit": _finite(batch.limit),
            "position": batch.position,
            "samples": batch.samples,
        }
        with storage_faults(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
