"""What a person sees while a run trains: a banner, a line a logged step, a progress bar, the loss curve."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from trainer.config.plan import RunPlan
from trainer.log import print_above_bar, silence, terminal
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.curve import loss_curve
from trainer.metrics.jsonl import METRICS_FILE
from trainer.metrics.sink import Row
from trainer.metrics.summary import SUMMARY_FILE

_HEADER_EVERY = 30
_WIDTH = 80


class TrainingConsole(Console):
    """A rich console that goes quiet when its reader goes away; rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True
        silence(cast(TextIO, self.file))

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            # The terminal is gone (EIO) or its file's disk full; rich knows of closed pipes only.
            self.on_broken_pipe()


def _console(stream: TextIO) -> TrainingConsole:
    width = _WIDTH
    if stream.isatty():
        # The terminal need not be this process's stdout, which is where rich would look.
        with suppress(OSError):
            width = os.get_terminal_size(stream.fileno()).columns or _WIDTH
    return TrainingConsole(file=stream, width=width, highlight=False)


class ConsoleSink:
    """Writes to a terminal, or plain lines to a pipe or file. At most 80 columns, none wrapped.

    A terminal that goes away (a closed pipe) silences the sink; it does not stop training.

    Args:
        plan: numbers of the run.
        run_dir: the run's folder.
        parameters: of the whole model, without padding.
        device_name: of this rank's device.
        wandb_note: what wandb will do, for the banner.
        console: where to write (default: the terminal).
    """

    def __init__(
        self,
        plan: RunPlan,
        run_dir: Path,
        parameters: int,
        device_name: str,
        wandb_note: str = "disabled",
        console: Console | None = None,
    ) -> None:
        self._plan, self._run_dir = plan, run_dir
        self._parameters, self._device_name, self._wandb_note = parameters, device_name, wandb_note
        self._console = console or _console(terminal())
        self._progress: Progress | None = None
        self._losses: list[tuple[int, float]] = []
        self._lines = 0
        self._skipped_steps = 0
        self._first_step = 1
        self._first_step_ended = 0.0

    def say(self, text: str) -> None:
        """Print one line above the progress bar, however long it is."""
        # Not wrapped: a path or a command in it must stay whole, so that it can be copied.
        self._console.print(escape(text), soft_wrap=True, highlight=False)

    def start(self, first_step: int) -> None:
        """Print the banner and, on a terminal, start the progress bar."""
        self._first_step = first_step
        self._console.print(self._banner())
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("eta {task.fields[eta]}"),
                console=self._console,
                transient=True,
                # What libraries print belongs where the rank's output goes, not above the bar.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._progress.add_task("train", total=self._plan.config.train.steps, completed=first_step - 1, eta="-")
            self._progress.start()
            print_above_bar(self.say)

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if step == self._first_step:
            self._first_step_ended = time.perf_counter()
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, eta=self._eta(step))

    def write(self, row: Row, report: StepReport) -> None:
        """Print the line of a logged step."""
        if math.isfinite(report.loss):
            self._losses.append((report.step, report.loss))
        cells = self._cells(row, report)
        if self._lines % _HEADER_EVERY == 0:
            self.say("".join(f"{name:>{width}}" for name, width, _ in cells))
        self._lines += 1
        self.say("".join(f"{text:>{width}}" for _, width, text in cells).rstrip())
        if report.skipped_steps > self._skipped_steps:
            self._skipped_steps = report.skipped_steps
            if report.loss_scale is not None:
                self.say(
                    f"fp16 overflow: {report.skipped_steps} steps skipped so far, loss scale {report.loss_scale:g}"
                )

    def end(self, end: RunEnd) -> None:
        """Stop the progress bar and print the loss curve and the last word."""
        if self._progress is not None:
            print_above_bar(None)
            self._progress.stop()
            self._progress = None
        unicode = "utf" in (self._console.encoding or "").lower()
        for line in loss_curve(self._losses, width=min(60, self._console.width - 12), unicode=unicode):
            self.say(line)
        if self._losses:
            (first, before), (last, after) = self._losses[0], self._losses[-1]
            self.say(f"loss {before:.4f} at step {first}, {after:.4f} at step {last}")
        what = f"{end.status} at step {end.step} after {_duration(end.wall_time_s)}"
        self.say(f"{what}; summary in {self._run_dir / SUMMARY_FILE}")

    def _cells(self, row: Row, report: StepReport) -> list[tuple[str, int, str]]:
        """Return (title, width, text) of each column; columns that this run never fills are not there."""
        cells = [
            ("step", 7, str(report.step)),
            ("loss", 9, _number(report.loss, 4)),
            ("grad", 9, _number(report.grad_norm, 3)),
            ("lr", 9, f"{report.learning_rate:.2e}"),
            ("tok/s", 7, _short(row["perf/tokens_per_second"])),
            ("TF/gpu", 8, _number(row["perf/tflops_per_gpu"], 2)),
        ]
        if "perf/mfu" in row:
            cells.append(("mfu", 6, f"{100 * row['perf/mfu']:.1f}%"))
        cells.append(("GiB", 7, _number(row["memory/peak_allocated_gib"], 1)))
        cells.append(("eta", 8, self._eta(report.step)))
        if self._plan.config.train.eval_every > 0:
            cells.append(("eval", 8, "" if report.eval_loss is None else _number(report.eval_loss, 3)))
        return cells

    def _eta(self, step: int) -> str:
        """Return the time that is left, from the pace since this attempt's first step, which is slower than others."""
        done = step - self._first_step
        if done < 1:
            return "-"
        left = self._plan.config.train.steps - step
        return _duration((time.perf_counter() - self._first_step_ended) * left / done)

    def _banner(self) -> Table:
        plan, config = self._plan, self._plan.config
        table = Table(title=f"Trident: {config.name}", title_justify="left", show_header=False, box=None, width=_WIDTH)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        layout = (
            f"pipeline {plan.pipeline_parallel_size} x tensor {plan.tensor_parallel_size} x data "
            f"{plan.data_parallel_size} = {plan.world_size} rank{'s' if plan.world_size > 1 else ''}"
        )
        batch = (
            f"{config.batch.global_batch_size} sequences x {config.model.seq_length} tokens = "
            f"{plan.tokens_per_step:,} tokens per step ({plan.num_micro_batches} micro-batches of "
            f"{config.batch.micro_batch_size})"
        )
        steps = f"{config.train.steps:,} = {config.train.steps * plan.tokens_per_step:,} tokens"
        if self._first_step > 1:
            steps += f", resuming at step {self._first_step:,}"
        rows = {
            "model": f"{config.model.name}, {self._parameters:,} parameters ({_short(self._parameters)})",
            "layout": layout + (", sequence parallel" if config.layout.sequence_parallel else ""),
            "zero": f"stage {config.zero.stage}, offload {config.zero.offload.value}",
            "device": f"{self._device_name}, {config.precision.dtype.value}",
            "batch": batch,
            "steps": steps,
            "metrics": str(self._run_dir / METRICS_FILE),
            "wandb": self._wandb_note,
        }
        for name, text in rows.items():
            table.add_row(name, escape(text))
        return table


def _number(value: float, digits: int) -> str:
    """Return a number in at most seven characters."""
    text = f"{value:.{digits}f}"
    vanishes = 0 < abs(value) < 10.0**-digits
    return f"{value:.1e}" if vanishes or len(text) > 7 else text


def _short(value: float) -> str:
    """Return a count in at most six characters, e.g. 12.3k."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if 0.9995 * size <= value < 999.5 * size:
            return f"{value / size:#.3g}".rstrip(".") + unit
    return f"{value:.3g}" if value < 1000 else f"{value:.0e}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    if hours >= 100:
        return f"{hours // 24}d{hours % 24}h"
    if hours:
        return f"{hours}h{rest // 60:02d}m"
    return f"{rest // 60}m{rest % 60:02d}s"
