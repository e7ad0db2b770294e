"""The protocol of a sink, which takes the rows of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.loop.events import RunEnd, SkippedBatch, StepReport

Row = dict[str, float | int]
"""Names -> finite numbers of one logged step; unknown values are left out. See `row.py` for the names."""


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote during training."""

    step: int
    prompt: str
    text: str
    """The text after the prompt."""


class Sink:
    """Takes the rows of a run. Exists on the reporting rank only, so it may not use collectives.

    A sink does what it overrides.
    """

    def start(self, first_step: int) -> None:
        """Run before step `first_step`."""

    def advance(self, step: int) -> None:
        """Run after every step, logged or not; must be quick."""

    def write(self, row: Row, report: StepReport) -> None:
        """Take the row of a logged step."""

    def show(self, samples: Sequence[Sample]) -> None:
        """Take the texts of one evaluation."""

    def skip(self, batch: SkippedBatch) -> None:
        """Take a batch that was skipped as bad."""

    def rewind(self, step: int) -> None:
        """Run after the run went back to the checkpoint of `step`: rows of later steps come again."""

    def end(self, end: RunEnd) -> None:
        """Run once, also after a failure, maybe without `start`."""
