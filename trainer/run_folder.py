"""The folder of a run: who may use it, and what it says before step 1. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from trainer.checkpoint.store import CheckpointStore
from trainer.config.compose import differences, from_yaml, to_yaml
from trainer.config.schema import TridentConfig
from trainer.errors import ConfigError
from trainer.files import storage_faults, write_atomically

_MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "checkpoint.",
    "logging.",
    "launch.",
    "runtime.",
    "data.cache_dir",
    "optimizer.implementation",
    "run_dir",
    "name",
)
"""Keys that do not change what the earlier steps of a run computed."""


class RunFolder:
    """Paths inside a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.metrics = path / "metrics.jsonl"
        self.logs = path / "logs"
        self.tokenizer = path / "tokenizer"
        self.checkpoints = CheckpointStore(path)

    def log(self, rank: int) -> Path:
        """Return the log of a rank."""
        return self.logs / f"rank_{rank}.log"

    def holds_training(self) -> bool:
        """Return whether steps were already trained here."""
        has_rows = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return has_rows or bool(self.checkpoints.steps())

    def check(self, config: TridentConfig) -> None:
        """Check that `config` may train here.

        Raises:
            ConfigError: the folder cannot be written, belongs to another config, or is not fresh though
                `checkpoint.resume=never`.
        """
        self._check_writable()
        if not self.holds_training():
            return
        if config.checkpoint.resume == "never":
            raise ConfigError(
                f"run_dir must be a fresh folder with checkpoint.resume=never, but {self.path} holds a run",
                hints=["set run_dir to another folder, or checkpoint.resume=auto to go on with this one"],
            )
        if self.config.is_file():
            earlier = from_yaml(self.config.read_text())
            changed = [key for key in differences(earlier, config) if not key.startswith(_MAY_CHANGE)]
            if changed:
                raise ConfigError(
                    f"run_dir must hold a run of this config, but {self.path} holds one that differs in "
                    f"{', '.join(changed[:8])}{' and more' if len(changed) > 8 else ''}",
                    hints=["set run_dir to another folder, or give these keys the values in its config.yaml"],
                )

    def _check_writable(self) -> None:
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir():
            raise ConfigError(f"run_dir must be a folder, but {parent} is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ConfigError(f"run_dir must be in a folder that can be written, but {parent} cannot; change run_dir")

    def write(self, config: TridentConfig, plan: dict[str, object]) -> None:
        """Write config.yaml and plan.json."""
        with storage_faults(self.path):
            self.logs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, to_yaml(config))
        write_atomically(self.plan, json.dumps(plan, indent=1) + "\n")
