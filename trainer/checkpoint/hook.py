"""Saving as a hook of the loop, and loading before it. Same-layout, through DeepSpeed's own files.

A checkpoint is written under a hidden name, gets its manifest when every rank is done, and appears by one rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.checkpoint.manifest import MANIFEST, Layout, Manifest, check_layout, file_sizes
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.weights import write_weights
from trainer.config.plan import RunPlan
from trainer.engine.face import Engine
from trainer.errors import StorageError
from trainer.files import storage_faults, sync_folder, write_atomically
from trainer.log import say
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.state import TrainState
from trainer.topology.agreement import together
from trainer.topology.groups import DistGroup, ParallelGroups


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

    def on_start(self, first_step: int) -> None:
        """Do nothing: there is nothing new to save yet."""

    def on_step(self, step: int) -> None:
        """Save when it is time. Collective over the world when it is."""
        every = self._plan.config.checkpoint.every
        if every > 0 and step % every == 0:
            self.save()

    def on_report(self, report: StepReport) -> None:
        """Do nothing: reports are for metrics."""

    def on_end(self, end: RunEnd) -> None:
        """Save the last state of a run that stopped or finished; a failed one has nothing to trust."""
        wanted = end.status == "stopped" or (end.status == "finished" and self._plan.config.checkpoint.save_final)
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
            # Two agreements: gathering weights is collective, so no rank may be missing from it after a failed save.
            together(self._control, lambda: self._write_engine(temporary))
            together(self._control, lambda: self._write_weights(temporary / "weights"))
            together(self._control, lambda: self._publish(temporary, final))
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
                temporary.mkdir(parents=True)

    def _write_engine(self, temporary: Path) -> None:
        with storage_faults(temporary), _torch_write_faults(temporary):
            self._engine.save(temporary / "engine")
            # DeepSpeed leaves conversion scripts that do not know tensor and pipeline shards.
            for script in temporary.glob("zero_to_*.py"):
                script.unlink(missing_ok=True)

    def _write_weights(self, folder: Path) -> None:
        tensors = self._engine.local_parameters()
        specs = self._engine.shard_specs()
        if self._groups.data.rank == 0:
            with storage_faults(folder):
                write_weights(folder, self._groups.pipeline.rank, self._groups.tensor.rank, tensors, specs)

    def _publish(self, temporary: Path, final: Path) -> None:
        if not self._groups.is_reporting_rank:
            return
        manifest = Manifest(
            step=self._state.step,
            layout=Layout.of(self._plan),
            train_state=self._state.to_dict(),
            vocab_size=self._plan.model.vocab_size,
            files=file_sizes(temporary),
        )
        with storage_faults(final):
            _sync_files(temporary)
            write_atomically(temporary / MANIFEST, manifest.to_json())
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            sync_folder(final.parent)
        self._store.point_at(self._state.step)
        replaced = self._store.delete_after(self._state.step)
        if replaced:
            steps = ", ".join(map(str, replaced))
            say(f"deleted the checkpoints of steps {steps}: this run went back and trains them anew")
        self._store.delete_old(self._plan.config.checkpoint.keep)


def _check_shared(folder: Path) -> None:
    if not folder.is_dir():
        raise StorageError(
            f"run_dir must be on a file system that all nodes share, but {folder} of the first node is not seen here"
        )


def _sync_files(folder: Path) -> None:
    """Make the content of every file below `folder` durable: the rename must not survive a power cut without it."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _torch_write_faults(folder: Path) -> Iterator[None]:
    """Turn what torch's archive writer raises when a write is cut short into a StorageError."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "inline_container" not in text and "PytorchStreamWriter" not in text:
            raise
        raise StorageError(
            f"{folder} must take the whole checkpoint, but a write was cut short; change run_dir",
            ["free some space, or set run_dir to a folder on a larger disk"],
        ) from error


def resume(found: tuple[Path, Manifest] | None, engine: Engine, plan: RunPlan, control: DistGroup) -> TrainState:
    """Load a checkpoint into the engine, or return a fresh state for None. Collective over the world.

    Raises:
        CheckpointError: it cannot be used in this layout; raised on every rank.
    """
    if found is None:
        return TrainState()
    path, manifest = found
    check_layout(manifest, plan, path)
    together(control, lambda: engine.load(path / "engine"))
    state = TrainState.from_dict(manifest.train_state)
    say(f"resumed from {path} (step {state.step})")
    return state
