"""Curves as values: what is drawn, what is said of it to who does not see it, and the numbers behind it."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from trainer.reporting.number_words import counted, exact
from trainer.reporting.thinning import Steps, Thinned, Values, evenly, thin

TABLE_ROWS = 16
"""Rows of the table behind a chart."""


class Kind(Enum):
    """Way in which a line is drawn."""

    line = "line"
    points = "points"
    """Few values, each with a mark: evaluations."""
    dash = "dash"
    """Not measured: predicted."""
    left_out = "left_out"
    """Measured, but not part of the run any more."""
    band = "band"
    """An area between `lows` and `highs`, with `values` in the middle."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    run: int
    """Number of the run among those of the page."""
    drawn: Thinned
    kind: Kind = Kind.line
    tint: int = 0
    """Number of its colour."""
    colour: str = ""
    """Name of a colour of the page that replaces the numbered one."""
    dash: int = 0
    """Number of its dashes, which differ where colours come again."""
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()

    def data(self) -> dict[str, Any]:
        """Return what the page's script draws."""
        drawn = self.drawn
        found: dict[str, Any] = {
            "name": self.name,
            "run": self.run,
            "kind": self.kind.value,
            "tint": self.tint,
            "dash": self.dash,
            "steps": drawn.steps,
            "values": drawn.values,
        }
        if self.colour:
            found["colour"] = self.colour
        if self.kind is Kind.band:
            found |= {"lows": list(self.lows), "highs": list(self.highs)}
        if drawn.means is not None:
            found |= {"mean_steps": drawn.mean_steps, "means": drawn.means}
        return found

    def words(self) -> str:
        """Return the line in a sentence."""
        steps, values = self.drawn.steps, self.drawn.values
        if len(values) == 1:
            return f"{self.name}: {exact(values[0])} at step {steps[0]:,}."
        low, high = values.index(min(values)), values.index(max(values))
        return (
            f"{self.name}: from {exact(values[0])} at step {steps[0]:,} to {exact(values[-1])} at step {steps[-1]:,}, "
            f"lowest {exact(values[low])} at step {steps[low]:,}, highest {exact(values[high])} at step "
            f"{steps[high]:,}."
        )


@dataclass(frozen=True)
class Chart:
    """A chart of lines over the steps of one run or several."""

    key: str
    title: str
    unit: str
    lines: Sequence[Line]
    is_wide: bool = False
    is_smooth: bool = False
    """True if the page's smoothing applies: values scatter from step to step."""
    is_log: bool = False
    from_zero: bool = False
    limit: float | None = None
    """Value at which a line is drawn across."""
    limit_name: str = ""
    notes: Sequence[str] = field(default_factory=tuple)

    def data(self) -> dict[str, Any]:
        """Return what the page's script draws."""
        return {
            "key": self.key,
            "smooth": self.is_smooth,
            "log": self.is_log,
            "from_zero": self.from_zero,
            "limit": self.limit,
            "limit_name": self.limit_name,
            "lines": [line.data() for line in self.lines],
        }

    @property
    def alt(self) -> str:
        """The chart in words, for who does not see it."""
        told = " ".join(line.words() for line in self.lines[:6])
        more = f" And {counted(len(self.lines) - 6, 'more line')}." if len(self.lines) > 6 else ""
        return f"Line chart of {self.title.lower()} ({self.unit}) over steps. {told}{more}"

    @property
    def all_notes(self) -> list[str]:
        """Sentences below the chart: those given, and the values that are not drawn."""
        notes = list(self.notes)
        lost = sum(line.drawn.not_finite for line in self.lines)
        if lost:
            notes.append(f"{counted(lost, 'value')} not finite and so not drawn.")
        return notes

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the head and some rows of the numbers behind the chart, evenly spaced."""
        shown = [line for line in self.lines if line.drawn.steps][:12]
        steps = sorted({step for line in shown for step in line.drawn.steps})
        rows = []
        for place in evenly(len(steps), TABLE_ROWS):
            rows.append([f"{steps[place]:,}", *(_at(line, steps[place]) for line in shown)])
        return ["step", *(line.name for line in shown)], rows


def _at(line: Line, step: int) -> str:
    """Return the value of a line at a step, or the one before it; empty outside of the line."""
    steps = line.drawn.steps
    if not steps[0] <= step <= steps[-1]:
        return ""
    place = bisect.bisect_right(steps, step) - 1
    if line.kind is Kind.band:
        return f"{exact(line.lows[place])} to {exact(line.highs[place])}"
    return exact(line.drawn.values[place])


@dataclass(frozen=True)
class Style:
    """Look of a line that is made of a series."""

    kind: Kind = Kind.line
    tint: int = 0
    colour: str = ""
    dash: int = 0


PLAIN = Style()


def line_of(name: str, run: int, series: tuple[Steps, Values], points: int, style: Style = PLAIN) -> Line | None:
    """Return a series as a line, or None if it has no finite value."""
    drawn = thin(*series, points)
    if not drawn.steps:
        return None
    return Line(name, run, drawn, style.kind, style.tint, style.colour, style.dash)


def thinning_note(charts: Sequence[Chart]) -> list[str]:
    """Return the sentence that says how many rows the points of long lines stand for; none where all are drawn."""
    most = max((line.drawn.stretch for chart in charts for line in chart.lines), default=1)
    if most == 1:
        return []
    kept = "the lowest and the highest value are kept, and smoothed lines are of means"
    return [f"Of long curves, two points stand for up to {counted(most, 'row')}: {kept}."]


def as_data(charts: Sequence[Chart]) -> Mapping[str, Any]:
    """Return charts by their keys, for the page's script."""
    return {chart.key: chart.data() for chart in charts}
