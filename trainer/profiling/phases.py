"""Ranges in the trace for the phases of a step, from the notes that a rank takes for the watchdog anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.profiler import record_function

from trainer.profiling.names import PHASE, STEP
from trainer.progress import Progress


@dataclass
class MarkedProgress(Progress):
    """Progress whose steps and phases are ranges in the trace from `mark` to `stop`.

    A step's range begins with the wait for its data and ends when the device has finished the work of the step: what
    follows (reports, evaluations, saves) belongs to no step.
    """

    _finish_device: Callable[[], None] | None = None
    """Set while steps are marked."""
    _step: record_function | None = None
    _phase: record_function | None = None

    def mark(self, finish_device: Callable[[], None]) -> None:
        """Mark the steps that begin from now on. `finish_device` returns when the device has nothing left to do."""
        self._finish_device = finish_device

    def stop(self) -> None:
        """Stop marking; a step under way ends here."""
        self._finish_device = None
        self._close()

    def begin_step(self, step: int) -> None:
        """Note that `step` begins, with the wait for its data."""
        if self._finish_device is not None:
            self._close()
            self._step = _opened(f"{STEP}{step}")
        super().begin_step(step)

    def enter(self, phase: str, micro_batch: int | None = None) -> None:
        """Note the beginning of a phase."""
        super().enter(phase, micro_batch)
        if self._step is None:
            return
        if phase == "hooks":
            if self._finish_device is not None:
                self._finish_device()
            self._close()
        else:
            self._next_phase(phase)

    def execute(self, instruction: str, half: int = 0) -> None:
        """Note an instruction of the pipeline."""
        super().execute(instruction, half)
        if self._step is not None:
            self._next_phase(instruction)

    def _next_phase(self, name: str) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
        self._phase = _opened(f"{PHASE}{name}")

    def _close(self) -> None:
        for opened in (self._phase, self._step):
            if opened is not None:
                opened.__exit__(None, None, None)
        self._phase = self._step = None


def _opened(name: str) -> record_function:
    opened = record_function(name)
    opened.__enter__()  # type: ignore[no-untyped-call]
    return opened
