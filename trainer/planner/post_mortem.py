"""The account of a rank that ran out of memory: what it held and was predicted to, and a change that fits. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trainer.config.plan import RunPlan
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.prediction import GIB, Prediction, StageMemory
from trainer.progress import BEFORE_THE_LOOP, Progress

CheapestFit = Callable[[RunPlan, Cluster], Sequence[str]]
"""Returns the overrides of the cheapest change with which a plan fits on a cluster; none if there is no such change."""
MIB = 1 << 20
_LEAST_SAVED = 0.02
"""Share of the predicted memory that a change must save at the least: the run did not fit as it was."""
_COUNTED = {
    "weights": "weights",
    "gradients": "gradients",
    "master": "master weights (fp32)",
    "moments": "moments of the optimizer",
}
"""Purposes whose tensors a rank can count, and their names on the screen."""
_REST = {
    "activations": "activations that wait for backward",
    "working": "activations of the layer at work",
    "loss": "head and loss",
    "buckets": "buffers of collectives",
    "gathered": "gathered weights of ZeRO-3",
}
"""Purposes that are only known as what remains."""
_MOMENTS = {
    "start": "before the first step",
    "data": "at its data",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "pipeline": "in the pipeline",
    "optimizer": "in the optimizer step",
    "evaluate": "in an evaluation",
    "hooks": "after the step, in saving or logging",
    "end": "at the end of the run",
}


@dataclass(frozen=True)
class Held:
    """Bytes of one rank when memory ran out, counted as a prediction counts them: on CPUs without the libraries."""

    total: int
    """The most that it has held."""
    limit: int | None = None
    """The most that it could get; None: not known."""
    refused: int = 0
    """Bytes that it asked for and did not get; 0: not known."""
    overhead: int = 0
    """Bytes that no tensor holds: context of the device, other processes on it."""
    tensors: tuple[tuple[str, int], ...] = ()
    """Purpose (weights, gradients, master, moments) and bytes, of the purposes whose tensors were counted."""


@dataclass(frozen=True)
class PostMortem:
    """The account of a rank that ran out of memory."""

    lines: tuple[str, ...]
    """A table for a person."""
    overrides: tuple[str, ...] = ()
    """The cheapest change that is predicted to fit; empty: none is known."""

    @property
    def hints(self) -> list[str]:
        """Return the change as a hint, if there is one."""
        if not self.overrides:
            return []
        return [f"this change is predicted to fit: {' '.join(self.overrides)} (added to the same command)"]


@dataclass(frozen=True)
class Foreseen:
    """The prediction of a run, as far as there is one."""

    prediction: Prediction | None
    cluster: Cluster | None
    """The machines that it is for."""
    problem: str = ""
    """Reason why there is none, for a person."""


def post_mortem(
    plan: RunPlan,
    rank: int,
    moment: str,
    held: Held | None,
    foreseen: Foreseen,
    cheapest: CheapestFit,
    limit: int | None = None,
    is_on_host: bool = False,
) -> PostMortem:
    """Return the account of a rank that ran out of memory.

    Args:
        plan: numbers of the run.
        rank: the rank, counted over all machines.
        moment: what it was at, as `moment_of` says it.
        held: what it held; None if nobody could look, as after a kill.
        foreseen: the prediction of the run.
        cheapest: finds a change that fits.
        limit: bytes that the rank could get, if that is known without a look.
        is_on_host: true if memory of the host ran out beside a GPU: `held` is of the host then.
    """
    place = plan.mesh.coordinate(rank).stage
    who = f"rank {rank}" + (f" (pipeline rank {place})" if plan.pipeline_parallel_size > 1 else "")
    if foreseen.prediction is None or foreseen.cluster is None:
        why = f"  nothing was predicted: {foreseen.problem}" if foreseen.problem else "  nothing was predicted"
        return PostMortem((*table(who, moment, None, held), why))
    stage = foreseen.prediction.stages[place]
    if is_on_host and held is not None:
        return _on_host(plan, (who, moment), held, stage.host, foreseen, cheapest)
    lines = table(who, moment, stage, held)
    # Another rank may need more than the one that ran out first.
    peak, error = max(stage.peak, foreseen.prediction.peak), foreseen.prediction.confidence.memory
    usable = usable_bytes(peak, error, held, limit)
    return PostMortem(lines, cheapest_change(plan, foreseen.cluster, usable, cheapest))


def _on_host(
    plan: RunPlan, at: tuple[str, str], held: Held, predicted: int, foreseen: Foreseen, cheapest: CheapestFit
) -> PostMortem:
    """Return the account of a rank on a GPU that was refused memory of the host: offload alone is predicted there."""
    who, moment = at
    line = (
        f"{who} ran out of the host's memory {moment}; it has taken {held.total / GIB:,.2f} GiB since its engine began "
        f"to be built, and offload was predicted to take {predicted / GIB:,.2f} GiB"
    )
    found, cluster = foreseen.prediction, foreseen.cluster
    if not predicted or found is None or cluster is None:
        return PostMortem((line,))
    usable = found.ranks_per_node * usable_bytes(predicted, found.confidence.memory, held)
    source = "what the ranks of a machine could get when its memory ran out"
    return PostMortem(
        (line,), tuple(cheapest(plan, replace(cluster, host_memory_bytes=Constant(float(usable), source))))
    )


def moment_of(progress: Progress) -> str:
    """Return in words what a rank is at, e.g. `in the backward pass of step 3`."""
    if progress.phase in BEFORE_THE_LOOP:
        on = f" ({progress.instruction})" if progress.instruction else ""
        return f"while {progress.phase}{on}"
    instruction = progress.instruction or ""
    kind = "pipeline"
    for begin, phase in (("Forward", "forward"), ("Backward", "backward"), ("Optimizer", "optimizer")):
        if instruction.startswith(begin):
            kind = phase
    words = _MOMENTS[kind if progress.phase == "pipeline" else progress.phase]
    return f"{words} of step {progress.step}" if progress.step and progress.phase != "end" else words


def table(who: str, moment: str, predicted: StageMemory | None, held: Held | None) -> tuple[str, ...]:
    """Return lines with what was predicted and what was measured, by purpose.

    Args:
        who: the rank and its place, as `rank 1 (pipeline rank 0)`.
        moment: what it was at, as `moment_of` says it.
        predicted: memory of its pipeline rank; None if nothing could be predicted.
        held: what it held; None if nobody could look, as after a kill.
    """
    largest = max(held.total if held else 0, predicted.peak if predicted else 0)
    unit, name = (GIB, "GiB") if largest >= GIB else (MIB, "MiB")
    if not largest:
        return (f"{who} ran out of memory {moment}",)
    what = "it held" if held else "it was predicted to hold"
    lines = [f"{who} ran out of memory {moment}; {what}, in {name}:", f"  {'':<36}{'predicted':>11}{'measured':>11}"]

    def line(text: str, foreseen: int | None, found: int | None) -> None:
        if foreseen or found:
            cells = ["-" if value is None else f"{value / unit:,.2f}" for value in (foreseen, found)]
            lines.append(f"  {text:<36}{cells[0]:>11}{cells[1]:>11}")

    purposes = predicted.by_purpose if predicted else {}
    counted = dict(held.tensors) if held else {}
    for purpose, text in _COUNTED.items():
        line(text, purposes.get(purpose) if predicted else None, counted.get(purpose))
    rest = sum(purposes[purpose] for purpose in _REST) if predicted else None
    remaining = max(0, held.total - held.overhead - sum(counted.values())) if held else None
    line("all other tensors and fragments" if predicted else "everything else", rest, remaining)
    for purpose, text in _REST.items():
        line(f"  {text}", purposes.get(purpose) if predicted else None, None)
    line("context and libraries", predicted.overhead if predicted else None, held.overhead if held else None)
    line("fullest moment of backward", predicted.backward if predicted else None, None)
    if predicted and predicted.peak > predicted.backward:
        line("fullest moment of the start", predicted.init_peak, None)
        line("fullest moment of the optimizer step", predicted.step_peak, None)
    if held:
        line("the most that it has held", None, held.total)
        line("asked for besides, and refused", None, held.refused)
        line("the most that it could get", None, held.limit)
    return tuple(lines)


def usable_bytes(predicted: int, error: float, held: Held | None, limit: int | None = None) -> int:
    """Return the bytes that a change may be predicted to need, so that it fits where a run did not.

    There must be room for the prediction's error. A run that needed more than it could get shows how large that is: if
    it asked for N bytes and was predicted to need P < N, what another is predicted to need may be P / N of what there
    is. It must be less than P in any case.

    Args:
        predicted: bytes that the run was predicted to need.
        error: relative error that the prediction has to be expected to have.
        held: what it held; None if nobody could look.
        limit: bytes that it could get, if that is known otherwise.
    """
    most = round((1 - _LEAST_SAVED) * predicted)
    if held is not None:
        there = held.limit or held.total
        needed = max(there, held.total + held.refused)
        return min(most, round(there * min(1 / (1 + error), predicted / needed)))
    return most if limit is None else min(most, round(limit / (1 + error)))


def cheapest_change(plan: RunPlan, cluster: Cluster, usable: int, cheapest: CheapestFit) -> tuple[str, ...]:
    """Return the overrides of the cheapest change with which a run needs no more than the usable bytes of a rank."""
    source = "what a rank could get when memory ran out, corrected by the prediction's error"
    return tuple(cheapest(plan, replace(cluster, memory_bytes=Constant(float(usable), source))))
