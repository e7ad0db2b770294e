"""Noticing that a launcher started the run again, and recording how the attempt before ended. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.errors import PeerLostError, Preempted
from trainer.launcher.roster import Roster
from trainer.restarts import Restart, remember
from trainer.run_paths import SUMMARY

RESTART_VARIABLE = "TRIDENT_RESTART_COUNT"
"""Environment variable that our launch scripts set for ranks that they start again."""
_COUNTERS = {
    RESTART_VARIABLE: "launch script",
    "TORCHELASTIC_RESTART_COUNT": "torchrun",
    "JOBSET_RESTART_ATTEMPT": "JobSet",
    "SLURM_RESTART_COUNT": "Slurm",
}
"""Environment variable in which a launcher counts its restarts -> its name. The innermost comes first."""


def last_step(rows: Sequence[Mapping[str, float]]) -> int:
    """Return the step of the last row of metrics, 0 if there is none."""
    return int(rows[-1]["step"]) if rows else 0


def restarted_by(environ: Mapping[str, str]) -> str | None:
    """Return the launcher that says it started this process again, or None."""
    return next((name for variable, name in _COUNTERS.items() if _count(environ.get(variable)) > 0), None)


def note_restart(by: str, run_dir: Path, logs: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Add this start to the run's record of restarts. One rank calls it.

    Call it before the roster is cleared: its entries show how the attempt before ended.

    Args:
        by: the launcher or person that started the run again.
        run_dir: the run's folder.
        logs: its `logs` folder.
        rows: rows of the run's metrics so far.

    Raises:
        StorageError: the record cannot be written.
    """
    roster = Roster(logs)
    lost = roster.left_entries()
    code = roster.told_failure()
    if code is None:
        code = PeerLostError.exit_code if lost else _code_of_summary(run_dir)
    remember(run_dir, Restart.now(code, last_step(rows), lost, by))


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _code_of_summary(run_dir: Path) -> int | None:
    try:
        status = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {"stopped": Preempted.exit_code, "finished": 0}.get(status)
