"""Typed errors. Each class is one exit code; every text says what must hold, what was found, which key to change.

Lowest layer: imports nothing of the project.
"""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or the name of its type if it has no text.

    A line that ends with a colon has the next one behind it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def fault_line(error: BaseException) -> str:
    """Return the first line of an error that nobody has foreseen, with its type; of a `TridentError` the line alone."""
    line = first_line(error)
    return line if isinstance(error, TridentError) else f"{type(error).__name__}: {line}"


class TridentError(Exception):
    """A fault with a known cause; `exit_code` is the exit code of the process.

    Args:
        message: one line: what must hold, what was found, the key to change.
        hints: up to three further lines, each something the user can do.
    """

    exit_code = 1

    def __init__(self, message: str, hints: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems: tuple[str, ...] = (message,)
        self.hints: tuple[str, ...] = tuple(hints)[:3]


class ConfigError(TridentError):
    """The config or the usage is wrong. Holds *all* problems found, one line each."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str], hints: Sequence[str] = ()) -> None:
        lines = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(lines), hints)
        self.problems = lines


class DataError(TridentError):
    """The data or the tokenizer that the user named cannot be used."""

    exit_code = 2


class CheckpointError(TridentError):
    """No usable checkpoint where one is needed."""

    exit_code = 4


class NumericsError(TridentError):
    """Loss or gradients are not finite and the policy is to stop."""

    exit_code = 5


class OutOfMemoryError(TridentError):
    """A device or a machine ran out of memory.

    Args:
        message: as of every error.
        hints: as of every error.
        details: what held the memory, a table for a person that is shown before the message.
    """

    exit_code = 6

    def __init__(self, message: str, hints: Sequence[str] = (), details: Sequence[str] = ()) -> None:
        super().__init__(message, hints)
        self.details: tuple[str, ...] = tuple(details)


class PeerLostError(TridentError):
    """Another rank died or hangs, so no collective can finish."""

    exit_code = 7


class StorageError(TridentError):
    """A disk is full or read-only."""

    exit_code = 8


class Preempted(TridentError):
    """The run was asked to stop, saved its state, and wants to be started again."""

    exit_code = 75


class Interrupted(KeyboardInterrupt):
    """A signal asks for an end, and there is nothing to save. Raised in the main thread by `trainer.interruption`.

    Args:
        name: name of the signal, e.g. SIGTERM.
        exit_code: exit code of the process.
    """

    def __init__(self, name: str, exit_code: int) -> None:
        super().__init__(f"asked to stop by {name}")
        self.name = name
        self.exit_code = exit_code
