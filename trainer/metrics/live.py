"""The live view: the state of a run, redrawn at the foot of the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.log import print_above_bar
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.console import ConsoleSink
from trainer.metrics.figures import number, short
from trainer.metrics.screen import WIDTH
from trainer.metrics.sink import Row

_REDRAWS_PER_SECOND = 4
_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 32
_GAP = "   "
_LEAST_BAR = 8


class LiveSink(ConsoleSink):
    """Shows step, loss, speed and memory of each stage in place; other lines are printed above it. Needs a terminal."""

    def start(self, first_step: int) -> None:
        """Print what runs where, and begin to draw."""
        super().start(first_step)
        self._live = Live(
            get_renderable=self._view,
            console=self._console,
            refresh_per_second=_REDRAWS_PER_SECOND,
            vertical_overflow="crop",
            # Output of libraries belongs where the rank's output goes.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        print_above_bar(self.say)

    def end(self, end: RunEnd) -> None:
        """Leave the last view in place, and print the loss curve and the last line."""
        if hasattr(self, "_live"):
            print_above_bar(None)
            self._live.stop()
        super().end(end)

    def _step_line(self, row: Row, report: StepReport) -> None:
        if report.eval_loss is not None:
            self.say(f"step {report.step}: eval loss {number(report.eval_loss, 4)}")

    def _view(self) -> Table:
        width = min(WIDTH, self._console.width)
        view = Table.grid()
        view.width = width
        view.add_column(no_wrap=True, overflow="crop")
        view.add_row()
        view.add_row(self._progress(width))
        for label, texts in self._facts().items():
            line = Text(f"{label:<8}", style="dim")
            line.append(_fitting(texts, width - 8), style="not dim")
            view.add_row(line)
        return view

    def _progress(self, width: int) -> Table:
        pace = self._pace
        head = f"step {pace.step:,} of {pace.steps:,}"
        tail = f"eta {pace.left()}" if pace.step < pace.steps else "done"
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(no_wrap=True, overflow="crop")
        line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="crop")
        bar_width = width - len(head) - len(tail) - 4
        if bar_width >= _LEAST_BAR:
            line.add_row(head, ProgressBar(total=pace.steps, completed=pace.step, width=bar_width, pulse=False), tail)
        else:
            line.add_row(_fitting([head, tail], width))
        return line

    def _facts(self) -> dict[str, list[str]]:
        """Return label -> texts of each line, the most important first."""
        row = self._row
        if not row:
            return {"loss": ["the first step is under way"]}
        loss = [number(row["train/loss"], 4) if "train/loss" in row else "not finite: the batch was skipped"]
        if self._console.is_unicode:
            loss.append(sparks([value for _, value in self._losses], _SPARK_WIDTH))
        if "train/grad_norm" in row:
            loss.append(f"grad norm {number(row['train/grad_norm'], 3)}")
        speed = [f"{short(row['perf/tokens_per_second'])} tokens/s"]
        if "perf/mfu" in row:
            speed.append(f"MFU {100 * row['perf/mfu']:.1f}%")
        speed.append(
            f"{number(row['perf/tflops_per_gpu'], 2)} TFLOP/s a {'rank' if self._device_name == 'CPU' else 'GPU'}"
        )
        speed.append(f"{number(row['time/step_ms'], 0)} ms a step")
        facts = {"loss": loss, "speed": speed, "memory": self._memory(row)}
        if "plan/step_ms" in row:
            facts["plan"] = [
                f"step {number(row['plan/step_ms_ratio'], 2)} x the predicted {number(row['plan/step_ms'], 0)} ms",
                f"memory {number(row['plan/peak_memory_ratio'], 2)} x {number(row['plan/peak_memory_gib'], 2)} GiB",
            ]
        return facts

    def _memory(self, row: Row) -> list[str]:
        stages = self._plan.pipeline_parallel_size
        names = [f"memory/stage{k}/peak_allocated_gib" for k in range(stages)]
        if stages == 1 or any(name not in row for name in names):
            return [f"fullest rank {number(row['memory/peak_allocated_gib'], 1)} GiB"]
        peaks = [row[name] for name in names]
        each = [f"stage {k}: {number(peak, 1)}" for k, peak in enumerate(peaks)]
        if len(_GAP.join(each)) <= min(WIDTH, self._console.width) - 16:
            return [_GAP.join(each) + " GiB"]
        most, least = peaks.index(max(peaks)), peaks.index(min(peaks))
        return [f"{number(peaks[k], 1)} GiB in stage {k}" for k in (most, least)]


def sparks(values: Sequence[float], width: int) -> str:
    """Return the course of the last values as at most `width` small bars; if there are more, each bar is a mean."""
    per_bar = -(-len(values) // width)
    groups = [values[start : start + per_bar] for start in range(0, len(values), per_bar or 1)]
    means = [sum(group) / len(group) for group in groups]
    if not means:
        return ""
    low, high = min(means), max(means)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((mean - low) * scale)] for mean in means)


def _fitting(texts: Sequence[str], width: int) -> str:
    """Return as many texts as fit, the first in any case."""
    line = texts[0]
    for text in texts[1:]:
        if len(line) + len(_GAP) + len(text) <= width:
            line += _GAP + text
    return line
