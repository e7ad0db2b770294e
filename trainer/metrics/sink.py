"""The protocol of a sink, which takes the rows of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trainer.loop.events import RunEnd, StepReport

Row = dict[str, float | int]
"""Names -> finite numbers of one logged step; unknown values are left out. See `row.py` for the names."""


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote during training."""

    step: int
    prompt: str
    text: str
    """The text after the prompt."""


class Sink(Protocol):
    """Takes the rows of a run. Exists on the reporting rank only, so it may not use collectives."""

    def start(self, first_step: int) -> None:
        """Run before step `first_step`."""

    def advance(self, step: int) -> None:
        """Run after every step, logged or not; must be quick."""

    def write(self, row: Row, report: StepReport) -> None:
        """Take the row of a logged step."""

    def show(self, samples: Sequence[Sample]) -> None:
        """Take the texts of one evaluation."""

    def end(self, end: RunEnd) -> None:
        """Run once, also after a failure, maybe without `start`."""
