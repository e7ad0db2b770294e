"""Saving as a hook of the loop.

A checkpoint is written under a hidden name, each rank its own file; it gets its manifest when every rank is done, and
appears by one rename. Whenever the machine stops, what is under a visible name is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint.manifest import MANIFEST, FileFacts, Manifest, describe_layout, file_facts
from trainer.checkpoint.shards import SUFFIX, write_fragments
from trainer.checkpoint.store import CONFIG, TENSORS, CheckpointStore
from trainer.config.compose import to_yaml
from trainer.config.plan import RunPlan
from trainer.config.schema import OffloadKind
from trainer.engine.face import Engine
from trainer.errors import StorageError
from trainer.files import storage_faults, sync_folder, write_atomically
from trainer.log import say, warn
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.state import TrainState
from trainer.topology.agreement import gather, together
from trainer.topology.groups import DistGroup, ParallelGroups
from trainer.versions import versions


class CheckpointHook:
    """Saves every `checkpoint.every` steps, at the end, and when the run is asked to stop."""

    def __init__(
        self,
        store: CheckpointStore,
        engine: Engine,
        plan: RunPlan,
        state: TrainState,
        groups: ParallelGroups,
        control: DistGroup,
    ) -> None:
        self._store = store
        self._engine = engine
        self._plan = plan
        self._state = state
        self._groups = groups
        self._control = control
        self._saved_step = state.step
        self._is_due = False

    def on_start(self, first_step: int) -> None:
        """Do nothing: there is nothing new to save yet."""

    def on_step(self, step: int) -> None:
        """Save when it is time, or after the first applied step from then. Collective over the world when it is."""
        every = self._plan.config.checkpoint.every
        self._is_due = self._is_due or (every > 0 and step % every == 0)
        # Weights that only skip may be what is wrong: they must not push out the checkpoints of before.
        if self._is_due and self._state.skipped_in_row == 0:
            self._is_due = False
            self.save()

    def on_report(self, report: StepReport) -> None:
        """Do nothing: reports are for metrics."""

    def on_end(self, end: RunEnd) -> None:
        """Save the last state of a run that stopped or finished; a failed one has nothing to trust."""
        wanted = end.status == "stopped" or (end.status == "finished" and self._plan.config.checkpoint.save_final)
        if wanted and self._plan.config.zero.offload is OffloadKind.nvme:
            warn("not saved: the state on NVMe is not in the checkpoint format yet")
            return
        if wanted and self._saved_step != self._state.step:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the current step. Collective over the world.

        Raises:
            StorageError: a rank could not write; raised on every rank, earlier checkpoints stay as they are.
        """
        step = self._state.step
        temporary, final = self._store.temporary_path(step), self._store.path(step)
        try:
            together(self._control, lambda: self._begin(temporary))
            together(self._control, lambda: _check_shared(temporary))
            written = gather(self._control, together(self._control, lambda: self._write(temporary)))
            together(self._control, lambda: self._publish(temporary, final, written))
        except Exception:
            if self._groups.is_reporting_rank:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._saved_step = step
        say(f"saved {final}")

    def _begin(self, temporary: Path) -> None:
        if self._groups.is_reporting_rank:
            with storage_faults(temporary):
                shutil.rmtree(temporary, ignore_errors=True)
                (temporary / TENSORS).mkdir(parents=True)
                # A first checkpoint is as durable as the folder of checkpoints is.
                sync_folder(self._store.folder.parent)

    def _write(self, temporary: Path) -> FileFacts | None:
        path = temporary / self._file_name(self._groups.rank)
        with storage_faults(path):
            return file_facts(path) if write_fragments(path, self._engine.fragments()) else None

    def _file_name(self, rank: int) -> str:
        return f"{TENSORS}/rank_{rank:05d}{SUFFIX}"

    def _publish(self, temporary: Path, final: Path, written: Sequence[FileFacts | None]) -> None:
        if not self._groups.is_reporting_rank:
            return
        files = {self._file_name(rank): facts for rank, facts in enumerate(written) if facts is not None}
        with storage_faults(final):
            write_atomically(temporary / CONFIG, to_yaml(self._plan.config))
            files[CONFIG] = file_facts(temporary / CONFIG)
        manifest = Manifest(
            step=self._state.step,
            vocab_size=self._plan.model.vocab_size,
            train_state=self._state.to_dict(),
            scalars=self._engine.scalars(),
            layout=describe_layout(self._plan),
            versions=versions(),
            files=files,
        )
        with storage_faults(final):
            sync_folder(temporary / TENSORS)
            write_atomically(temporary / MANIFEST, manifest.to_json())
            self._store.publish(self._state.step)
        self._store.point_at(self._state.step)
        later = self._store.delete_after(self._state.step)
        if later:
            steps = ", ".join(map(str, later))
            say(f"deleted the checkpoints of steps {steps}: this run went back and trains them anew")
        self._store.delete_old(self._plan.config.checkpoint.keep)


def _check_shared(folder: Path) -> None:
    if not folder.is_dir():
        raise StorageError(
            f"run_dir must be on a file system that all nodes share, but {folder} of the first node is not seen here"
        )
