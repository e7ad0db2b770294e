"""summary.json: the run and its end, in one small file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from trainer.config.plan import RunPlan
from trainer.files import write_atomically
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.state import TrainState
from trainer.metrics.jsonl import read_rows
from trainer.metrics.sink import Row, Sink
from trainer.restarts import read_restarts
from trainer.run_paths import METRICS, SUMMARY
from trainer.versions import versions

Lineage = Callable[[], Mapping[str, object]]
"""Returns the step of the newest checkpoint, and the run that this one began from, if any."""
Compared = Callable[[], Mapping[str, object]]
"""Returns what was predicted of the run, and what was measured."""


class SummarySink(Sink):
    """Writes `run_dir/summary.json` when the run ends, however it ends.

    Args:
        run_dir: the run's folder.
        plan: numbers of the run.
        parameters: number of parameters of the whole model, without padding.
        state: the loop's own; read at the end.
        source: commit of the source tree, if there is one.
        lineage: returns what the folder holds about the run's checkpoints; called at the end.
        compared: returns the prediction beside what was measured; called at the end. None: nothing was predicted.
    """

    def __init__(
        self,
        run_dir: Path,
        plan: RunPlan,
        parameters: int,
        state: TrainState,
        source: Mapping[str, object] | None = None,
        lineage: Lineage = dict,
        compared: Compared | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._plan = plan
        self._parameters = parameters
        self._state = state
        self._source = source
        self._lineage = lineage
        self._compared = compared
        self._final: Row = {}

    def start(self, first_step: int) -> None:
        """Remember the last row of earlier attempts: a run with nothing left to do still has a final row."""
        before = [row for row in read_rows(self._run_dir / METRICS) if row["step"] < first_step]
        self._final = before[-1] if before else {}

    def rewind(self, step: int) -> None:
        """Take the last row up to `step`, before rows of later steps are dropped."""
        self.start(step + 1)

    def write(self, row: Row, report: StepReport) -> None:
        """Remember the row."""
        self._final = row

    def end(self, end: RunEnd) -> None:
        """Write the file, whole or not at all.

        Raises:
            StorageError: the disk is full, read-only, or not writable by this user.
        """
        plan = self._plan
        summary: dict[str, object] = {
            "status": end.status,
            "step": end.step,
            "parameters": self._parameters,
            "tokens_seen": self._state.tokens_seen,
            "skipped_batches": self._state.skipped_batches,
            "final": self._final,
            "layout": {
                "pipeline": plan.pipeline_parallel_size,
                "tensor": plan.tensor_parallel_size,
                "data": plan.data_parallel_size,
                "world_size": plan.world_size,
            },
            "versions": versions(),
            "wall_time_s": end.wall_time_s,
            "sample_ledger": self._state.sample_ledger,
            **self._lineage(),
        }
        if self._compared is not None:
            summary["plan"] = self._compared()
        if self._source:
            summary["source"] = dict(self._source)
        restarts = read_restarts(self._run_dir)
        if restarts:
            summary["restarts"] = restarts
        if end.error:
            summary["error"] = end.error
        write_atomically(self._run_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")
