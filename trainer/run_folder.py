"""The folder of a run: its users, and its content before step 1. No torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainer.checkpoint.manifest import IMPORTED_FROM, MANIFEST, read_manifest
from trainer.checkpoint.origin import (
    Found,
    Origin,
    Use,
    check_origin,
    check_tensors,
    find_origin,
    named_origin,
    read_origin,
    write_origin,
)
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.stream import other_tokens
from trainer.config.blend import OF_ALL
from trainer.config.compose import differences, from_yaml, to_yaml
from trainer.config.keys import KEYS
from trainer.config.models import knows_its_length, make_model
from trainer.config.places import BY_CONTENT, absolute_path
from trainer.config.schema import OnChange, RecordKind, TridentConfig
from trainer.errors import CheckpointError, ConfigError, StorageError, first_line
from trainer.files import remove_unfinished, storage_faults, write_atomically
from trainer.launcher.claim import FolderClaim
from trainer.run_paths import TENSORS, RunPaths

_MAY_CHANGE = (
    "layout.",
    "zero.",
    "precision.",
    "batch.",
    "model.recompute",
    "model.fused_loss",
    "model.vocab_pad_multiple",
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.max_skipped_in_row",
    "train.spike_",
    "train.max_rewinds",
    "eval.",
    "checkpoint.",
    "logging.",
    "launch.",
    "cluster.",
    "runtime.",
    "data.cache_dir",
    "data.on_change",
    "data.max_epochs",
    "data.prefetch_steps",
    "data.workers",
    "optimizer.implementation",
    "run_dir",
    "name",
)
"""Keys that do not decide which run this is: they say how it is computed, planned, watched and saved."""


def may_change(key: str) -> bool:
    """Return whether a run that has begun may go on with another value of a key."""
    return key.startswith(_MAY_CHANGE) or key in BY_CONTENT


SHARED_S = 15.0
"""Seconds that a network file system gets to show a new folder on another machine."""
_SHARED_POLL_S = 0.2
STREAM = "stream"
"""Entry of plan.json: the identity of the training stream."""
DATA_FOLDER = "data_folder"
"""Entry of plan.json: the folder of the cache that the tokens were in."""


class RunFolder(RunPaths):
    """The folder of a run, with the checks and files of its start."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.checkpoints = CheckpointStore(path)
        self._claim = FolderClaim(path, self.logs)

    @classmethod
    def of(cls, config: TridentConfig) -> RunFolder:
        """Return the folder that `run_dir` names; `~` is the user's home."""
        return cls(absolute_path(config.run_dir, "run_dir"))

    def holds_training(self) -> bool:
        """Return whether steps were already trained here."""
        has_rows = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return has_rows or bool(self.checkpoints.steps())

    def newest_checkpoint(self) -> tuple[int, Path] | None:
        """Return step and folder of the newest checkpoint that was published, if there is one."""
        steps = self.checkpoints.steps()
        return (steps[-1], self.checkpoints.path(steps[-1])) if steps else None

    def concluded_at(self, steps: int, saved: int | None) -> int | None:
        """Return the step at which the run has finished, if nothing is left to do.

        Args:
            steps: number of steps that are asked for.
            saved: step of the run's newest whole checkpoint, None if it has none. A summary's end no longer counts if
            its last checkpoint is damaged, or was taken away to train from an earlier one.
        """
        summary = self._summary()
        step = summary.get("step")
        if summary.get("status") != "finished" or not isinstance(step, int) or step < steps:
            return None
        return step if summary.get("checkpoint", step) == saved else None

    def goes_on_from(self) -> int:
        """Return the step from which the same command would go on: 0 for the very beginning."""
        newest = self.newest_checkpoint()
        if newest is not None:
            return newest[0]
        origin = read_origin(self.path)
        return origin.step if origin is not None and origin.key == Use.resumed.value else 0

    def begin_from(self, found: Found, config: TridentConfig) -> bool:
        """Write down the origin of a run without checkpoints of its own; return whether it was written before.

        Raises:
            StorageError: it cannot be written.
        """
        named = named_origin(config.checkpoint)
        assert named is not None, "only a key names another run's checkpoint"
        origin = Origin.of(found, named[1])
        began_so = origin == read_origin(self.path)
        if not began_so:
            self.keep_hugging_face(found.kept_files())
            write_origin(self.path, origin)
        return began_so

    def _summary(self) -> dict[str, object]:
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return summary if isinstance(summary, dict) else {}

    def check_shared(self) -> None:
        """Check that this machine sees the folder that rank 0 has made.

        Raises:
            ConfigError: it does not, so it would save its part of a checkpoint where no other machine looks.
        """
        end = time.monotonic() + SHARED_S
        while not self.logs.is_dir():
            if time.monotonic() > end:
                raise ConfigError(
                    f"run_dir must be on a file system that all nodes share, but {self.path}, which rank 0 has "
                    "made, is not seen here; change run_dir",
                    hints=["a run that saves nothing (checkpoint=none) may have a folder of each node's own"],
                )
            time.sleep(_SHARED_POLL_S)

    def check(self, config: TridentConfig) -> None:
        """Check that `config` may train here. Writes nothing.

        Raises:
            ConfigError: the folder may not be written, belongs to another config, is not fresh though
                `checkpoint.resume=never`, or holds a run that did not begin where the config says.
            CheckpointError: `checkpoint.resume` or `checkpoint.init_from` names no checkpoint of this model.
            StorageError: its file system is read-only.
        """
        self._check_writable()
        self._check_is_no_checkpoint()
        self._check_not_imported()
        is_used = self.holds_training()
        earlier = self._earlier_config() if is_used else None
        if is_used and config.checkpoint.resume == "never":
            self._check_never(earlier)
        check_origin(config, earlier, self.path)
        if earlier is not None:
            self._check_same_config(earlier, config)

    def check_weights(self, config: TridentConfig, vocab_size: int) -> None:
        """Check that a run that begins with a Hugging Face folder's weights finds them there. Reads headers of files.

        Args:
            config: the run's config.
            vocab_size: number of token ids.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or belongs to nothing.
        """
        found = None if self.checkpoints.steps() else find_origin(config, self.path)
        if found is not None:
            check_tensors(found, make_model(config.model, vocab_size))

    def check_data(self, config: TridentConfig, stream: str) -> None:
        """Check that the tokens are those that the run in this folder began with, wherever they lie now.

        Args:
            config: config of the run that is to go on.
            stream: identity of its training stream.

        Raises:
            DataError: they are others. A run that begins from another run's checkpoint may use others.
        """
        is_fork = named_origin(config.checkpoint) is not None and not self.checkpoints.steps()
        if is_fork or not self.holds_training():
            return
        if config.data.on_change is OnChange.go_on or self._stream() in (None, stream):
            return
        moved: list[str] = []
        with suppress(OSError, ValueError, ConfigError):
            earlier = from_yaml(self.config.read_text(encoding="utf-8"))
            moved = [key for key in differences(earlier, config) if key in BY_CONTENT]
        newest = self.newest_checkpoint()
        tokenizer = self.tokenizer / "tokenizer.json"
        # Earlier versions took the first name of a list.
        guessed = tokenizer.is_file() and not tokenizer.with_name("tokenizer_config.json").is_file()
        raise other_tokens(config, newest[1] if newest else None, moved, guessed_end=guessed)

    def _stream(self) -> str | None:
        """Return the identity of the training stream here, or None if it is not recorded."""
        for step in reversed(self.checkpoints.steps()):
            with suppress(CheckpointError):
                return str(read_manifest(self.checkpoints.path(step)).train_state["stream"])
        try:
            recorded = json.loads(self.plan.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return recorded.get(STREAM) if isinstance(recorded, dict) else None

    def _check_writable(self) -> None:
        folders = (self.path, *self.path.absolute().parents)
        # os.path, because Path.exists raises below a folder that may not be searched.
        parent = next(folder for folder in folders if os.path.lexists(folder))
        if not os.path.isdir(parent):
            what = "a file" if os.path.exists(parent) else "a link to nothing"
            raise ConfigError(f"run_dir must be a folder, but {parent} is {what}; change run_dir")
        if not os.access(parent, os.W_OK | os.X_OK):
            if os.statvfs(parent).f_flag & os.ST_RDONLY:
                raise StorageError(f"run_dir must be on a disk that can be written, but that of {parent} is read-only")
            raise ConfigError(f"run_dir must be in a folder that can be written, but {parent} cannot; change run_dir")

    def wait_until_free(self, config: TridentConfig) -> None:
        """Wait for the ranks that an earlier start left behind, up to `launch.grace_s` seconds. Writes nothing.

        Raises:
            ConfigError: another run trains in the folder.
            PeerLostError: ranks whose command is gone do not end.
        """
        self._claim.wait(config.launch.grace_s)

    def claim(self, config: TridentConfig) -> None:
        """Keep other runs out of the folder as long as this object lives, and tidy up after a killed one.

        One process of a run calls this, before anything is written.

        Raises:
            ConfigError: as `wait_until_free`; otherwise as `check`, which is done again.
            PeerLostError: as `wait_until_free`.
            StorageError: the folder cannot be written.
        """
        self._claim.take(config.launch.grace_s)
        # The folder may have changed between the check and the lock.
        self.check(config)
        for folder in (self.path, self.logs, self.checkpoints.folder):
            remove_unfinished(folder)

    def _check_is_no_checkpoint(self) -> None:
        """Check that a run would not overwrite the files of a checkpoint."""
        folders = (self.path, *self.path.parents)
        inner = next((path for path in folders if (path / MANIFEST).is_file() and (path / TENSORS).is_dir()), None)
        if inner is not None:
            raise ConfigError(
                f"run_dir must be the folder of a run, but {inner} is a checkpoint, which nothing may change",
                hints=[f"to begin from it set run_dir to another folder, and checkpoint.resume={inner}"],
            )

    def _check_not_imported(self) -> None:
        """Check that there is something to go on with: an imported model has weights, but nothing of a training."""
        newest = self.newest_checkpoint()
        if newest is None:
            return
        with suppress(CheckpointError):
            source = read_manifest(newest[1]).layout.get(IMPORTED_FROM)
            if source is not None:
                raise ConfigError(
                    f"run_dir must be a folder without an imported model, but {self.path} holds that of {source}; "
                    "change run_dir",
                    hints=[f"to train on with its weights: checkpoint.init_from={self.path}, and another run_dir"],
                )

    def _check_never(self, earlier: TridentConfig | None) -> None:
        if earlier is None or earlier.checkpoint.resume != "never":
            found = "a run"
        elif self._summary().get("status") == "finished":
            found = "a run that has finished"
        else:
            # This command began the run, was stopped or killed, and is started again.
            return
        raise ConfigError(
            f"run_dir must be a fresh folder with checkpoint.resume=never, but {self.path} holds {found}",
            hints=["set run_dir to another folder, or checkpoint.resume=auto to go on with this one"],
        )

    def _earlier_config(self) -> TridentConfig | None:
        """Return the config with which the run in the folder was started the last time, if there is one."""
        if not self.config.is_file():
            return None
        try:
            return from_yaml(self.config.read_text(encoding="utf-8"))
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            reason = first_line(error)
            raise ConfigError(
                f"run_dir must hold a run that this version can read, but {self.config} cannot be read: {reason}",
                hints=["set run_dir to another folder"],
            ) from error

    def _check_same_config(self, earlier: TridentConfig, config: TridentConfig) -> None:
        # Packed sequences of another length are other sequences.
        is_fixed = knows_its_length(config.model) or config.data.records is not RecordKind.text
        free = set() if is_fixed else {"model.seq_length"}
        if config.data.on_change is OnChange.go_on:
            free |= {key for key in KEYS if key.startswith("data.") and key not in OF_ALL}
        # The place of data does not say which they are: `check_data` compares the tokens.
        changed = [key for key in differences(earlier, config) if not may_change(key) and key not in free]
        if changed:
            raise ConfigError(
                f"run_dir must hold a run of this config, but {self.path} holds one that differs in "
                f"{', '.join(changed[:8])}{' and more' if len(changed) > 8 else ''}",
                hints=["set run_dir to another folder, or give these keys the values in its config.yaml"],
            )

    def keep_tokenizer(self, source: Path, key: str = "run_dir") -> None:
        """Copy the tokenizer of the data here, and remove an earlier one, which would be taken for it.

        Raises:
            StorageError: it cannot be written; `key` names the folder.
        """
        _keep(self.tokenizer, [path for path in source.iterdir() if path.is_file()], key)

    def keep_hugging_face(self, files: Sequence[Path], key: str = "run_dir") -> None:
        """Copy the small files of the Hugging Face model that the run begins with; without any, nothing is done.

        Raises:
            StorageError: as `keep_tokenizer`.
        """
        if files:
            _keep(self.hugging_face, files, key)

    def write(self, config: TridentConfig, plan: dict[str, object]) -> None:
        """Write config.yaml and plan.json."""
        with storage_faults(self.path):
            self.logs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, to_yaml(config))
        write_atomically(self.plan, json.dumps(plan, indent=1) + "\n")


def _keep(folder: Path, files: Sequence[Path], key: str) -> None:
    """Make these the files of a folder, and write those only that differ."""
    wanted = {path.name: path.read_bytes() for path in files}
    with storage_faults(folder, key):
        folder.mkdir(parents=True, exist_ok=True)
        there = {path.name: path for path in folder.iterdir() if path.is_file()}
        for name in there.keys() - wanted.keys():
            there[name].unlink()
    for name, content in wanted.items():
        if name not in there or there[name].read_bytes() != content:
            write_atomically(folder / name, content, key)
