"""Where a rank's output goes: library noise to `logs/rank_<r>.log`, the rest to the terminal. No torch."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from pathlib import Path
from typing import TextIO

from trainer.launcher.start import CONSOLE_VARIABLE


def share_output() -> bool:
    """Prepare this process's stdout for ranks that also write to it; return whether they can open it.

    A shell's `> file` gives each writer its own position: without O_APPEND they would overwrite each other.
    """
    try:
        descriptor = sys.stdout.fileno()
        with open(f"/proc/{os.getpid()}/fd/{descriptor}", "a"):
            pass
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
    except (OSError, ValueError):
        return False
    return True


def send_output_to(log: Path) -> tuple[TextIO, TextIO]:
    """Point this process's stdout and stderr, down to C libraries, at `log`.

    Returns:
        The terminal's output and error streams as they were (those of the starting process where there is one).
    """
    out, err = _terminal(1), _terminal(2)
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    return out, err


def _terminal(descriptor: int) -> TextIO:
    parent = os.environ.get(CONSOLE_VARIABLE)
    if parent is not None:
        try:
            return open(f"/proc/{parent}/fd/{descriptor}", "a", buffering=1)
        except OSError:
            pass
    return os.fdopen(os.dup(descriptor), "a", buffering=1)


def tail(log: Path, lines: int = 20) -> list[str]:
    """Return the last lines of a log, or nothing if there is none."""
    try:
        return log.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return []
