"""The timeline of a step from the notes of its ranks: one clock, and the waits that are in messages. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trainer.profiling.measured_step import DATA, EXCHANGE, LOAD, RECEIVE, REDUCE, SEND, START, WAIT, Message, Span
from trainer.profiling.names import BACKWARD, FORWARD, OPTIMIZER

_KIND_OF = {
    "data": DATA,
    "pipeline": START,
    "forward": FORWARD,
    "backward": BACKWARD,
    "optimizer": OPTIMIZER,
    "LoadMicroBatch": LOAD,
    "ForwardPass": FORWARD,
    "BackwardPass": BACKWARD,
    "SendActivation": SEND,
    "SendGrad": SEND,
    "RecvActivation": RECEIVE,
    "RecvGrad": RECEIVE,
    "CommitP2P": EXCHANGE,
    "ReduceTiedGrads": REDUCE,
    "ReduceGrads": REDUCE,
    "OptimizerStep": OPTIMIZER,
}
"""Phases of `trainer.progress` and DeepSpeed's instructions -> kinds of spans."""
_MESSAGES: Mapping[str, Callable[[int, int], Message]] = {
    "SendActivation": lambda stage, number: Message(SEND, FORWARD, stage, number),
    "SendGrad": lambda stage, number: Message(SEND, BACKWARD, stage, number),
    "RecvActivation": lambda stage, number: Message(RECEIVE, FORWARD, stage - 1, number),
    "RecvGrad": lambda stage, number: Message(RECEIVE, BACKWARD, stage + 1, number),
}
_WITHOUT_STAGE = (DATA, START, REDUCE, OPTIMIZER, EXCHANGE)


class Note(NamedTuple):
    """The beginning of something that a rank does; it ends with the next note."""

    what: str
    """Name of a phase, or of an instruction of the pipeline."""
    micro_batch: int | None
    """Number, counted from 1."""
    half: int
    """Index among the rank's stages of the one that it is about."""
    begin_s: float
    """Time on the rank's clock, in seconds."""


@dataclass(frozen=True)
class RankNotes:
    """Notes of one rank for a step."""

    rank: int
    host: str
    stages: tuple[int, ...]
    """Stages of the rank; `Note.half` counts them."""
    notes: tuple[Note, ...]
    """The last one says only when the step was over."""
    clock: str
    """Name of the rank's clock: times of equal clocks can be compared. Empty: the clock cannot be named."""
    error_s: float = 0.0
    """Largest error of a time against the rank's clock."""


def spans_of(found: Sequence[RankNotes], offsets_s: Sequence[float]) -> tuple[Span, ...]:
    """Return the spans of all ranks in ms on one clock, which begins with the earliest rank's step.

    Args:
        found: the notes of each rank, at least one for each.
        offsets_s: the seconds by which each rank's clock is ahead of the common one.
    """
    begun = min(one.notes[0].begin_s - offset for one, offset in zip(found, offsets_s, strict=True))
    whole = [
        span
        for one, offset in zip(found, offsets_s, strict=True)
        for span in _of_rank(one, lambda seconds, offset=offset: 1000 * (seconds - offset - begun))  # type: ignore[misc]
    ]
    arrivals = {message: span.begin_ms for span in whole for message in span.messages}
    return tuple(part for span in whole for part in _divided(span, arrivals))


def _of_rank(found: RankNotes, to_ms: Callable[[float], float]) -> list[Span]:
    """Return what a rank did. Where messages only queue up, they belong to the exchange that lets them go."""
    queues = any(note.what == "CommitP2P" for note in found.notes)
    queued: list[Message] = []
    spans = []
    for note, after in zip(found.notes, found.notes[1:], strict=False):
        kind = _KIND_OF.get(note.what)
        if note.what == FORWARD and note.micro_batch is None:
            # The plain engine, before its first micro-batch.
            kind = START
        if kind is None:
            continue
        stage, number = found.stages[note.half], None if note.micro_batch is None else note.micro_batch - 1
        messages: tuple[Message, ...] = ()
        if note.what in _MESSAGES and number is not None:
            messages = (_MESSAGES[note.what](stage, number),)
            if queues:
                queued += messages
                continue
        if kind == EXCHANGE:
            if not queued:
                continue
            messages, queued = tuple(queued), []
        is_of_step = kind in _WITHOUT_STAGE
        span = Span(found.rank, kind, None if is_of_step else stage, None if is_of_step else number,
                    to_ms(note.begin_s), to_ms(after.begin_s), messages)  # fmt: skip
        spans.append(span)
    return spans


def _divided(span: Span, arrivals: Mapping[Message, float]) -> list[Span]:
    """Return a span of messages as the wait until all other ends were there, and the transfer."""
    others = [arrivals[message.other_end] for message in span.messages if message.other_end in arrivals]
    ready = min(max([span.begin_ms, *others]), span.end_ms)
    if ready <= span.begin_ms:
        return [span]
    return [span._replace(kind=WAIT, end_ms=ready), span._replace(begin_ms=ready)]
