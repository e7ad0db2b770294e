"""Signs of life in a run's folder: who holds its lock, which ranks are there, which are gone, and what they left."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainer.launcher.roster import Roster
from trainer.run_paths import LOCK, RunPaths

_OWNER_BYTES = 200


@dataclass(frozen=True)
class Signs:
    """Everything outside of a run's records by which it can be told whether it trains."""

    is_locked: bool = False
    """True if a process holds the run's lock."""
    owner: str = ""
    """Process that holds it or held it last, as the lock's file says."""
    alive: tuple[int, ...] = ()
    """Ranks of this machine that run."""
    lost: tuple[int, ...] = ()
    """Ranks of this machine that are gone without having signed out."""
    elsewhere: Mapping[int, str] = field(default_factory=dict)
    """Rank -> machine of those that have not signed out on other machines, where nobody can look from here."""
    failure: int | None = None
    """Exit code of the failure that a rank has reported since the last start."""
    changed: float | None = None
    """Time at which a file of the run was last written, in seconds since the epoch; None: there is none."""
    now: float = 0.0
    """Time of this look, in seconds since the epoch."""

    @property
    def age_s(self) -> float | None:
        """Seconds since the last sign."""
        return None if self.changed is None else max(0.0, self.now - self.changed)


def read_signs(paths: RunPaths) -> Signs:
    """Look at a run's folder. Writes nothing; what may not be read is taken as not there."""
    roster = Roster(paths.logs if _are_regular(paths.logs) else paths.path / "nothing")
    is_locked, owner = _lock(paths.path / LOCK)
    return Signs(
        is_locked=is_locked,
        owner=owner,
        alive=tuple(sorted(roster.present())),
        lost=tuple(roster.lost()),
        elsewhere=roster.elsewhere(),
        failure=roster.told_failure(),
        changed=_newest(_written(paths)),
        now=time.time(),
    )


def is_regular(path: Path) -> bool:
    """Return whether a path is that of a file, not of a pipe or a device; false if it may not be looked at."""
    try:
        return path.is_file()
    except OSError:
        return False


def _are_regular(logs: Path) -> bool:
    """Return whether the files of the roster can be read without waiting."""
    try:
        return all(is_regular(path) for path in [*logs.glob("rank_*.pid"), *logs.glob("failure")])
    except OSError:
        return False


def _lock(path: Path) -> tuple[bool, str]:
    """Return whether a process holds the lock, and what the file says of it."""
    # A pipe would wait for somebody to write into it.
    if not is_regular(path):
        return False, ""
    with suppress(OSError), path.open("rb") as file:
        owner = file.read(_OWNER_BYTES).decode(errors="replace").strip()
        try:
            # Given back at once, when the file is closed.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, owner
        return False, owner
    return False, ""


def _written(paths: RunPaths) -> Iterable[Path]:
    yield from (paths.metrics, paths.summary, paths.config, paths.journal, paths.checkpoint_folder)
    with suppress(OSError):
        yield from paths.logs.glob("*.log")


def _newest(found: Iterable[Path]) -> float | None:
    times = []
    for path in found:
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=None)
