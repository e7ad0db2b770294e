"""ledger.jsonl: where in the stream of samples a run began to read, at each of its starts and returns."""

from __future__ import annotations

from pathlib import Path

from trainer.config.plan import RunPlan
from trainer.data.journal import Stretch, append_stretch
from trainer.loop.state import TrainState
from trainer.metrics.sink import Sink


class JournalSink(Sink):
    """Appends to `path` whenever the run does not simply go on with the next step.

    Args:
        path: the file.
        plan: numbers of the run.
        state: the loop's own.
    """

    def __init__(self, path: Path, plan: RunPlan, state: TrainState) -> None:
        self._path = path
        self._plan = plan
        self._state = state

    def start(self, first_step: int) -> None:
        """Append a line for the steps from `first_step` on.

        Raises:
            StorageError: the disk is full, read-only, or not writable by this user.
        """
        state, plan = self._state, self._plan
        append_stretch(
            self._path,
            Stretch(
                step=first_step,
                position=state.position,
                ledger=state.sample_ledger,
                seq_length=plan.execution.seq_length,
                sample_length=state.sample_length,
                stream=state.stream,
                sizes=plan.batch_sizes,
                segments=tuple(state.segments) if len(state.segments) > 1 else (),
            ),
        )

    def rewind(self, step: int) -> None:
        """Append a line for the steps after `step`."""
        self.start(step + 1)
