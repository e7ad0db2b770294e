"""A run's console output as lines: what runs, one line for each logged step, the loss curve, and the last line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from trainer.config.plan import RunPlan
from trainer.log import conclude, say
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.curve import loss_curve
from trainer.metrics.figures import duration, number, short
from trainer.metrics.pace import Pace
from trainer.metrics.screen import WIDTH, TrainingConsole
from trainer.metrics.sink import Row, Sample, Sink
from trainer.run_paths import SAMPLES, SUMMARY

_HEADER_EVERY = 30
_MOST_TEXTS = 4
_TEXT_LINES = 4
_CURVE_WIDTH = 60


class ConsoleSink(Sink):
    """Writes lines to a terminal, pipe or file. At most 80 columns, none wrapped.

    A terminal that goes away (a closed pipe) silences the sink; it does not stop training.

    Args:
        plan: numbers of the run.
        run_dir: the run's folder.
        device_name: name of this rank's device.
        outputs: places where metrics go besides the run's folder, e.g. `wandb` with its mode.
        console: the console to write to.
        notes: lines of other sinks to print before the last line; they add to it until then.
    """

    def __init__(
        self,
        plan: RunPlan,
        run_dir: Path,
        device_name: str,
        outputs: Mapping[str, str],
        console: TrainingConsole,
        notes: Sequence[str] = (),
    ) -> None:
        self._plan, self._run_dir, self._device_name, self._outputs = plan, run_dir, device_name, outputs
        self._console = console
        self._notes = notes
        config = plan.config
        self._name, self._train = config.name, config.train
        self._pace = Pace(self._train.steps)
        self._losses: list[tuple[int, float]] = []
        self._row: Row = {}
        self._lines = 0
        self._skipped: list[tuple[int, int]] = [(0, 0)]
        """Step of a report, and how many steps were skipped until then; the latest last."""

    def say(self, text: str) -> None:
        """Print one line, however long it is, above the live view."""
        # Not wrapped: a path or a command in it must stay whole, so that it can be copied.
        self._console.print(escape(text), soft_wrap=True, highlight=False)

    def start(self, first_step: int) -> None:
        """Print what runs where."""
        self._pace.start(first_step)
        self._console.print(self._banner(first_step))

    def rewind(self, step: int) -> None:
        """Forget what later steps were; the lines that were printed stay."""
        self._pace.start(step + 1)
        self._losses = [(at, loss) for at, loss in self._losses if at <= step]
        self._skipped = [(at, count) for at, count in self._skipped if at <= step] or [(0, 0)]

    def advance(self, step: int) -> None:
        """Note the step."""
        self._pace.advance(step)

    def write(self, row: Row, report: StepReport) -> None:
        """Print the line of a logged step."""
        if math.isfinite(report.loss):
            self._losses.append((report.step, report.loss))
        self._row = row
        self._step_line(row, report)
        if report.skipped_steps > self._skipped[-1][1]:
            self._skipped.append((report.step, report.skipped_steps))
            if report.loss_scale is not None:
                self.say(
                    f"fp16 overflow: {report.skipped_steps} steps skipped so far, loss scale {report.loss_scale:g}"
                )

    def show(self, samples: Sequence[Sample]) -> None:
        """Print the beginning of each text."""
        self.say(f"the model writes at step {samples[0].step}:")
        for index, sample in enumerate(samples[:_MOST_TEXTS], start=1):
            for place, line in enumerate(_shown(f"{sample.prompt}{sample.text}", self._console)):
                self.say(f"{'' if place else index:>3} | {line}")
        if len(samples) > _MOST_TEXTS:
            self.say(f"    and {len(samples) - _MOST_TEXTS} more in {SAMPLES}")

    def end(self, end: RunEnd) -> None:
        """Print the loss curve and the last line."""
        width = min(_CURVE_WIDTH, self._console.width - 12)
        curve = loss_curve(self._losses, width=width, unicode=self._console.is_unicode)
        for line in ["", *curve] if curve else []:
            self.say(line)
        if self._losses:
            (first, before), (last, after) = self._losses[0], self._losses[-1]
            self.say(f"loss {before:.4f} at step {first}, {after:.4f} at step {last}")
        if told := beside_the_plan(self._row):
            self.say(told)
        _tell(self._notes, end, self._run_dir)

    def _step_line(self, row: Row, report: StepReport) -> None:
        cells = self._cells(row, report)
        if self._lines % _HEADER_EVERY == 0:
            self.say("".join(f"{name:>{width}}" for name, width, _ in cells))
        self._lines += 1
        self.say("".join(f"{text:>{width}}" for _, width, text in cells).rstrip())

    def _cells(self, row: Row, report: StepReport) -> list[tuple[str, int, str]]:
        """Return (title, width, text) of each column; columns that this run never fills are left out."""
        cells = [
            ("step", 7, str(report.step)),
            ("loss", 9, number(report.loss, 4)),
            ("grad", 9, number(report.grad_norm, 3)),
            ("lr", 9, f"{report.learning_rate:.2e}"),
            ("tok/s", 7, short(row["perf/tokens_per_second"])),
            ("TF/gpu", 8, number(row["perf/tflops_per_gpu"], 2)),
        ]
        if "perf/mfu" in row:
            cells.append(("mfu", 6, f"{100 * row['perf/mfu']:.1f}%"))
        cells.append(("GiB", 7, number(row["memory/peak_allocated_gib"], 1)))
        cells.append(("eta", 8, self._pace.left()))
        if self._train.eval_every > 0:
            cells.append(("eval", 8, "" if report.eval_loss is None else number(report.eval_loss, 3)))
        return cells

    def _banner(self, first_step: int) -> Table:
        train, dtype = self._train, self._plan.dtype
        table = Table.grid(padding=(0, 2, 0, 0))
        # In line with the description of the plan, which stands above.
        table.add_column(style="bold", no_wrap=True, width=6)
        table.add_column(overflow="fold", width=max(8, min(WIDTH, self._console.width) - 10))
        steps = f"{train.steps:,} = {short(self._plan.run_tokens)} tokens"
        if first_step > 1:
            steps += f", resuming at step {first_step:,}"
        rows = {"run": self._name, "device": f"{self._device_name}, {dtype.value}", "steps": steps}
        rows |= {"folder": str(self._run_dir), **self._outputs}
        for name, text in rows.items():
            table.add_row(name, escape(text))
        return table


def beside_the_plan(row: Row) -> str:
    """Return the line that holds a row against the prediction; empty if nothing was predicted."""
    if "plan/step_ms" not in row:
        return ""
    return (
        f"a step took {number(row['plan/step_ms_ratio'], 2)} x the predicted {number(row['plan/step_ms'], 0)} ms, "
        f"memory {number(row['plan/peak_memory_ratio'], 2)} x {number(row['plan/peak_memory_gib'], 2)} GiB"
    )


class QuietSink(Sink):
    """Prints only the last line; the notes go to the rank's log."""

    def __init__(self, run_dir: Path, notes: Sequence[str] = ()) -> None:
        self._run_dir = run_dir
        self._notes = notes

    def end(self, end: RunEnd) -> None:
        """Print how the run ended."""
        _tell(self._notes, end, self._run_dir)


def _tell(notes: Sequence[str], end: RunEnd, run_dir: Path) -> None:
    for note in notes:
        say(note)
    conclude(f"{end.status} at step {end.step} after {duration(end.wall_time_s)}; summary in {run_dir / SUMMARY}")


def _shown(text: str, console: TrainingConsole) -> list[str]:
    """Return the first lines of a text that a model wrote, made safe: it may hold control codes of a terminal."""
    room = min(WIDTH, console.width) - 6
    lines = text.expandtabs(4).split("\n")
    clean = ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
    if not console.is_unicode:
        clean = [line.encode("ascii", errors="replace").decode() for line in clean]
    cut = [line if len(line) <= room else f"{line[: room - 3]}..." for line in clean]
    return cut if len(cut) <= _TEXT_LINES else [*cut[: _TEXT_LINES - 1], "..."]
