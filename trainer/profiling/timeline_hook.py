"""A hook of the loop that measures the timeline of one step; it does not exist with `logging.timeline_step=0`."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from trainer.config.plan import RunPlan
from trainer.config.schema import PROFILE_AFTER_STEPS, PipelineSchedule
from trainer.files import write_atomically
from trainer.log import warn
from trainer.loop.events import Hook, RunEnd
from trainer.loop.session import Session
from trainer.profiling.clocks import clock_name, clock_offsets, collected, told_by_rank_0
from trainer.profiling.measured_step import NO_PIPELINE, RankPlace, StepTimeline
from trainer.profiling.spans import RankNotes, spans_of
from trainer.profiling.step_clock import StepClock
from trainer.topology.agreement import together


class TimelineHook(Hook):
    """Lives on every rank; the first rank of each pipeline stage takes notes in the measured step.

    List it behind hooks that enter phases of their own.

    Args:
        session: this rank's session; its progress is listened to.
        path: the file.
        chosen: the step that is asked for; None: the fifth one of each start, or its last if it has fewer.
    """

    def __init__(self, session: Session, path: Path, chosen: int | None = None) -> None:
        self._session, self._groups, self._plan = session, session.groups, session.plan
        self._path = path
        self._chosen, self._last_of_run = chosen, session.plan.steps
        mesh = session.groups.mesh
        self._ranks = [mesh.rank(stage, 0, 0) for stage in range(mesh.pipeline_parallel_size)]
        self._clock = StepClock(session.groups.device) if session.groups.rank in self._ranks else None
        self._step: int | None = None

    def on_start(self, first_step: int) -> None:
        """Choose the step, and listen if it is the next one. Local."""
        if self._chosen is None:
            self._choose(min(first_step + PROFILE_AFTER_STEPS, self._last_of_run), first_step)
        else:
            self._choose(self._chosen, first_step)

    def _choose(self, step: int, next_step: int) -> None:
        if step > self._last_of_run:
            warn(
                f"logging.timeline_step ({step}) is not measured: the run has {self._last_of_run} steps; change "
                "logging.timeline_step"
            )
        # An earlier one was measured by the start that trained it.
        self._step = step if next_step <= step <= self._last_of_run else None
        self._listen(is_on=self._step == next_step)

    def _listen(self, is_on: bool) -> None:
        self._session.progress.listener = self._clock if is_on else None

    def waits_for_device(self, step: int) -> bool:
        """Return whether this step is measured: the notes of the device are read behind it."""
        return self._step is not None and step >= self._step

    def on_step(self, step: int) -> None:
        """Listen to the next step if it is the measured one, and write what was heard behind it.

        Collective over the control group behind the measured step, where a CUDA device is waited for. Notes go to rank
        0 from the ranks that have taken some, so that a large world has no more to do than a small one.

        Raises:
            StorageError: the file cannot be written; the same on every rank.
        """
        if self._step is None or step < self._step - 1:
            return
        if step == self._step - 1:
            self._listen(is_on=True)
            return
        # A later one if the chosen one was left out as a spike: no hook hears of it, and the next one is as good.
        self._step = None
        self._listen(is_on=False)
        self._write(step)

    def on_rewind(self, step: int) -> None:
        """Choose anew if nothing was measured yet. Local."""
        if self._step is not None:
            self.on_start(step + 1)

    def on_end(self, end: RunEnd) -> None:
        """Listen no longer. Local."""
        self._step = None
        self._listen(is_on=False)

    def _write(self, step: int) -> None:
        control = self._groups.control
        found, offsets, errors = self._heard() if self._clock is not None else ([], [], [])
        together(control, lambda: self._put_together(step, found, offsets, errors))

    def _heard(self) -> tuple[list[RankNotes], list[float], list[float]]:
        """Return all notes, and how their clocks stand to that of rank 0; elsewhere nothing."""
        control, ranks = self._groups.control, self._ranks
        found = collected(control, ranks, self._notes())
        clocks = {notes.clock for notes in found}
        if told_by_rank_0(control, ranks, len(clocks) == 1 and "" not in clocks):
            return found, [0.0] * len(ranks), [0.0] * len(ranks)
        return found, *clock_offsets(control, ranks)

    def _notes(self) -> RankNotes:
        assert self._clock is not None
        notes, place = self._clock.take(), self._groups.place.stage
        stages: tuple[int, ...] = (place,)
        if self._plan.uses_pipeline_engine and self._plan.schedule.kind is PipelineSchedule.dualpipev:
            stages = (place, 2 * self._plan.pipeline_parallel_size - 1 - place)
        return RankNotes(self._groups.rank, socket.gethostname(), stages, notes, clock_name(), self._clock.error_s)

    def _put_together(
        self, step: int, found: Sequence[RankNotes], offsets: Sequence[float], errors: Sequence[float]
    ) -> None:
        if not self._groups.is_reporting_rank:
            return
        each = sorted(error + notes.error_s for error, notes in zip(errors, found, strict=True))
        spans = spans_of(found, offsets)
        timeline = StepTimeline(
            step=step,
            time=datetime.now(UTC),
            schedule=_schedule(self._plan),
            micro_batches=1 + max(span.micro_batch or 0 for span in spans),
            device=self._groups.device.type,
            clock_error_ms=1000 * sum(each[-2:]) if len(each) > 1 else 0.0,
            ranks=tuple(RankPlace(notes.rank, notes.host, notes.stages) for notes in found),
            spans=spans,
        )
        write_atomically(self._path, timeline.to_json())


def _schedule(plan: RunPlan) -> str:
    return plan.schedule.kind.value if plan.uses_pipeline_engine else NO_PIPELINE
