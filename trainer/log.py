"""Messages of a process to a person. The only module that prints; every other one calls it.

Rank-aware: only the reporting rank prints, so a line is seen once and not once for each rank. If a rank's own output
goes to a log, the log has these lines too, also those that a quiet run does not show. No torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TextIO

from trainer.errors import OutOfMemoryError, TridentError

_MAX_HINTS = 3


class _Terminal:
    """The streams that a person sees. None: the sys.stdout and sys.stderr of that moment."""

    out: TextIO | None = None
    err: TextIO | None = None
    above_bar: Callable[[str], None] | None = None
    """Prints a line above the live view, while there is one."""
    is_quiet: bool = False


def use_terminal(out: TextIO, err: TextIO) -> None:
    """Send what this module prints to `out` and `err`, when a rank's own output goes to a log file."""
    _Terminal.out, _Terminal.err = out, err


def print_above_bar(printer: Callable[[str], None] | None) -> None:
    """Let `printer` put lines on the terminal while a live view is drawn there; None when it is gone."""
    _Terminal.above_bar = printer


def be_quiet(is_quiet: bool = True) -> None:
    """Show only errors and the last line of a run (`conclude`)."""
    _Terminal.is_quiet = is_quiet


def terminal() -> TextIO:
    """Return the stream for progress and results."""
    return _Terminal.out or sys.stdout


def _error_stream() -> TextIO:
    return _Terminal.err or sys.stderr


def is_reporting_process() -> bool:
    """Return True on global rank 0, and if no launcher has set `RANK`."""
    return os.environ.get("RANK", "0") in ("", "0")


def say(text: str) -> None:
    """Print one line to stdout, on the reporting rank only; nothing in a quiet run."""
    if is_reporting_process():
        _record(text)
        if not _Terminal.is_quiet:
            _print(text, terminal())


def write(text: str) -> None:
    """Print a piece of a result to stdout as it is, without an end of line, on the reporting rank only."""
    if is_reporting_process():
        _print(text, terminal(), end="")


def aside(text: str) -> None:
    """Print one line to stderr, on the reporting rank only: a fact about results that go to stdout."""
    if is_reporting_process():
        _record(text)
        if not _Terminal.is_quiet:
            _print(text, _error_stream())


def conclude(text: str) -> None:
    """Print the last line of a run to stdout, on the reporting rank only, also in a quiet one."""
    if is_reporting_process():
        _record(text)
        _print(text, terminal())


def part(text: str) -> None:
    """Print the last line of a command that ends before its time to stderr, on the reporting rank only."""
    if is_reporting_process():
        _record(text)
        _print(text, _error_stream())


def tell(text: str) -> None:
    """Print to stdout on whichever rank calls: for facts that only this rank knows."""
    _print(text, terminal())


def record(text: str) -> None:
    """Write a line into this rank's own log."""
    _print(text, sys.stderr)


def warn(text: str) -> None:
    """Print `warning: text` to stderr, on the reporting rank only; nothing in a quiet run."""
    if is_reporting_process():
        _record(f"warning: {text}")
        if not _Terminal.is_quiet:
            _print(f"warning: {text}", _error_stream())


def report_error(error: TridentError) -> None:
    """Print an `error:` line for each problem and at most three `hint:` lines to stderr, on the reporting rank only."""
    if is_reporting_process():
        report_failure(error)


def report_failure(error: TridentError, log_of: str = "", log_lines: Sequence[str] = ()) -> None:
    """Print the same as `report_error` on whichever rank calls: for a fault that only this rank knows.

    What held the memory of a rank that ran out of it comes before.

    Args:
        error: the fault.
        log_of: the rank whose log the lines are from, e.g. `rank 1`.
        log_lines: the end of that log, shown before the error.
    """
    lines = list(error.details) if isinstance(error, OutOfMemoryError) else []
    lines += [f"error: {_one_line(problem)}" for problem in error.problems]
    lines += [f"hint: {_one_line(hint)}" for hint in error.hints[:_MAX_HINTS]]
    _record("\n".join(lines))
    _print("\n".join([*(f"{log_of} | {line}" for line in log_lines), *lines]), _error_stream())


def _one_line(text: str) -> str:
    """Return the text with its line ends escaped: names of files may hold them."""
    return "\\n".join(text.splitlines())


def silence(stream: TextIO) -> None:
    """Discard further output to `stream`, because its reader is gone (`trident train | head`).

    Without this the interpreter would fail once more when it flushes the stream at its end.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _record(text: str) -> None:
    """Write a line into this rank's log, if its own output goes there."""
    if _Terminal.out is not None:
        with suppress(OSError, ValueError):
            print(text, flush=True)


def _print(text: str, stream: TextIO, end: str = "\n") -> None:
    try:
        if _Terminal.above_bar is not None and stream.isatty():
            _Terminal.above_bar(text)
        else:
            print(text, file=stream, flush=True, end=end)
    except OSError:
        # The pipe is closed, the terminal gone or its disk full; that is no reason to stop a training run.
        silence(stream)
