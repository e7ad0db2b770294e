"""Passes of a real pipeline, as every rank noted them, against the simulated order. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from trainer.config.schema import PipelineSchedule
from trainer.planner.orders import trained_order
from trainer.planner.timeline import Costs, simulate

Note = Sequence[Any]
"""A pass: `forward` or `backward`, its stage, begin and end in seconds."""


@dataclass(frozen=True)
class Bubble:
    """Waiting in a step, measured and simulated with the measured times of the passes. Medians over steps."""

    micro_batches: int
    forward_ms: tuple[float, ...]
    """Measured forward pass of each stage."""
    backward_ms: tuple[float, ...]
    message_ms: float
    """Measured time between the end of a pass and the begin of the pass that was waiting for its result."""
    step_ms: float
    """Measured time from the first pass of all ranks to their last."""
    simulated_step_ms: float
    idle: float
    """Measured share of that time in which a rank computes nothing, mean over ranks: 0 to 1."""
    least_idle: float
    most_idle: float
    """The smallest and the largest of all steps."""
    simulated_idle: float
    bubble: float
    """Measured bubble as the zero-bubble paper counts it: of the busiest rank, from its first pass to its last."""
    simulated_bubble: float
    logged: float
    """What Trident logs as pipeline/bubble_fraction: of the whole step, data and optimizer included."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def bubble_of(
    kind: PipelineSchedule, pp: int, micro_batches: int, steps: Sequence[Sequence[Mapping[str, Any]]]
) -> Bubble:
    """Return what some steps of a pipeline show.

    Args:
        kind: its schedule.
        pp: its ranks.
        micro_batches: those of a step.
        steps: for each step every rank's `passes`, and `idle` as Trident logs it.
    """
    notes = [[rank["passes"] for rank in step] for step in steps]
    order = trained_order(kind, pp, micro_batches)
    forward = _lengths(notes, "forward", order.stages)
    backward = _lengths(notes, "backward", order.stages)
    message = median(_hand_over(step, stage) for step in notes for stage in range(pp - 1))
    played = simulate(order, Costs(forward, backward, [message] * (order.stages - 1)))
    idle = [_idle(step) for step in notes]
    return Bubble(
        micro_batches=micro_batches,
        forward_ms=tuple(round(1e3 * one, 3) for one in forward),
        backward_ms=tuple(round(1e3 * one, 3) for one in backward),
        message_ms=round(1e3 * message, 3),
        step_ms=round(1e3 * median(map(_whole, notes)), 2),
        simulated_step_ms=round(1e3 * played.makespan, 2),
        idle=round(median(idle), 4),
        least_idle=round(min(idle), 4),
        most_idle=round(max(idle), 4),
        simulated_idle=round(played.idle_fraction, 4),
        bubble=round(median(map(_bubble, notes)), 4),
        simulated_bubble=round(played.bubble, 4),
        logged=round(median(sum(rank["idle"] for rank in step) / pp for step in steps), 4),
    )


def _lengths(steps: Sequence[Sequence[Sequence[Note]]], work: str, stages: int) -> list[float]:
    """Return the median seconds of a pass of each stage."""
    found: list[list[float]] = [[] for _ in range(stages)]
    for step in steps:
        for what, stage, begin, end in (note for rank in step for note in rank):
            if what == work:
                found[stage].append(end - begin)
    return [median(one) for one in found]


def _hand_over(step: Sequence[Sequence[Note]], stage: int) -> float:
    """Return the seconds from the end of a stage's first forward pass to the begin of the next stage's.

    There both ends do nothing else: the pipeline is only being filled.
    """
    ended = min(end for rank in step for what, at, _, end in rank if what == "forward" and at == stage)
    begun = min(begin for rank in step for what, at, begin, _ in rank if what == "forward" and at == stage + 1)
    return float(begun - ended)


def _whole(step: Sequence[Sequence[Note]]) -> float:
    return float(max(rank[-1][3] for rank in step) - min(rank[0][2] for rank in step))


def _busy(step: Sequence[Sequence[Note]]) -> list[float]:
    return [sum(end - begin for _, _, begin, end in rank) for rank in step]


def _idle(step: Sequence[Sequence[Note]]) -> float:
    return 1 - sum(_busy(step)) / (len(step) * _whole(step))


def _bubble(step: Sequence[Sequence[Note]]) -> float:
    cost = max(rank[-1][3] - rank[0][2] for rank in step)
    return float((cost - max(_busy(step))) / cost)
