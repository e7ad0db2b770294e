"""A clock that listens to the notes of one step. On CUDA the times are those of the device."""

from __future__ import annotations

import time

import torch

from trainer.profiling.spans import Note

_Mark = float | torch.cuda.Event


class StepClock:
    """A `NoteListener` from the first note of a step to the first one after its work: `data` to `hooks`. Local.

    On CUDA a note records an event on the current stream, so that its time is when the device came there. Only two
    moments wait for the device: the beginning of the step, where its clock is compared with the host's, and `take`.

    Args:
        device: the device on which this rank computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._notes: list[tuple[str, int | None, int, _Mark]] = []
        self._anchor: torch.cuda.Event | None = None
        self._anchor_s = self.error_s = 0.0
        self._is_over = False

    def begins(self, what: str, micro_batch: int | None, half: int) -> None:
        """Take a note. Until the step begins, and after its end, notes are not taken."""
        if what == "data":
            self._begin()
        if self._is_over or not (self._notes or what == "data"):
            return
        self._notes.append((what, micro_batch, half, self._now()))
        self._is_over = what == "hooks"

    def take(self) -> tuple[Note, ...]:
        """Return the notes, with seconds on this machine's monotonic clock. Waits for a CUDA device."""
        if self._is_cuda and self._notes:
            last = self._notes[-1][3]
            assert isinstance(last, torch.cuda.Event)
            last.synchronize()
        return tuple(Note(what, number, half, self._seconds(mark)) for what, number, half, mark in self._notes)

    def _begin(self) -> None:
        self._notes.clear()
        self._is_over = False
        if not self._is_cuda:
            return
        torch.cuda.synchronize(self._device)
        before = time.perf_counter()
        self._anchor = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._anchor.record()
        self._anchor.synchronize()
        after = time.perf_counter()
        self._anchor_s, self.error_s = (before + after) / 2, (after - before) / 2

    def _now(self) -> _Mark:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, mark: _Mark) -> float:
        if isinstance(mark, float):
            return mark
        assert self._anchor is not None
        return self._anchor_s + float(self._anchor.elapsed_time(mark)) / 1e3
