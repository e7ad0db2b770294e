"""events.jsonl: starts, evaluations, skipped batches, rewinds and the end of a run, as the loop tells them."""

from __future__ import annotations

from pathlib import Path

from trainer.loop.events import RunEnd, SkippedBatch, StepReport
from trainer.mesh import Mesh
from trainer.metrics.sink import Row, Sink
from trainer.run_events import EventKind, append_event


class EventSink(Sink):
    """Appends to the run's events; saves and restarts are told by those who make them.

    Args:
        run_dir: the run's folder.
        mesh: the layout of this start.

    Raises:
        StorageError: the disk is full, read-only, or not writable by this user.
    """

    def __init__(self, run_dir: Path, mesh: Mesh) -> None:
        self._run_dir = run_dir
        self._mesh = mesh
        self._skipped_step = 0

    def start(self, first_step: int) -> None:
        """Append a start."""
        append_event(
            self._run_dir, EventKind.start, first_step, {"layout": self._mesh.name, "world_size": self._mesh.size}
        )

    def write(self, row: Row, report: StepReport) -> None:
        """Append an evaluation, if there was one."""
        if report.eval_loss is not None:
            append_event(self._run_dir, EventKind.evaluation, report.step, {"loss": report.eval_loss})

    def skip(self, batch: SkippedBatch) -> None:
        """Append a skipped batch."""
        self._skipped_step = batch.step
        if batch.is_spike:
            append_event(self._run_dir, EventKind.spike, batch.step, {"loss": batch.loss, "limit": batch.limit})
        else:
            reason = "empty" if batch.is_empty else "not finite"
            append_event(self._run_dir, EventKind.skip, batch.step, {"reason": reason, "loss": batch.loss})

    def rewind(self, step: int) -> None:
        """Append the return to a checkpoint: its cause was the batch that was skipped last."""
        append_event(self._run_dir, EventKind.rewind, self._skipped_step, {"to": step})

    def end(self, end: RunEnd) -> None:
        """Append the end."""
        told: dict[str, object] = {"status": end.status, "wall_s": end.wall_time_s}
        if end.error:
            told["error"] = end.error
        append_event(self._run_dir, EventKind.end, end.step, told)
