"""The state of a run: whether it trains, how it ended, and how far it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from trainer.records.happened import Event
from trainer.records.signs import Signs

SILENT_S = 300.0
"""Seconds without a sign behind which ranks on another machine are not taken for running any more."""
_CODES = MappingProxyType(
    {
        1: "a fault of Trident or of a library",
        2: "a wrong config, or wrong data",
        4: "no usable checkpoint",
        5: "numerics: the policy on values that are not finite, or on spikes, ended it",
        6: "out of memory",
        7: "a lost or hanging rank",
        8: "a disk that is full or cannot be written",
        75: "a request to stop before its first step",
        130: "Ctrl-C before its first step",
    }
)
"""Exit code of a failure -> what it stands for."""


class State(Enum):
    """States of a run."""

    running = "running"
    finished = "finished"
    """It has trained all of its steps."""
    stopped = "stopped"
    """It was asked to stop, saved, and can go on."""
    failed = "failed"
    """It ended with an error that it reported."""
    crashed = "crashed"
    """It ended without a word: killed, or its machine is gone."""
    unknown = "unknown"


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, and why it is thought so."""

    state: State
    reason: str
    """Sentence without a full stop that says what the state was concluded from, or how the run failed."""
    step: int
    """Last step that is known to be done; 0: none."""
    steps: int | None
    """Number of steps that the run is to do; None: not known."""
    age_s: float | None
    """Seconds since the run last wrote something; None: it wrote nothing that is known."""

    @property
    def is_over(self) -> bool:
        """True if nothing more is to be expected without another start."""
        return self.state not in (State.running, State.unknown)


def judge(
    signs: Signs, events: Sequence[Event], summary: Mapping[str, Any] | None, last_step: int, steps: int | None
) -> RunStatus:
    """Return the state of a run.

    Args:
        signs: what was seen around it.
        events: its events; those of older versions may lack its ends.
        summary: the content of summary.json.
        last_step: step of its last row.
        steps: number of steps that it is to do.
    """
    told = _told_end(events, summary, last_step)
    state, reason = _judged(signs, told, last_step)
    step = last_step
    if told is not None:
        step = max(step, told.step)
    return RunStatus(state, reason, step, steps, signs.age_s)


@dataclass(frozen=True)
class _End:
    """An end that the run wrote down, and that no later start follows."""

    status: str
    step: int
    error: str


def _told_end(events: Sequence[Event], summary: Mapping[str, Any] | None, last_step: int) -> _End | None:
    turns = [event for event in events if event.kind in ("start", "restart", "stop", "end")]
    has_list = any(event.kind in ("stop", "end") for event in turns)
    if has_list and turns[-1].kind in ("stop", "end"):
        last = turns[-1]
        return _End(str(last.details.get("status")), last.step or 0, str(last.details.get("error") or ""))
    # In a list that was kept, a start without an end says that there was none.
    is_kept = has_list or any(event.kind == "start" and event.time is not None for event in turns)
    if is_kept or summary is None:
        return None
    step = summary.get("step")
    if not isinstance(step, int) or step < last_step:
        return None
    return _End(str(summary.get("status")), step, str(summary.get("error") or ""))


def _judged(signs: Signs, told: _End | None, last_step: int) -> tuple[State, str]:
    if signs.is_locked or signs.alive:
        if signs.is_locked:
            return State.running, f"its lock is held by {signs.owner or 'a process'}"
        return State.running, f"{_ranks(signs.alive)} of it run{'s' * (len(signs.alive) == 1)} on this machine"
    if signs.elsewhere:
        hosts = ", ".join(sorted(set(signs.elsewhere.values())))
        if signs.age_s is not None and signs.age_s < SILENT_S:
            return State.running, f"its ranks on {hosts} have not signed out"
        return State.unknown, f"its ranks on {hosts} have not signed out, but write nothing any more; look there"
    if signs.lost:
        many = "s" * (len(signs.lost) == 1)
        return State.crashed, f"{_ranks(signs.lost)} ended without a word: {'it was' if many else 'they were'} killed"
    if told is not None and told.status in ("finished", "stopped", "failed") and not _is_later(signs, told):
        words = {"finished": "it has done all its steps", "stopped": "it was asked to stop"}
        return State(told.status), told.error or words.get(told.status, "it says nothing of the reason")
    if signs.failure is not None:
        code = signs.failure
        return State.failed, f"a rank reported exit code {code}: {_CODES.get(code, 'another program may know it')}"
    if last_step or told is not None:
        return State.crashed if told is None else State.unknown, "it wrote down no end"
    return State.unknown, "it has not trained a step, and nothing says whether it runs"


def _is_later(signs: Signs, told: _End) -> bool:
    """Return whether the failure that a rank reported came after the end that was written down."""
    return signs.failure is not None and told.status != "failed"


def _ranks(ranks: Sequence[int]) -> str:
    named = ", ".join(map(str, ranks[:8])) + (" and more" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {named}"
