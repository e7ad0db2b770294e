"""The live view: the state of a run, redrawn at the foot of the terminal."""

from __future__ import annotations

from rich.live import Live
from rich.table import Table

from trainer.log import print_above_bar
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.console import ConsoleSink
from trainer.metrics.figures import number
from trainer.metrics.live_view import LiveView
from trainer.metrics.sink import Row

_REDRAWS_PER_SECOND = 4


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
        pace = self._pace
        view = LiveView(
            step=pace.step,
            steps=pace.steps,
            tail=f"eta {pace.left()}" if pace.step < pace.steps else "done",
            row=self._row,
            losses=[value for _, value in self._losses],
            stages=self._plan.pipeline_parallel_size,
            unit="rank" if self._device_name == "CPU" else "GPU",
        )
        return view.draw(self._console.width, self._console.is_unicode)
