"""The data of a run's steps, read before the steps need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

from trainer.config.plan import RunPlan
from trainer.data.batches import BatchSource
from trainer.data.prefetch import Prefetch
from trainer.micro_batch import MicroBatch
from trainer.topology.groups import ParallelGroups


class StepStart(NamedTuple):
    """A step that comes next, and what it begins with."""

    step: int
    position: int
    """Place in the stream, in tokens."""
    ledger: str
    """Rolling hash before the step; see `TrainState.sample_ledger`."""


@dataclass(frozen=True, eq=False)
class StepBatch:
    """A rank's part of the global batch of a step."""

    start: StepStart
    micro_batches: list[MicroBatch]
    ledger_after: Callable[[], str]
    """Returns the rolling hash after the step, and waits for it if need be."""


@dataclass
class StepData:
    """Gives each step its data; those of `ahead` coming steps are read by a thread meanwhile.

    The thread goes on from step to step as the run does. Whatever else comes next, since the run went back to a
    checkpoint, it begins anew there. It copies to the device on the stream on which the steps compute. Local.

    Args:
        source: the training data.
        plan: numbers of the run.
        groups: this rank's place; the reporting rank's data are hashed.
        ahead: number of coming steps; 0: each step reads its own data.
    """

    source: BatchSource
    plan: RunPlan
    groups: ParallelGroups
    ahead: int
    _coming: Prefetch[StepBatch] | None = field(default=None, init=False)
    _next: StepStart | None = field(default=None, init=False)
    """Step whose batch the thread gives next, as far as it is known."""

    def take(self, start: StepStart) -> StepBatch:
        """Return the data of a step, and wait for them if need be.

        Raises:
            DataError: as `BatchSource.micro_batches`. `ledger_after` may raise it, too.
        """
        if self.ahead == 0:
            return self._read(start, partial(self._hash, start))
        if self._coming is None or self._next != start:
            self.close()
            self._coming = Prefetch(self._steps(start), self.ahead, device_setter(self.groups.device))
        batch = next(self._coming)
        # The hash is asked for when the step is queued: by then the thread has it.
        self._next = None
        return StepBatch(batch.start, batch.micro_batches, partial(self._finish, batch))

    def close(self) -> None:
        """End the thread."""
        if self._coming is not None:
            self._coming.close()
        self._coming = self._next = None

    def _finish(self, batch: StepBatch) -> str:
        ledger = batch.ledger_after()
        self._next = self._after(batch.start, ledger)
        return ledger

    def _after(self, start: StepStart, ledger: str) -> StepStart:
        return StepStart(start.step + 1, start.position + self.plan.tokens_of_step(start.step), ledger)

    def _read(self, start: StepStart, ledger: Callable[[], str]) -> StepBatch:
        return StepBatch(start, self.source.micro_batches(start.position, start.step), ledger)

    def _hash(self, start: StepStart) -> str:
        if not self.groups.is_reporting_rank:
            return start.ledger
        return self.source.ledger(start.ledger, start.position, start.step)

    def _steps(self, start: StepStart) -> Iterator[StepBatch]:
        """Give the steps from `start` to the run's last; run by the thread."""
        while start.step <= self.plan.steps:
            hashed: Future[str] = Future()
            yield self._read(start, hashed.result)
            try:
                hashed.set_result(self._hash(start))
            except BaseException as error:
                # Raised by the step whose batch could not be hashed, which has begun.
                hashed.set_exception(error)
                return
            start = self._after(start, hashed.result())


def device_setter(device: torch.device) -> Callable[[], None]:
    """Return a function that makes `device` the one of the thread which calls it."""
    return partial(torch.cuda.set_device, device) if device.type == "cuda" else _on_cpu


def _on_cpu() -> None:
    """Do nothing: a thread has no device of its own."""
