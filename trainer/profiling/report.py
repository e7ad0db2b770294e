"""Results of the recorded ranks together: a mean over them, as a record and as one screen."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

from trainer.metrics.screen import TrainingConsole
from trainer.profiling.breakdown import Breakdown
from trainer.profiling.names import PARTS

_WIDTH = 80
_LINES = 24
_MOST_PARTS = 20
"""Largest number of lines for parts; real layouts have fewer."""
_OPERATORS = 10
"""Largest number of operators in the record."""
_BAR = 16


@dataclass(frozen=True)
class OperatorTime:
    """Time of an operator in one step, mean over the recorded ranks."""

    name: str
    milliseconds: float
    calls: float


@dataclass(frozen=True)
class ProfileSummary:
    """Division of a step's time; all times are means over the recorded steps."""

    first_step: int
    last_step: int
    device: str
    step_ms: float
    """Mean over the ranks."""
    parts_ms: Mapping[str, float]
    """Mean over the ranks; the sum is `step_ms`."""
    ranks: Mapping[int, Breakdown]
    operators: tuple[OperatorTime, ...]
    """The operators that take longest."""

    @property
    def is_blind(self) -> bool:
        """True if there is a device whose kernels were not seen, so that only the host's time could be divided."""
        return self.device != "cpu" and not all(found.of_device for found in self.ranks.values())


def summarise(first_step: int, last_step: int, device: str, ranks: Mapping[int, Breakdown]) -> ProfileSummary:
    """Return the means over the recorded ranks, of which there is at least one."""
    parts = [name for name in PARTS if any(found.parts.get(name) for found in ranks.values())]
    count = len(ranks)
    operators: dict[str, tuple[float, float]] = {}
    for found in ranks.values():
        for operator in found.operators:
            time, calls = operators.get(operator.name, (0.0, 0.0))
            time += _ms(operator.nanoseconds, found) / count
            operators[operator.name] = (time, calls + operator.calls / found.steps / count)
    largest = sorted(operators.items(), key=lambda item: -item[1][0])[:_OPERATORS]
    return ProfileSummary(
        first_step,
        last_step,
        device,
        step_ms=sum(_ms(found.nanoseconds, found) for found in ranks.values()) / count,
        parts_ms={
            name: sum(_ms(found.parts.get(name, 0), found) for found in ranks.values()) / count for name in parts
        },
        ranks=ranks,
        operators=tuple(OperatorTime(name, *numbers) for name, numbers in largest),
    )


def _ms(nanoseconds: int, found: Breakdown) -> float:
    return nanoseconds / found.steps / 1e6


def record(summary: ProfileSummary) -> dict[str, object]:
    """Return the summary for a JSON file."""
    return {
        "steps": [summary.first_step, summary.last_step],
        "device": summary.device,
        "divided": "device" if any(found.of_device for found in summary.ranks.values()) else "host",
        "step_ms": summary.step_ms,
        "parts_ms": dict(summary.parts_ms),
        "ranks": {
            str(rank): {
                "step_ms": _ms(found.nanoseconds, found),
                "parts_ms": {name: _ms(found.parts[name], found) for name in PARTS if found.parts.get(name)},
            }
            for rank, found in summary.ranks.items()
        },
        "operators": [
            {"name": operator.name, "ms": operator.milliseconds, "calls": operator.calls}
            for operator in summary.operators
        ],
    }


def screen(summary: ProfileSummary, where: str, unicode: bool) -> str:
    """Return the summary as text of at most 80 columns and 24 lines.

    Args:
        summary: the summary to show.
        where: the name of the folder with the traces, as shown.
        unicode: true if the reader sees more than ASCII.
    """
    buffer = io.StringIO()
    console = TrainingConsole(buffer, is_terminal=False, width=_WIDTH)
    ranks = list(summary.ranks)
    named = f"rank {ranks[0]}" if len(ranks) == 1 else f"{len(ranks)} ranks"
    steps = f"step {summary.first_step}" + f" to {summary.last_step}" * (summary.last_step > summary.first_step)
    console.print(f"profile of {steps}, mean over {named}, {summary.step_ms:.1f} ms a step, in {where}", soft_wrap=True)
    if summary.is_blind:
        console.print(f"the profiler saw no kernel on {summary.device}: this is the time of the host")
    console.print(_parts(summary, "█" if unicode else "#"))
    # Three titles, and the reader's prompt.
    room = _LINES - 4 - summary.is_blind - min(_MOST_PARTS, len(summary.parts_ms))
    operators = summary.operators[: max(0, min(_OPERATORS, room))]
    if operators:
        console.print(_operators(operators))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _parts(summary: ProfileSummary, block: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
    table.add_column("part of a step", no_wrap=True, width=23)
    for title in ("ms", "share"):
        table.add_column(title, justify="right", no_wrap=True, width=9)
    table.add_column("", no_wrap=True, width=_BAR)
    spreads = len(summary.ranks) > 1
    table.add_column("least to most" if spreads else "", no_wrap=True, width=19)
    for name, members in _lines(summary.parts_ms):
        value = sum(summary.parts_ms[member] for member in members)
        share = value / max(summary.step_ms, 1e-9)
        across = [sum(_ms(found.parts.get(m, 0), found) for m in members) for found in summary.ranks.values()]
        spread = f"{min(across):.1f} to {max(across):.1f}" if spreads else ""
        table.add_row(name, f"{value:.1f}", f"{share:.1%}", block * round(_BAR * share), spread)
    return table


def _lines(parts: Mapping[str, float]) -> list[tuple[str, list[str]]]:
    """Return (title, parts) of each line; if there are too many parts, the smallest share one line."""
    small = (
        sorted(parts, key=lambda name: parts[name])[: len(parts) - _MOST_PARTS + 1] if len(parts) > _MOST_PARTS else []
    )
    lines = [(name, [name]) for name in parts if name not in small]
    return [*lines, (f"{len(small)} smaller parts", small)] if small else lines


def _operators(operators: tuple[OperatorTime, ...]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
    table.add_column("largest operators", no_wrap=True, width=52, overflow="ellipsis")
    for title in ("ms", "calls"):
        table.add_column(title, justify="right", no_wrap=True, width=9)
    for operator in operators:
        name = operator.name if len(operator.name) <= 52 else f"{operator.name[:49]}..."
        table.add_row(name, f"{operator.milliseconds:.1f}", f"{operator.calls:.0f}")
    return table
