"""Writing one checkpoint: its content, copied to host memory, and its way to disk.

It is written under a hidden name, each rank its own file; it gets its manifest when every rank is done, and appears by
one rename. Whenever the machine stops, everything under a visible name is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.checkpoint.fragments import rank_file, write_fragments
from trainer.checkpoint.kept_tokenizer import has_tokenizer, size_bytes_of, write_kept, write_tokenizer
from trainer.checkpoint.manifest import MANIFEST, Base, FileFacts, Manifest, describe_layout, file_facts
from trainer.checkpoint.probe import probe_loss
from trainer.checkpoint.store import CheckpointStore
from trainer.config.compose import to_yaml
from trainer.config.plan import RunPlan
from trainer.engine.face import Engine, Fragment
from trainer.errors import StorageError
from trainer.files import storage_faults, sync_folder, write_atomically
from trainer.log import say
from trainer.loop.state import TrainState
from trainer.run_paths import CONFIG, HUGGING_FACE, TENSORS, TOKENIZER
from trainer.topology.agreement import gather, together
from trainer.topology.groups import Group, ParallelGroups
from trainer.versions import versions

_BYTES_PER_NUMBER = 4
_ROOM_FOR_THE_REST = 1 << 20
"""Bytes for headers, manifest and config."""


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint, in host memory: further training does not change it."""

    manifest: Manifest
    """Manifest without files, which are not written yet."""
    config: str
    """Config as YAML."""
    fragments: tuple[Fragment, ...]
    """This rank's part of the tensors."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest.step


def take_snapshot(
    engine: Engine, plan: RunPlan, state: TrainState, groups: ParallelGroups, base: Base | None = None
) -> Snapshot:
    """Copy the state of a run. Collective over the world, syncs the host with the device.

    Args:
        engine: the engine.
        plan: numbers of the run.
        state: its progress.
        groups: this rank's place.
        base: the model whose weights are left out, since they are not trained; None: everything is copied.
    """
    manifest = Manifest(
        step=state.step,
        vocab_size=plan.model.vocab_size,
        train_state=state.to_dict(),
        scalars=engine.scalars(),
        probe_loss=probe_loss(engine, plan, groups.device),
        layout=describe_layout(plan),
        versions=versions(),
        files={},
        base=base,
    )
    return Snapshot(manifest, to_yaml(plan.config), tuple(engine.fragments(only_trained=base is not None)))


class CheckpointWriter:
    """Writes snapshots into a run's folder.

    Args:
        store: the folder.
        plan: numbers of the run.
        peers: a group on CPU over the whole world. Nothing else may use it while a checkpoint is written, which may be
            in another thread.
    """

    def __init__(self, store: CheckpointStore, plan: RunPlan, peers: Group) -> None:
        self._store = store
        config = plan.config
        self._config = config.checkpoint
        # Only if the data are text, or were: without a tokenizer the model could not be sampled from.
        self._tokenizer = store.run_dir / TOKENIZER if has_tokenizer(config) else None
        self._hugging_face = store.run_dir / HUGGING_FACE
        self._peers = peers

    def write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint. Collective over `peers`.

        Raises:
            StorageError: a rank could not write; raised on every rank, earlier checkpoints stay as they are.
        """
        temporary = self._store.temporary_path(snapshot.step)
        try:
            numbers = sum(gather(self._peers, sum(fragment.values.numel() for fragment in snapshot.fragments)))
            together(self._peers, lambda: self._begin(temporary, numbers * _BYTES_PER_NUMBER))
            together(self._peers, lambda: _check_shared(temporary))
            written = gather(self._peers, together(self._peers, lambda: self._write(temporary, snapshot)))
            together(self._peers, lambda: self._publish(temporary, snapshot, written))
        except Exception:
            if self._is_first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def tidy(self, step: int) -> None:
        """Finish a killed run's save of the step that this one goes on from. Local, for one rank.

        Raises:
            StorageError: `latest` cannot be written.
        """
        if step in self._store.steps():
            self._store.point_at(step)
            self._store.delete_old(self._config.keep, self._config.keep_every)

    @property
    def _is_first(self) -> bool:
        return self._peers.rank == 0

    def _begin(self, temporary: Path, size_bytes: int) -> None:
        if not self._is_first:
            return
        with storage_faults(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / TENSORS).mkdir(parents=True)
            # A first checkpoint is as durable as the folder of checkpoints is.
            sync_folder(self._store.run_dir)
        free = shutil.disk_usage(temporary).free
        rest = _ROOM_FOR_THE_REST + (size_bytes_of(self._tokenizer) if self._tokenizer else 0)
        rest += size_bytes_of(self._hugging_face)
        if free < size_bytes + rest:
            raise StorageError(
                f"run_dir must be on a disk with room for a checkpoint of {size_bytes / 2**30:.3g} GiB, but "
                f"{temporary.parent} has {free / 2**30:.3g} GiB left; change run_dir",
                hints=["free some space, lower checkpoint.keep, or set run_dir to a folder on a larger disk"],
            )

    def _write(self, temporary: Path, snapshot: Snapshot) -> FileFacts | None:
        path = temporary / rank_file(self._peers.rank)
        with storage_faults(path):
            return file_facts(path) if write_fragments(path, snapshot.fragments) else None

    def _publish(self, temporary: Path, snapshot: Snapshot, written: Sequence[FileFacts | None]) -> None:
        if not self._is_first:
            return
        files = {rank_file(rank): facts for rank, facts in enumerate(written) if facts is not None}
        step = snapshot.step
        with storage_faults(self._store.path(step)):
            write_atomically(temporary / CONFIG, snapshot.config)
            files[CONFIG] = file_facts(temporary / CONFIG)
            if self._tokenizer is not None:
                files |= write_tokenizer(self._tokenizer, temporary)
            files |= write_kept(self._hugging_face, temporary, HUGGING_FACE)
            sync_folder(temporary / TENSORS)
            write_atomically(temporary / MANIFEST, replace(snapshot.manifest, files=files).to_json())
            self._store.publish(step)
        self._store.point_at(step)
        with storage_faults(self._store.folder):
            for path in self._store.set_aside_after(step):
                say(f"{path} was damaged and is of no more use to this run; delete it when nobody wants to rescue it")
        self._store.delete_old(self._config.keep, self._config.keep_every)


def _check_shared(folder: Path) -> None:
    if not folder.is_dir():
        raise StorageError(
            f"run_dir must be on a file system that all nodes share, but {folder} of the first node is not seen here"
        )
