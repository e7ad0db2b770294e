"""The output of a rank: library noise goes to `logs/rank_<r>.log`, the rest to the terminal. No torch."""

from __future__ import annotations

import fcntl
import io
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from trainer.files import storage_faults
from trainer.launcher.start import CONSOLE_VARIABLE

_CHUNK_BYTES = 1 << 16
_TAIL_BYTES = 1 << 16


@contextmanager
def shared_output() -> Iterator[None]:
    """Let the ranks that this process starts open its stdout and stderr through /proc, while inside.

    A socket (systemd), or a container's pipe that belongs to another user, cannot be opened: it is replaced by a pipe
    whose content is copied there.
    """
    with ExitStack() as stack:
        for descriptor in (1, 2):
            if not _share(descriptor):
                stack.enter_context(_relayed(descriptor))
        try:
            yield
        finally:
            _show_cursor()


def _show_cursor() -> None:
    """Show the cursor again: a rank that is killed leaves it hidden under its live view."""
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")


def _share(descriptor: int) -> bool:
    """Make a descriptor fit for several writers; return whether another process of this user can open it."""
    try:
        with open(f"/proc/{os.getpid()}/fd/{descriptor}", "a"):
            pass
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            # A shell's `> file` gives each writer its own position: without O_APPEND they overwrite each other.
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _relayed(descriptor: int) -> Iterator[None]:
    try:
        original = os.dup(descriptor)
    except OSError:
        # The descriptor is closed, and writing to it has no effect.
        yield
        return
    reader, writer = os.pipe()
    _flush()
    os.dup2(writer, descriptor)
    os.close(writer)
    thread = threading.Thread(target=_copy, args=(reader, original), name="output", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _flush()
        # This closes the last writing end here, so that the copying ends.
        os.dup2(original, descriptor)
        thread.join(timeout=5.0)


def _copy(reader: int, target: int) -> None:
    is_open = True
    while content := os.read(reader, _CHUNK_BYTES):
        while content and is_open:
            try:
                content = content[os.write(target, content) :]
            except OSError:
                # Nobody reads any more, but the ranks must still be able to write.
                is_open = False
    os.close(reader)
    os.close(target)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()


def send_output_to(log: Path) -> tuple[TextIO, TextIO]:
    """Point this process's stdout and stderr, down to C libraries, at `log`.

    Text that cannot be written there is lost without an error: a full disk is reported by what writes important files.

    Returns:
        The terminal's output and error streams as they were (those of the starting process if there is one).

    Raises:
        StorageError: the log cannot be written.
    """
    out, err = _terminal(1), _terminal(2)
    with storage_faults(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    _flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    if target > 2:
        os.close(target)
    sys.stdout, sys.stderr = _forgiving(1), _forgiving(2)
    return out, err


class _ForgivingFile(io.RawIOBase):
    """A file that accepts everything: text that cannot be written is lost."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the descriptor that is written to."""
        return self._descriptor

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, content: Any, /) -> int:
        """Write as much as possible, and report that all was written."""
        with suppress(OSError):
            os.write(self._descriptor, content)
        return memoryview(content).nbytes


def _forgiving(descriptor: int) -> TextIO:
    buffer = io.BufferedWriter(_ForgivingFile(descriptor))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="replace", line_buffering=True)


def _terminal(descriptor: int) -> TextIO:
    parent = os.environ.get(CONSOLE_VARIABLE)
    if parent is not None:
        with suppress(OSError):
            return open(f"/proc/{parent}/fd/{descriptor}", "a", buffering=1, errors="replace")
    try:
        return os.fdopen(os.dup(descriptor), "a", buffering=1, errors="replace")
    except OSError:
        # It is closed, as for a process that detached itself.
        return open(os.devnull, "a")


def tail(log: Path, lines: int = 20, start: int = 0) -> list[str]:
    """Return the last lines of a log, of the part after its first `start` bytes; none if there is no log."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(start, size), size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []
