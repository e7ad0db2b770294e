"""What a process says to a person. The only module that prints; every other one calls it.

Rank-aware: of the ranks of a run only the reporting one speaks, so a line is seen once and not once a rank. No torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from trainer.errors import TridentError

_MAX_HINTS = 3


class _Terminal:
    """The streams that a person sees. None: whatever sys.stdout and sys.stderr are at that moment."""

    out: TextIO | None = None
    err: TextIO | None = None
    above_bar: Callable[[str], None] | None = None
    """Prints a line above the progress bar, while there is one."""


def use_terminal(out: TextIO, err: TextIO) -> None:
    """Send what this module prints to `out` and `err`, when a rank's own output goes to a log file."""
    _Terminal.out, _Terminal.err = out, err


def print_above_bar(printer: Callable[[str], None] | None) -> None:
    """Let `printer` put lines on the terminal as long as a progress bar is drawn there; None when it is gone."""
    _Terminal.above_bar = printer


def terminal() -> TextIO:
    """Return the stream for progress and results."""
    return _Terminal.out or sys.stdout


def _error_stream() -> TextIO:
    return _Terminal.err or sys.stderr


def is_reporting_process() -> bool:
    """Return True on global rank 0, and where no launcher has set `RANK`."""
    return os.environ.get("RANK", "0") in ("", "0")


def say(text: str) -> None:
    """Print one line to stdout, on the reporting rank only."""
    if is_reporting_process():
        _print(text, terminal())


def tell(text: str) -> None:
    """Print to stdout on whichever rank calls: for what only this rank knows."""
    _print(text, terminal())


def record(text: str) -> None:
    """Write a line into this rank's own log."""
    _print(text, sys.stderr)


def warn(text: str) -> None:
    """Print `warning: text` to stderr, on the reporting rank only."""
    if is_reporting_process():
        _print(f"warning: {text}", _error_stream())


def report_error(error: TridentError) -> None:
    """Print an `error:` line for each problem and at most three `hint:` lines to stderr, on the reporting rank only."""
    if is_reporting_process():
        report_failure(error)


def report_failure(error: TridentError) -> None:
    """Print the same on whichever rank calls: for a fault that only this rank knows of."""
    lines = [f"error: {problem}" for problem in error.problems]
    lines += [f"hint: {hint}" for hint in error.hints[:_MAX_HINTS]]
    _print("\n".join(lines), _error_stream())


def silence(stream: TextIO) -> None:
    """Send what is still written to `stream` nowhere: its reader is gone (`trident train | head`).

    Without this the interpreter would fail once more when it flushes the stream at its end.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _print(text: str, stream: TextIO) -> None:
    try:
        if _Terminal.above_bar is not None and stream.isatty():
            _Terminal.above_bar(text)
        else:
            print(text, file=stream, flush=True)
    except OSError:
        # The pipe is closed, the terminal gone or its disk full; that is no reason to stop a training run.
        silence(stream)
