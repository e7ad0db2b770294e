"""Names of the files and folders in a run's folder and in a checkpoint. Nothing is read or made here."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.yaml"
"""The settled config, in a run's folder and in a checkpoint."""
PLAN = "plan.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
CSV = "metrics.csv"
JOURNAL = "ledger.jsonl"
"""File with a line for each start of a run, and for each return to a checkpoint: what it read from there on."""
EVENTS = "events.jsonl"
"""File with a line for each start, save, skipped batch, rewind, evaluation and end of a run."""
TIMELINE = "timeline.json"
"""File with the newest measured step: what every stage did, and when."""
SUMMARY = "summary.json"
LOGS = "logs"
LOCK = "lock"
PROFILE = "profile"
SKIPPED_BATCHES = "skipped_batches.jsonl"
"""File in the folder of logs."""
TOKENIZER = "tokenizer"
"""Folder of the tokenizer, in a run's folder and in a checkpoint."""
HUGGING_FACE = "hugging_face"
"""Folder, in a run's folder and in a checkpoint, of the small files of the Hugging Face model that it began with, as
they were: config, tokenizer, chat template, generation config."""
CHECKPOINTS = "checkpoints"
LATEST = "latest"
"""File in the folder of checkpoints, with the name of the newest one."""
TENSORS = "tensors"
"""Folder of a checkpoint's tensors."""


class RunPaths:
    """Paths inside the folder of a run.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG
        self.plan = path / PLAN
        self.metrics = path / METRICS
        self.samples = path / SAMPLES
        self.csv = path / CSV
        self.journal = path / JOURNAL
        self.events = path / EVENTS
        self.timeline = path / TIMELINE
        self.summary = path / SUMMARY
        self.logs = path / LOGS
        self.skipped_batches = self.logs / SKIPPED_BATCHES
        self.tokenizer = path / TOKENIZER
        self.hugging_face = path / HUGGING_FACE
        self.checkpoint_folder = path / CHECKPOINTS

    @property
    def is_run(self) -> bool:
        """True if a run was begun here."""
        return self.config.is_file() and self.checkpoint_folder.is_dir()

    def log(self, rank: int) -> Path:
        """Return the log of a rank."""
        return self.logs / f"rank_{rank}.log"


def run_of_checkpoint(checkpoint: Path) -> RunPaths | None:
    """Return the run in whose folder a checkpoint lies, if it lies in one."""
    return RunPaths(checkpoint.parent.parent) if checkpoint.parent.name == CHECKPOINTS else None
