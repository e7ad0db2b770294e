"""The folder of a run: who may use it, and what it says before step 1. No torch."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import CheckpointStore, find_checkpoint
from trainer.checkpoint.stream import other_tokens
from trainer.config.compose import differences, from_yaml, to_yaml
from trainer.config.places import BY_CONTENT, absolute_path
from trainer.config.schema import PositionKind, TridentConfig
from trainer.errors import CheckpointError, ConfigError, StorageError
from trainer.files import remove_unfinished, storage_faults, write_atomically
from trainer.launcher.roster import Roster
from trainer.log import warn

_MAY_CHANGE = (
    "layout.",
    "zero.",
    "precision.",
    "batch.",
    "model.recompute",
    "model.fused_loss",
    "model.vocab_pad_multiple",
    "train.steps",
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
    "runtime.",
    "data.cache_dir",
    "optimizer.implementation",
    "run_dir",
    "name",
)
"""Keys that do not change which run this is: how it is computed, watched and saved."""
STREAM = "stream"
"""Entry of plan.json: which token is where in what the run trains on."""
LOCK = "lock"
"""File of a run's folder that the process which trains there holds a lock on."""
_OWNER_BYTES = 200


class RunFolder:
    """Paths inside a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.logs = path / "logs"
        self.tokenizer = path / "tokenizer"
        self.checkpoints = CheckpointStore(path)
        self._claim: IO[bytes] | None = None

    @classmethod
    def of(cls, config: TridentConfig) -> RunFolder:
        """Return the folder that `run_dir` names; `~` is the user's home."""
        return cls(absolute_path(config.run_dir, "run_dir"))

    def log(self, rank: int) -> Path:
        """Return the log of a rank."""
        return self.logs / f"rank_{rank}.log"

    def holds_training(self) -> bool:
        """Return whether steps were already trained here."""
        has_rows = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return has_rows or bool(self.checkpoints.steps())

    def newest_checkpoint(self) -> tuple[int, Path] | None:
        """Return step and folder of the newest checkpoint that was published, if there is one."""
        steps = self.checkpoints.steps()
        return (steps[-1], self.checkpoints.path(steps[-1])) if steps else None

    def is_concluded(self, step: int) -> bool:
        """Return whether the summary says that the run finished at `step`. A run that was killed then has no such."""
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(summary, dict) and (summary.get("status"), summary.get("step")) == ("finished", step)

    def check(self, config: TridentConfig) -> None:
        """Check that `config` may train here. Writes nothing.

        Raises:
            ConfigError: the folder may not be written, is in use, belongs to another config, or is not fresh though
                `checkpoint.resume=never`.
            CheckpointError: `checkpoint.resume` names something that is no checkpoint.
            StorageError: its file system is read-only.
        """
        self._check_writable()
        self._check_free()
        self._check_resume(config.checkpoint.resume)
        if not self.holds_training():
            return
        if config.checkpoint.resume == "never":
            raise ConfigError(
                f"run_dir must be a fresh folder with checkpoint.resume=never, but {self.path} holds a run",
                hints=["set run_dir to another folder, or checkpoint.resume=auto to go on with this one"],
            )
        if self.config.is_file():
            self._check_same_config(config)

    def check_data(self, config: TridentConfig, stream: str) -> None:
        """Check that the tokens are those that the run in this folder began with, wherever they lie now.

        Args:
            config: of the run that is to go on.
            stream: identity of its training stream.

        Raises:
            DataError: they are others. A start from a checkpoint that `checkpoint.resume` names may take others.
        """
        if config.checkpoint.resume != "auto" or not self.holds_training():
            return
        if self._stream() in (None, stream):
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
        """Return the identity of the training stream here, or None where nothing tells it."""
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

    def _check_free(self) -> None:
        ranks = Roster(self.logs).present()
        ranks = {rank: pid for rank, pid in ranks.items() if pid != os.getpid()}
        if ranks:
            rank, pid = min(ranks.items())
            raise ConfigError(
                f"run_dir must not be in use, but rank {rank} of a run trains in {self.path} now (process {pid})",
                hints=["wait for that run, stop it, or set run_dir to another folder"],
            )

    def claim(self, config: TridentConfig) -> None:
        """Keep other runs out of the folder as long as this object lives, and tidy up after a killed one.

        The operating system takes the lock back from a process that ends, however it does. One process of a run calls
        this, before anything is written.

        Raises:
            ConfigError: another run has claimed it; otherwise as `check`, which is done again.
            StorageError: the folder cannot be written.
        """
        with storage_faults(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # Not inherited by processes that this one starts; they must not keep the lock.
            self._claim = (self.path / LOCK).open("a+b", buffering=0)
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._claim.seek(0)
            owner = self._claim.read(_OWNER_BYTES).decode(errors="replace").strip()
            raise ConfigError(
                f"run_dir must not be in use, but a run trains in {self.path} now ({owner or 'it has just started'})",
                hints=["wait for that run, stop it, or set run_dir to another folder"],
            ) from None
        except OSError as error:
            warn(f"the file system of {self.path} cannot lock ({error.strerror}): do not start two runs there at once")
        # Only for people: the lock is what counts, and a full disk is told of when it matters.
        with suppress(OSError):
            self._claim.truncate(0)
            self._claim.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        # What was checked before may have changed until the lock was ours.
        self.check(config)
        for folder in (self.path, self.logs, self.checkpoints.folder):
            remove_unfinished(folder)

    def _check_resume(self, resume: str) -> None:
        if resume in ("auto", "never"):
            return
        try:
            find_checkpoint(Path(resume))
        except CheckpointError as error:
            raise CheckpointError(
                f"checkpoint.resume must be auto, never, or the path of a checkpoint, but: {error}", error.hints
            ) from error

    def _check_same_config(self, config: TridentConfig) -> None:
        try:
            earlier = from_yaml(self.config.read_text(encoding="utf-8"))
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(
                f"run_dir must hold a run that this version can read, but {self.config} cannot be read: {reason}",
                hints=["set run_dir to another folder"],
            ) from error
        may_change: tuple[str, ...] = _MAY_CHANGE
        if config.model.position is PositionKind.rope:
            # Learned positions are weights, as many as the sequence is long.
            may_change = (*may_change, "model.seq_length")
        # Where data lie does not say which they are: `check_data` compares the tokens.
        may_change = (*may_change, *BY_CONTENT)
        changed = [key for key in differences(earlier, config) if not key.startswith(may_change)]
        if changed:
            raise ConfigError(
                f"run_dir must hold a run of this config, but {self.path} holds one that differs in "
                f"{', '.join(changed[:8])}{' and more' if len(changed) > 8 else ''}",
                hints=["set run_dir to another folder, or give these keys the values in its config.yaml"],
            )

    def write(self, config: TridentConfig, plan: dict[str, object]) -> None:
        """Write config.yaml and plan.json."""
        with storage_faults(self.path):
            self.logs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, to_yaml(config))
        write_atomically(self.plan, json.dumps(plan, indent=1) + "\n")
