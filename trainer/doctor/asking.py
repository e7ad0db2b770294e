"""Asking another program, which may be missing, fail, or never answer. No torch."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """The end of a program."""

    code: int | None
    """Exit code; None if it could not be started, or did not end in time."""
    out: str = ""
    err: str = ""
    problem: str = ""
    """Reason why there is no exit code, as the end of a sentence."""
    is_late: bool = False
    """True if it did not end in time."""

    @property
    def is_good(self) -> bool:
        """True if the program ended with 0."""
        return self.code == 0

    @property
    def told(self) -> str:
        """The reason of a failure in one line: the program's own last words, if it has some."""
        if self.problem:
            return self.problem
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with {self.code}"


def ask(command: Sequence[str], seconds: float, environ: Mapping[str, str]) -> Answer:
    """Run a command and return how it ended. When time is up it is killed, with all that it started.

    Args:
        command: the program and its words.
        seconds: longest time that it gets.
        environ: its environment; its messages are asked for in English.
    """
    try:
        process = subprocess.Popen(
            list(command),
            env={**environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, problem=f"{command[0]} cannot be started ({error.strerror or error})")
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # A process that the kernel does not let go of cannot be waited for.
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1.0)
        return Answer(None, problem=f"{command[0]} did not answer within {seconds:g} s", is_late=True)
    return Answer(process.returncode, out, err)
