"""The clocks of a measured step: on CUDA by stand-ins for its events, between machines by ranks with clocks apart."""

from __future__ import annotations

import random
import time
from typing import ClassVar

import pytest
import torch

from tests.helpers.thread_group import run_ranks
from trainer.profiling import clocks
from trainer.profiling.clocks import clock_name, clock_offsets
from trainer.profiling.step_clock import StepClock
from trainer.progress import Progress
from trainer.topology.groups import Group, SingleGroup


def test_only_the_notes_of_the_step_are_taken() -> None:
    progress, clock = Progress(), StepClock(torch.device("cpu"))
    progress.listener = clock
    progress.enter("evaluate", 1)
    before = time.perf_counter()
    progress.begin_step(3)
    progress.enter("pipeline")
    progress.execute("ForwardPass", half=1)
    progress.execute("ForwardPass")
    progress.execute("ForwardPass", half=1)
    progress.enter("hooks")
    progress.enter("evaluate", 1)
    found = clock.take()
    assert [(note.what, note.micro_batch, note.half) for note in found] == [
        ("data", None, 0),
        ("pipeline", None, 0),
        ("ForwardPass", 1, 1),
        ("ForwardPass", 1, 0),
        ("ForwardPass", 2, 1),
        ("hooks", None, 0),
    ]
    times = [note.begin_s for note in found]
    assert before <= times[0]
    assert times == sorted(times)
    # The next step is a new one.
    progress.begin_step(4)
    progress.enter("hooks")
    assert [note.what for note in clock.take()] == ["data", "hooks"]


class Device:
    """A CUDA device that is behind its host by a second, and what the host has waited for."""

    waits: ClassVar[list[str]] = []
    recorded = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Device.recorded += 1
        self.number = Device.recorded

    def synchronize(self) -> None:
        Device.waits.append(f"event {self.number}")

    def elapsed_time(self, later: Device) -> float:
        return 1000.0 * (later.number - self.number)


def test_on_cuda_the_times_are_the_devices_and_the_host_waits_at_the_ends_of_the_step_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Device.waits, Device.recorded = [], 0
    monkeypatch.setattr(torch.cuda, "Event", Device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: Device.waits.append("device"))
    clock = StepClock(torch.device("cuda", 0))
    clock.begins("hooks", None, 0)
    assert Device.recorded == 0, "outside of the step nothing is recorded"
    before = time.perf_counter()
    clock.begins("data", None, 0)
    after = time.perf_counter()
    assert Device.waits == ["device", "event 1"]
    for what in ("forward", "backward", "hooks", "data later"):
        clock.begins(what, 1, 0)
    assert Device.waits == ["device", "event 1"], "no note waits"
    found = clock.take()
    assert Device.waits == ["device", "event 1", "event 5"]
    assert [note.what for note in found] == ["data", "forward", "backward", "hooks"]
    # The anchor is a moment between both readings of the host's clock; the events are a second apart.
    begun = found[0].begin_s - 1.0
    assert before <= begun <= after
    assert 0 <= clock.error_s <= (after - before) / 2
    assert [note.begin_s - begun for note in found] == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_processes_of_one_machine_have_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clock_name() == clock_name() != ""
    monkeypatch.setattr(clocks, "_NAMESPACE", "/nowhere")
    assert clock_name() == ""


AHEAD = (0.0, 5000.25, -300.5)


def test_clocks_that_are_apart_are_found_within_the_bound_that_is_told() -> None:
    def rank(group: Group) -> tuple[list[float], list[float]]:
        noise = random.Random(group.rank)

        def now() -> float:
            # A rank that is interrupted here and there.
            time.sleep(0.003 * noise.random() ** 8)
            return time.perf_counter() + AHEAD[group.rank]

        return clock_offsets(group, range(3), now)

    (offsets, errors), *others = run_ranks(3, rank)
    assert offsets[0] == errors[0] == 0
    for known, found, error in zip(AHEAD[1:], offsets[1:], errors[1:], strict=True):
        assert abs(found - known) <= error + 1e-6
        # Threads answer within a time slice of the interpreter, 5 ms, or a few of them on a busy machine.
        assert error < 0.5
    assert others == [([0.0] * 3, [0.0] * 3)] * 2


def test_one_rank_has_nobody_to_ask() -> None:
    assert clock_offsets(SingleGroup(), [0]) == ([0.0], [0.0])
