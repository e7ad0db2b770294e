"""The picture of a run in a few lines: step, loss, speed, memory of each stage. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.metrics.figures import number, short
from trainer.metrics.screen import WIDTH

_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 32
_GAP = "   "
_LEAST_BAR = 8
_HEAD = 8


@dataclass(frozen=True)
class LiveView:
    """The state of a run as it is drawn.

    A row of another version may lack any name; what is missing is left out.
    """

    step: int
    steps: int | None
    """Number of steps of the whole run; None: it is not known."""
    tail: str
    """Text behind the bar: the time that is left."""
    row: Mapping[str, float]
    """The last row; empty before the first one."""
    losses: Sequence[float]
    stages: int
    unit: str
    """Name of the thing that computes: rank or GPU."""
    nothing_yet: str = "the first step is under way"
    """Text in the place of the loss, before the first row."""

    def draw(self, width: int, is_unicode: bool, more: Mapping[str, Sequence[str]] | None = None) -> Table:
        """Return the lines: a bar, and a line for each fact.

        Args:
            width: columns of the terminal; at most 80 are used.
            is_unicode: true if more than ASCII can be shown.
            more: label -> texts of further lines, the most important text first.
        """
        width = min(WIDTH, width)
        view = Table.grid()
        view.width = width
        view.add_column(no_wrap=True, overflow="crop")
        view.add_row()
        view.add_row(self._progress(width))
        for label, texts in {**self.facts(width, is_unicode), **(more or {})}.items():
            line = Text(f"{label:<{_HEAD}}", style="dim")
            line.append(fitting(texts, width - _HEAD), style="not dim")
            view.add_row(line)
        return view

    def _progress(self, width: int) -> Table:
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(no_wrap=True, overflow="crop")
        if self.steps is None:
            line.add_row(fitting([f"step {self.step:,}", self.tail], width))
            return line
        head = f"step {self.step:,} of {self.steps:,}"
        line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="crop")
        bar_width = width - len(head) - len(self.tail) - 4
        if bar_width >= _LEAST_BAR:
            bar = ProgressBar(total=self.steps, completed=self.step, width=bar_width, pulse=False)
            line.add_row(head, bar, self.tail)
        else:
            line.add_row(fitting([head, self.tail], width))
        return line

    def facts(self, width: int, is_unicode: bool) -> dict[str, list[str]]:
        """Return label -> texts of each line, the most important first."""
        row = self.row
        if not row:
            return {"loss": [self.nothing_yet]}
        loss = [number(row["train/loss"], 4) if "train/loss" in row else "not finite: the batch was skipped"]
        if is_unicode:
            loss.append(sparks(self.losses, _SPARK_WIDTH))
        if "train/grad_norm" in row:
            loss.append(f"grad norm {number(row['train/grad_norm'], 3)}")
        facts = {"loss": loss}
        if speed := self._speed():
            facts["speed"] = speed
        if memory := self._memory(width):
            facts["memory"] = memory
        if all(name in row for name in _PLAN):
            facts["plan"] = [
                f"step {number(row['plan/step_ms_ratio'], 2)} x the predicted {number(row['plan/step_ms'], 0)} ms",
                f"memory {number(row['plan/peak_memory_ratio'], 2)} x {number(row['plan/peak_memory_gib'], 2)} GiB",
            ]
        return facts

    def _speed(self) -> list[str]:
        row, found = self.row, []
        if "perf/tokens_per_second" in row:
            found.append(f"{short(row['perf/tokens_per_second'])} tokens/s")
        if "perf/mfu" in row:
            found.append(f"MFU {100 * row['perf/mfu']:.1f}%")
        if "perf/tflops_per_gpu" in row:
            found.append(f"{number(row['perf/tflops_per_gpu'], 2)} TFLOP/s a {self.unit}")
        if "time/step_ms" in row:
            found.append(f"{number(row['time/step_ms'], 0)} ms a step")
        return found

    def _memory(self, width: int) -> list[str]:
        row = self.row
        names = [f"memory/stage{k}/peak_allocated_gib" for k in range(self.stages)]
        if self.stages == 1 or any(name not in row for name in names):
            whole = row.get("memory/peak_allocated_gib")
            return [] if whole is None else [f"fullest rank {number(whole, 1)} GiB"]
        peaks = [row[name] for name in names]
        each = [f"stage {k}: {number(peak, 1)}" for k, peak in enumerate(peaks)]
        if len(_GAP.join(each)) <= width - 2 * _HEAD:
            return [_GAP.join(each) + " GiB"]
        most, least = peaks.index(max(peaks)), peaks.index(min(peaks))
        return [f"{number(peaks[k], 1)} GiB in stage {k}" for k in (most, least)]


_PLAN = ("plan/step_ms", "plan/step_ms_ratio", "plan/peak_memory_gib", "plan/peak_memory_ratio")


def sparks(values: Sequence[float], width: int) -> str:
    """Return the course of the last values as at most `width` small bars; if there are more, each bar is a mean."""
    per_bar = -(-len(values) // width)
    groups = [values[start : start + per_bar] for start in range(0, len(values), per_bar or 1)]
    means = [sum(value / len(group) for value in group) for group in groups]
    if not means:
        return ""
    low, high = min(means), max(means)
    # A run that diverges may have losses whose difference is beyond all numbers.
    if not math.isfinite(high - low):
        return ""
    # A difference below all normal numbers has no reciprocal, so the quotient is taken of each.
    return "".join(_SPARKS[round((mean - low) / (high - low or 1.0) * (len(_SPARKS) - 1))] for mean in means)


def fitting(texts: Sequence[str], width: int) -> str:
    """Return as many texts as fit, the first in any case."""
    line = texts[0]
    for text in texts[1:]:
        if len(line) + len(_GAP) + len(text) <= width:
            line += _GAP + text
    return line
