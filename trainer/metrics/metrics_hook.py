"""The metrics hook of the loop: measures on all ranks, makes one row, hands it to the sinks of the reporting rank."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.log import warn
from trainer.loop.events import Hook, RunEnd, SkippedBatch, StepReport
from trainer.metrics.across import AcrossMeter
from trainer.metrics.comparison import Comparison
from trainer.metrics.row import make_row
from trainer.metrics.sink import Sample, Sink
from trainer.metrics.straggler import StragglerWatch
from trainer.metrics.throughput import ThroughputMeter


class MetricsHook(Hook):
    """A hook of the loop. Lives on every rank; sinks exist on the reporting rank only.

    Args:
        throughput: turns step time into rates.
        across: measures memory and nodes; its collective is why this hook must exist on every rank.
        stragglers: names slow ranks.
        sinks: the sinks that take the rows, in order; empty on all ranks but the reporting one.
        comparison: holds the run against its prediction; None if there is none.
    """

    def __init__(
        self,
        throughput: ThroughputMeter,
        across: AcrossMeter,
        stragglers: StragglerWatch,
        sinks: Sequence[Sink],
        comparison: Comparison | None = None,
    ) -> None:
        self._throughput = throughput
        self._across = across
        self._stragglers = stragglers
        self._sinks = tuple(sinks)
        self._comparison = comparison

    def on_start(self, first_step: int) -> None:
        """Start the sinks. Local."""
        for sink in self._sinks:
            sink.start(first_step)

    def on_step(self, step: int) -> None:
        """Sample memory and move the view on. Local, no device sync."""
        self._across.sample()
        for sink in self._sinks:
            sink.advance(step)

    def on_report(self, report: StepReport) -> None:
        """Measure and hand out the row. Collective over the control group of the meter."""
        self.on_step(report.step)
        across = self._across.measure(report)
        if not self._sinks:
            return
        slowest, stragglers = self._stragglers.look(across.times, report.step_ms)
        for straggler in stragglers:
            warn(f"the others wait for rank {straggler} (step {report.step})")
        planned = None
        if self._comparison is not None:
            planned = self._comparison.row(report, across)
            for alarm in self._comparison.alarms(report, across, slowest):
                warn(alarm)
        row = make_row(report, self._throughput.measure(report.step_ms, report.step_tokens), across, slowest, planned)
        for sink in self._sinks:
            sink.write(row, report)

    def show(self, samples: Sequence[Sample]) -> None:
        """Hand out texts that the model wrote. Local; on the reporting rank."""
        for sink in self._sinks:
            sink.show(samples)

    def on_skip(self, batch: SkippedBatch) -> None:
        """Hand the batch out. Local."""
        for sink in self._sinks:
            sink.skip(batch)

    def on_rewind(self, step: int) -> None:
        """Let the sinks go back. Local."""
        if self._comparison is not None:
            self._comparison.rewind()
        for sink in self._sinks:
            sink.rewind(step)

    def on_end(self, end: RunEnd) -> None:
        """End every sink, even when one fails; raise the first failure. Local."""
        self._end_from(0, end)

    def _end_from(self, index: int, end: RunEnd) -> None:
        if index < len(self._sinks):
            try:
                self._sinks[index].end(end)
            finally:
                self._end_from(index + 1, end)
