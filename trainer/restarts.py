"""Restarts of a run after a crash: their conditions, their number, and the record of them. No torch."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainer.errors import PeerLostError, TridentError
from trainer.files import write_atomically
from trainer.run_events import EventKind, append_event

RESTARTS_FILE = "restarts.json"
RESTARTABLE = (TridentError.exit_code, PeerLostError.exit_code)
"""Exit codes of a fault of ours, and of a lost rank. Other ends would repeat: wrong input, numerics, memory, disk."""
_FATAL_SIGNALS = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGKILL, signal.SIGSEGV)
_LOST_RANK_CODES = {base + sign * number for number in _FATAL_SIGNALS for base, sign in ((128, 1), (256, -1))}
"""Exit codes by which a shell (128 + signal) and the deepspeed launcher (256 - signal) say that a signal killed a
rank."""
LONGEST_WAIT_S = 300.0


@dataclass(frozen=True)
class Restart:
    """One restart of a run."""

    exit_code: int | None
    """Exit code of the attempt before; None if it is not known."""
    step: int
    """Last step that the attempt logged, 0 if none."""
    lost_ranks: tuple[int, ...]
    """Ranks that ended without reporting a cause."""
    time: str
    """UTC, ISO 8601."""
    by: str
    """The launcher or command that started the run again."""

    @classmethod
    def now(cls, exit_code: int | None, step: int, lost_ranks: Sequence[int], by: str = "trident") -> Restart:
        """Return a restart at this moment."""
        return cls(exit_code, step, tuple(lost_ranks), datetime.now(UTC).isoformat(timespec="seconds"), by)


def as_exit_code(status: int) -> int:
    """Return a launcher's exit status as one of ours: a rank that a signal killed is a lost rank."""
    return PeerLostError.exit_code if status in _LOST_RANK_CODES else status


class RestartPolicy:
    """Decides after each attempt of one command whether there is another.

    Args:
        max_restarts: largest number of restarts.
        backoff_s: wait before the first restart; doubled for each further one, up to `LONGEST_WAIT_S`.
        option: the option with which the user set `max_restarts`.
    """

    def __init__(self, max_restarts: int, backoff_s: float, option: str = "launch.max_restarts") -> None:
        self._option = option
        self._left = self._max_restarts = max_restarts
        self._wait_s = backoff_s
        self._failed_step: int | None = None
        self.reason: str | None = None
        """Reason why the last answer was None; empty if no restart was to be expected."""

    def wait_s(self, exit_code: int, step: int) -> float | None:
        """Return the seconds to wait before the next attempt, or None if there is none; see `reason`.

        Args:
            exit_code: exit code of the attempt that ended.
            step: last step that it logged.
        """
        self.reason = self._reason_to_give_up(exit_code, step)
        if self.reason is not None:
            return None
        self._left -= 1
        self._failed_step = step
        wait_s = min(self._wait_s, LONGEST_WAIT_S)
        self._wait_s = 2 * wait_s
        return wait_s

    def _reason_to_give_up(self, exit_code: int, step: int) -> str | None:
        if self._max_restarts == 0 or exit_code not in RESTARTABLE:
            return ""
        if step == self._failed_step:
            return f"it failed again after step {step}, so a restart does not help"
        if self._left == 0:
            return f"all of {self._option}={self._max_restarts} restarts are used"
        return None


def read_restarts(run_dir: Path) -> list[dict[str, object]]:
    """Return the restarts of a run, oldest first; none if there were none or the file is damaged."""
    try:
        found = json.loads((run_dir / RESTARTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def remember(run_dir: Path, restart: Restart) -> None:
    """Add a restart to the run's record, and to its events.

    Raises:
        StorageError: the record cannot be written.
    """
    everything = [*read_restarts(run_dir), asdict(restart)]
    write_atomically(run_dir / RESTARTS_FILE, json.dumps(everything, indent=1) + "\n")
    details = {name: value for name, value in asdict(restart).items() if name not in ("step", "time")}
    append_event(run_dir, EventKind.restart, restart.step, details)
