"""Saving as a hook of the loop: its times, and its answer to a failure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from trainer.checkpoint.manifest import MANIFEST, Base
from trainer.checkpoint.save import CheckpointWriter, Snapshot, take_snapshot
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.writer_thread import BackgroundWork
from trainer.config.plan import RunPlan
from trainer.config.schema import OffloadKind, SaveFailure
from trainer.engine.face import Engine
from trainer.errors import StorageError, TridentError, first_line
from trainer.files import storage_faults
from trainer.log import say, warn
from trainer.loop.events import Hook, RunEnd
from trainer.loop.measures import Measures
from trainer.loop.state import TrainState
from trainer.run_events import EventKind, append_event, read_events
from trainer.topology.agreement import gather, together
from trainer.topology.groups import Group, ParallelGroups

_LAST_CHANCE_S = 10.0
"""Seconds that a run which failed waits for the checkpoint that it was writing."""


class CheckpointHook(Hook):
    """Saves every `checkpoint.every` steps, at the end, and when the run is asked to stop.

    With `checkpoint.asynchronous` the loop is held only while the state is copied to host memory; a thread on each
    rank writes it while training goes on. The ranks find out together, at the end of a step, that it is done or has
    failed. There is never more than one under way: the next one waits for it.

    Args:
        store: the run's checkpoints.
        engine: the engine whose state is saved.
        plan: numbers of the run.
        state: the loop's state.
        groups: this rank's place.
        background: another group like `groups.control`, for the threads that write.
        measures: is told how long a save held the loop, and how long it took.
        base: the model whose weights are not saved, since adapters alone are trained; None: everything is saved.
    """

    def __init__(
        self,
        store: CheckpointStore,
        engine: Engine,
        plan: RunPlan,
        state: TrainState,
        groups: ParallelGroups,
        background: Group,
        measures: Measures,
        base: Base | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._plan, self._config = plan, plan.config.checkpoint
        self._state = state
        self._groups = groups
        self._writer = CheckpointWriter(store, plan, background)
        self._measures = measures
        self._base = base
        self._under_way: tuple[Snapshot, BackgroundWork] | None = None
        self._saved_step: int | None = state.step
        self._is_due = False

    def on_start(self, first_step: int) -> None:
        """Finish the last save of a killed run: `latest`, its event, and the deletion of old checkpoints. Local.

        Raises:
            StorageError: `latest`, or the run's events, cannot be written.
        """
        if self._groups.is_reporting_rank:
            note_missing_saves(self._store)
            self._writer.tidy(self._state.step)

    def on_step(self, step: int) -> None:
        """Save when it is time, or after the first applied step from then on; find out how an earlier save ended.

        Collective over the world when it is time, and while a save is under way.

        Raises:
            StorageError: a save failed, and `checkpoint.on_failure=stop`; raised on every rank.
        """
        config = self._config
        if self._under_way is not None and all(gather(self._groups.control, self._under_way[1].done())):
            self.settle()
        self._is_due = self._is_due or (config.every > 0 and step % config.every == 0)
        # If steps only skip, the weights may be the cause: they must not push out earlier checkpoints.
        if self._is_due and self._state.skipped_in_row == 0:
            self._is_due = False
            self._begin(waits=not config.asynchronous)

    def waits_for_device(self, step: int) -> bool:
        """Return whether a save begins after this step: it copies the state."""
        every = self._config.every
        return every > 0 and step % every == 0

    def on_rewind(self, step: int) -> None:
        """Go on saving after the checkpoint of `step`, which is the newest one now. Local; call `settle` before.

        Raises:
            StorageError: `latest` cannot be written.
        """
        # No step after it is saved yet, and the last one may be `step` itself, where no checkpoint was.
        self._saved_step, self._is_due = None, False
        if self._groups.is_reporting_rank:
            self._writer.tidy(step)

    def on_end(self, end: RunEnd) -> None:
        """Save the last state of a run that stopped or finished; one that failed has nothing to trust."""
        if end.status == "failed":
            self._give_last_chance()
            return
        self.settle()
        wanted = end.status == "stopped" or (end.status == "finished" and self._config.save_final)
        if wanted and self._plan.offload is OffloadKind.nvme:
            warn("not saved: the state on NVMe is not in the checkpoint format yet")
            return
        if wanted and self._saved_step != self._state.step:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the current step and wait for it. Collective over the world.

        Raises:
            StorageError: a rank could not write; raised on every rank, earlier checkpoints stay as they are.
        """
        self._begin(waits=True, may_fail=False)

    def _begin(self, waits: bool, may_fail: bool = True) -> None:
        started = time.perf_counter()
        self.settle(may_fail)
        snapshot = together(
            self._groups.control, lambda: take_snapshot(self._engine, self._plan, self._state, self._groups, self._base)
        )
        work = BackgroundWork(lambda: self._writer.write(snapshot), "checkpoint")
        self._under_way = snapshot, work
        if waits:
            self.settle(may_fail)
        self._measures.note("checkpoint/stall_ms", 1000 * (time.perf_counter() - started))

    def settle(self, may_fail: bool = True) -> None:
        """Wait for the save under way, if there is one, and say how it ended. Every rank gets the same answer.

        Collective over the world.

        Raises:
            StorageError: as `save`, if such a failure is to end the run.
        """
        if self._under_way is None:
            return
        (snapshot, work), self._under_way = self._under_way, None
        try:
            seconds = work.result()
        except StorageError as error:
            if not may_fail or self._config.on_failure is SaveFailure.stop:
                raise
            warn(f"step {snapshot.step} is not saved: {error}")
            self._note_failure(snapshot.step, error)
            return
        self._measures.note("checkpoint/write_ms", 1000 * seconds)
        self._saved_step = snapshot.step
        say(f"saved {self._store.path(snapshot.step)}")
        together(self._groups.control, lambda: self._note(EventKind.save, snapshot.step, {"write_s": seconds}))

    def _note(self, kind: EventKind, step: int, details: Mapping[str, object]) -> None:
        if self._groups.is_reporting_rank:
            append_event(self._store.run_dir, kind, step, details)

    def _note_failure(self, step: int, error: Exception) -> None:
        """Note that a step is not saved. The run goes on, even if the disk has no room for that line either."""
        try:
            self._note(EventKind.save_failed, step, {"reason": first_line(error)})
        except StorageError as later:
            warn(f"that is not in the run's events either: {later}")

    def _give_last_chance(self) -> None:
        """Wait a little for a save under way, without collectives of this thread: peers may be gone."""
        if self._under_way is None:
            return
        (snapshot, work), self._under_way = self._under_way, None
        if not work.wait(_LAST_CHANCE_S):
            warn(f"step {snapshot.step} is not saved: the run failed while it was written")
            return
        try:
            seconds = work.result()
        except TridentError as error:
            warn(f"step {snapshot.step} is not saved: {error}")
            self._note_failure(snapshot.step, error)
        except Exception:
            # The message of a broken connection is of no use to anybody.
            warn(f"step {snapshot.step} is not saved: a rank was lost while it was written")
        else:
            say(f"saved {self._store.path(snapshot.step)}")
            self._note(EventKind.save, snapshot.step, {"write_s": seconds})


def note_missing_saves(store: CheckpointStore) -> None:
    """Append the saves that are not among a run's events: it was killed between the two, or an earlier version saved.

    Raises:
        StorageError: they cannot be written.
    """
    with storage_faults(store.run_dir):
        known = {event.step for event in read_events(store.run_dir) if event.kind == EventKind.save.value}
        for step in store.steps():
            manifest = store.path(step) / MANIFEST
            if step not in known and manifest.is_file():
                at = datetime.fromtimestamp(manifest.stat().st_mtime, UTC)
                append_event(store.run_dir, EventKind.save, step, at=at)
