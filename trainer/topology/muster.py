"""All ranks say what they are about to do before any of them does it, and go on only if it is the same.

They communicate through the store in which they met: there is no process group yet, since the way to make one is part
of what they may disagree on. A rank reads one digest, that of rank 0, and writes a few words; only if digests differ
does it read all of rank 0's facts. So a thousand ranks cost the store a few thousand small requests. Knows no torch:
any object with `set`, `get`, `check` and `add` of `torch.distributed.Store` will do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trainer.errors import ConfigError, TridentError

SETTLE_S = 1.5
"""Seconds that further ranks get to differ, once one does, so that all are reported together."""
HEARD_S = 10.0
"""Seconds that ranks get to read why the run does not begin."""
POLL_S = 0.02
_LEFT_OVER = "if one is left of an earlier start whose launcher was killed, end it: kill -9 its process"
_LISTED = 6
"""Largest number of differences, and of groups of ranks, that a message names."""
_READ = 64
"""Largest number of objections that are read in a large world."""
_LONGEST = 160
"""Largest number of characters of a value in a message."""


class Store(Protocol):
    """The part of torch's stores that is used."""

    def set(self, key: str, value: str, /) -> object:
        """Write a value."""

    def get(self, key: str, /) -> bytes:
        """Return a value that is there."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all of them are there."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number, 0 at first, and return the sum."""


class Wait(Protocol):
    """Returns when the first argument holds; the second says what is waited for. May raise when it takes too long."""

    def __call__(self, holds: Callable[[], bool], what: Callable[[], str], /) -> None:
        """Wait."""


@dataclass(frozen=True)
class Fact:
    """A value that must be the same on every rank."""

    value: object
    """Plain value, as JSON holds it."""
    source: object = None
    """The value as it was written: `${now:%H-%M}`, a relative path. If values differ although they were written alike,
    rank 0 decides. None: nobody wrote it, so differing values are refused."""


Facts = Mapping[str, Fact]


@dataclass(frozen=True)
class Member:
    """A process among those that meet."""

    rank: int
    size: int
    host: str
    pid: int

    @property
    def name(self) -> str:
        """Name of the process in messages."""
        return f"rank {self.rank} ({self.host})"


@dataclass(frozen=True)
class Agreed:
    """The result of an agreement."""

    taken: Mapping[str, object] = field(default_factory=dict)
    """Name -> rank 0's value, for facts that differ here although they were written alike."""
    notes: tuple[str, ...] = ()
    """Lines for rank 0 to print, one for each such fact."""


@dataclass(frozen=True)
class Refusal:
    """The reason why a rank cannot take part."""

    problems: Sequence[str]
    hints: Sequence[str]
    exit_code: int

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """Return the refusal that an error gives."""
        if isinstance(error, TridentError):
            return cls(error.problems, error.hints, error.exit_code)
        text = next(iter(str(error).splitlines()), "")
        return cls((f"failed: {type(error).__name__}: {text}",), (), TridentError.exit_code)


class DisagreementError(ConfigError):
    """The run does not begin, and every rank that could be reached knows why: rank 0 reports it.

    Args:
        problems: the problems, one line each.
        hints: things that the user can do.
        exit_code: exit code of all ranks.
    """

    def __init__(self, problems: Sequence[str], hints: Sequence[str] = (), exit_code: int = 2) -> None:
        super().__init__(problems, hints)
        self.exit_code = exit_code


class LonelyError(ConfigError):
    """This process cannot take part, and only it knows: no other rank could be told."""


def agree(store: Store, member: Member, said: Facts | Refusal, wait: Wait) -> Agreed:
    """Compare what this rank is about to do with rank 0. Every rank of the world calls it.

    Args:
        store: the store in which the ranks met; it may hold other keys of earlier calls of the same ranks, and no more.
        member: this process.
        said: the facts that must be the same on all ranks, or the reason why this rank cannot take part.
        wait: waits, and says for what.

    Returns:
        The decision of rank 0. When it returns, all ranks have called it, and all agree.

    Raises:
        DisagreementError: a rank differs or cannot take part; on every rank that has called this.
        LonelyError: another process has this rank in a run that has begun.
    """
    is_first = store.add(f"seat/{member.rank}", 1) == 1
    if not is_first and store.check(["verdict"]):
        raise _late(store, member)
    if is_first:
        store.set(f"member/{member.rank}", json.dumps([member.host, member.pid]))
    if member.rank == 0 and is_first:
        return _judge(store, member, said, wait)
    objection, taken = _objection(store, member, said, wait, is_first)
    if taken:
        store.set(f"taken/{store.add('taken', 1)}", json.dumps({"rank": member.rank, "host": member.host, **taken}))
    if objection is not None:
        store.set(f"objection/{store.add('objections', 1)}", json.dumps(objection))
    if store.add("arrived", 1) == member.size or objection is not None:
        store.set("call", "")
    wait(lambda: store.check(["verdict"]), lambda: "all other ranks to join")
    verdict = json.loads(store.get("verdict"))
    store.add("left", 1)
    _raise(verdict)
    return Agreed({name: found[0] for name, found in taken.items()})


def digest(facts: Facts) -> str:
    """Return a hash of the values."""
    values = {name: fact.value for name, fact in facts.items()}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def compare(theirs: Facts, ours: Facts) -> tuple[dict[str, tuple[object, object]], dict[str, tuple[object, object]]]:
    """Return name -> (rank 0's value, ours), first of facts that must not differ, then of those that rank 0 decides."""
    refused: dict[str, tuple[object, object]] = {}
    taken: dict[str, tuple[object, object]] = {}
    absent = Fact(None)
    for name in dict.fromkeys([*theirs, *ours]):
        first, here = theirs.get(name, absent), ours.get(name, absent)
        if not _same(first.value, here.value):
            is_written_alike = first.source is not None and _same(first.source, here.source)
            (taken if is_written_alike else refused)[name] = (first.value, here.value)
    return refused, taken


def _same(first: object, other: object) -> bool:
    """Compare as text: 1 is not true, and NaN equals itself."""
    return _text(first) == _text(other)


def _text(value: object) -> str:
    return json.dumps(value, default=lambda choice: choice.value, sort_keys=True)


def _objection(
    store: Store, member: Member, said: Facts | Refusal, wait: Wait, is_first: bool
) -> tuple[dict[str, Any] | None, dict[str, tuple[object, object]]]:
    """Return this rank's objection to the run, if it has one, and the values that it takes from rank 0."""
    by: dict[str, Any] = {"rank": member.rank, "host": member.host}
    if not is_first:
        # The first process of a rank writes who it is after it took the seat.
        wait(lambda: store.check([f"member/{member.rank}"]), lambda: f"the other rank {member.rank}")
        other = json.loads(store.get(f"member/{member.rank}"))
        return {**by, "seat": [*other, member.host, member.pid]}, {}
    if isinstance(said, Refusal):
        return {**by, "problems": [*said.problems], "hints": [*said.hints], "code": said.exit_code}, {}
    wait(lambda: store.check(["digest"]), lambda: "rank 0 to say what it trains")
    if store.get("digest").decode() in ("", digest(said)):
        return None, {}
    refused, taken = compare(_facts(store.get("facts")), said)
    return ({**by, "differs": refused} if refused else None), taken


def _facts(text: bytes) -> Facts:
    return {name: Fact(value, source) for name, (value, source) in json.loads(text).items()}


def _judge(store: Store, member: Member, said: Facts | Refusal, wait: Wait) -> Agreed:
    if isinstance(said, Refusal):
        verdict: dict[str, Any] = {"problems": [*said.problems], "hints": [*said.hints], "code": said.exit_code}
        store.set("digest", "")
        store.add("arrived", 1)
    else:
        store.set("facts", json.dumps({name: [fact.value, fact.source] for name, fact in said.items()}))
        store.set("digest", digest(said))
        if store.add("arrived", 1) == member.size:
            store.set("call", "")
        wait(lambda: store.check(["call"]), lambda: _missing(store, member.size))
        if store.add("objections", 0):
            _pause(lambda: store.add("arrived", 0) >= member.size, SETTLE_S)
        verdict = _verdict([*_read(store, "objection", store.add("objections", 0))], member)
    store.set("verdict", json.dumps(verdict))
    if verdict:
        # The store goes with this process. A rank that cannot take part does not know which others have come.
        everyone = member.size if isinstance(said, Refusal) else store.add("arrived", 0)
        _pause(lambda: store.add("left", 0) >= everyone - 1, HEARD_S)
    _raise(verdict)
    return Agreed(notes=_notes([*_read(store, "taken", store.add("taken", 0))]))


def _read(store: Store, kind: str, count: int) -> list[dict[str, Any]]:
    """Return the texts that ranks wrote; a number is drawn before its text is there."""
    keys = [f"{kind}/{index}" for index in range(1, min(count, _READ) + 1)]
    _pause(lambda: not keys or store.check(keys), SETTLE_S)
    return [json.loads(store.get(key)) for key in keys if store.check([key])]


def _pause(holds: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not holds() and time.monotonic() < end:
        time.sleep(POLL_S)


def _raise(verdict: Mapping[str, Any]) -> None:
    if verdict:
        raise DisagreementError(verdict["problems"], verdict["hints"], verdict["code"])


def _missing(store: Store, size: int) -> str:
    if store.check([f"member/{rank}" for rank in range(size)]):
        return "all ranks to say what they train"
    missing = [rank for rank in range(size) if not store.check([f"member/{rank}"])]
    return f"{_named(missing)} of {size} to join"


def _named(ranks: Sequence[int]) -> str:
    """Return `rank 3` or `ranks 1, 4-7`."""
    parts: list[str] = []
    ordered = sorted(set(ranks))
    start = 0
    for index, rank in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != rank + 1:
            first = ordered[start]
            parts.append(str(rank) if first == rank else f"{first}{'-' if rank > first + 1 else ', '}{rank}")
            start = index + 1
    shown = ", ".join(parts[:_LISTED]) + (" and more" if len(parts) > _LISTED else "")
    return f"rank{'s' * (len(ordered) > 1)} {shown}"


def _verdict(objections: Sequence[Mapping[str, Any]], judge: Member) -> dict[str, Any]:
    """Return nothing if all agree, otherwise the message for every rank."""
    if not objections:
        return {}
    for kind, tell in (("seat", _seat_taken), ("problems", _refused), ("differs", _differs)):
        found = [objection for objection in objections if kind in objection]
        if found:
            return tell(found, judge)
    raise AssertionError(f"an objection has a kind, unlike {objections[0]}")


def _seat_taken(objections: Sequence[Mapping[str, Any]], _: Member) -> dict[str, Any]:
    first = objections[0]
    host, pid, other_host, other_pid = first["seat"]
    return {
        "problems": [
            f"every rank must be one process, but two say that they are rank {first['rank']}: process {pid} on {host} "
            f"and process {other_pid} on {other_host}"
        ],
        "hints": [
            "give every process its own RANK (the node's number times the ranks of a node, plus LOCAL_RANK)",
            "if they are of two runs, give each run its own MASTER_PORT",
            _LEFT_OVER,
        ],
        "code": ConfigError.exit_code,
    }


def _refused(objections: Sequence[Mapping[str, Any]], _: Member) -> dict[str, Any]:
    first = min(objections, key=lambda objection: int(objection["rank"]))
    alike = [objection for objection in objections if objection["problems"] == first["problems"]]
    who = _who(alike)
    return {
        "problems": [f"{who}: {problem}" for problem in first["problems"]],
        "hints": first["hints"],
        "code": first["code"],
    }


def _who(objections: Sequence[Mapping[str, Any]]) -> str:
    hosts = dict.fromkeys(str(objection["host"]) for objection in objections)
    shown = ", ".join([*hosts][:_LISTED]) + (" and more" if len(hosts) > _LISTED else "")
    return f"{_named([int(objection['rank']) for objection in objections])} ({shown})"


def _differs(objections: Sequence[Mapping[str, Any]], judge: Member) -> dict[str, Any]:
    first = min(objections, key=lambda objection: int(objection["rank"]))
    differs: Mapping[str, Sequence[object]] = first["differs"]
    alike = [objection for objection in objections if objection["differs"] == differs]
    others = "" if len(alike) == len(objections) else f"; {len(objections) - len(alike)} more ranks differ as well"
    if len(differs) == 1:
        ((name, (theirs, ours)),) = differs.items()
        problem = (
            f"{name} must be the same on every rank, but is {_shown(theirs)} on {judge.name} and {_shown(ours)} on "
            f"{_who(alike)}{others}"
        )
    else:
        named = [f"{name} is {_shown(ours)}, not {_shown(theirs)}" for name, (theirs, ours) in differs.items()]
        more = f"; {len(named) - _LISTED} more" if len(named) > _LISTED else ""
        problem = (
            f"every rank must be started with the same settings, but {_who(alike)} is not with those of {judge.name}: "
            f"{'; '.join(named[:_LISTED])}{more}{others}"
        )
    hints = ["start every rank with the same command, files and installed packages"]
    return {"problems": [problem], "hints": hints, "code": ConfigError.exit_code}


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = text or "empty"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _notes(taken: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a line for each name that ranks took from rank 0."""
    names = dict.fromkeys(name for entry in taken for name in entry if name not in ("rank", "host"))
    lines = []
    for name in names:
        entries = [entry for entry in taken if name in entry]
        theirs, ours = entries[0][name]
        lines.append(f"{name} is rank 0's, {_shown(theirs)}: {_who(entries)} would have taken {_shown(ours)}")
    return tuple(lines)


def _late(store: Store, member: Member) -> LonelyError:
    host, pid = json.loads(store.get(f"member/{member.rank}"))
    return LonelyError(
        f"every rank must be one process, but rank {member.rank} of the run that meets here is process {pid} on {host} "
        f"already, and that run has begun; this is process {member.pid} on {member.host}",
        hints=["give every run its own MASTER_ADDR and MASTER_PORT, and every process its own RANK", _LEFT_OVER],
    )
