"""Types at an interactive shell on a terminal of its own, and waits for what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>]|\][^\x07]*\x07|[()][A-Z0-9])")
_QUESTIONS = {b"\x1b[6n": b"\x1b[1;1R", b"\x1b[c": b"\x1b[?62c", b"\x1b[0c": b"\x1b[?62c"}
"""What shells ask a terminal, and the answers."""
LINE_AWAY = "\x15"
"""Ctrl-U: the line as if nothing had been typed."""


class Typist:
    """A shell under way. Leaving the `with` block ends it."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(cwd)
            os.execvpe(command[0], list(command), dict(environment))
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        self._shown = b""

    def __enter__(self) -> Typist:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.close(self._terminal)
        os.waitpid(self._pid, 0)

    @property
    def shown(self) -> str:
        """What the shell has written since the last keys, without the terminal's codes."""
        return _ESCAPE.sub("", self._shown.decode("utf-8", "replace")).replace("\x07", "")

    def type(self, keys: str, expected: str, timeout_s: float = 40) -> None:
        """Press keys and wait until a text is shown.

        Raises:
            AssertionError: it was not, in time.
        """
        self._shown = b""
        os.write(self._terminal, keys.encode())
        end = time.monotonic() + timeout_s
        while expected not in self.shown:
            assert time.monotonic() < end, f"{keys!r} must show {expected!r}, but shows {self.shown!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                self._read()

    def _read(self) -> None:
        chunk = os.read(self._terminal, 65536)
        for question, answer in _QUESTIONS.items():
            if question in chunk:
                os.write(self._terminal, answer)
        self._shown += chunk
