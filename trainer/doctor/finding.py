"""A finding of the doctor, and a check that makes findings, as values. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.doctor.surroundings import Surroundings


class Status(Enum):
    """Verdict on one thing."""

    ok = "ok"
    warn = "warn"
    """It works, but slowly, or not for everything that a run may ask for."""
    fail = "fail"
    """The run that the words describe would not start, or end, or compute something else."""
    skip = "skip"
    """There is nothing to judge here."""


@dataclass(frozen=True)
class Finding:
    """The verdict on one thing, and the way to mend it."""

    name: str
    """Name of the thing, the same in every run of the doctor."""
    status: Status
    found: str
    """The state that was found, as one line."""
    fix: str = ""
    """The way to mend it, as one line; commands stand in backticks. Given where the status is warn or fail."""

    def __post_init__(self) -> None:
        if bool(self.fix) != (self.status in (Status.warn, Status.fail)):
            raise ValueError(f"{self.name}: a warning and a failure have a fix, and nothing else has")


def ok(name: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(name, Status.ok, found)


def warn(name: str, found: str, fix: str) -> Finding:
    """Return a finding that something is slow or cannot do everything."""
    return Finding(name, Status.warn, found, fix)


def fail(name: str, found: str, fix: str) -> Finding:
    """Return a finding that the run would not work."""
    return Finding(name, Status.fail, found, fix)


def skip(name: str, found: str) -> Finding:
    """Return a finding that there is nothing to judge."""
    return Finding(name, Status.skip, found)


@dataclass(frozen=True)
class Check:
    """A look at one topic."""

    name: str
    """Name of the finding that is made if the check itself does not answer."""
    topic: str
    look: Callable[[Surroundings], Iterable[Finding]]
    """Function that looks. It may raise and it may hang: then that is the finding."""
    seconds: float = 30.0
    """Seconds that it may take."""


@dataclass(frozen=True)
class Examined:
    """A check and its findings."""

    check: Check
    findings: tuple[Finding, ...]


def worst(examined: Iterable[Examined]) -> Status:
    """Return fail if anything fails, warn if anything warns, otherwise ok."""
    found = {finding.status for one in examined for finding in one.findings}
    return next((status for status in (Status.fail, Status.warn) if status in found), Status.ok)
