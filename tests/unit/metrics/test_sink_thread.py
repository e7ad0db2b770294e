from __future__ import annotations

import threading
import time

import pytest

from tests.helpers.hang import Hang
from trainer.metrics.sink_thread import Background
from trainer.metrics.stall import StallWatch


def test_calls_are_made_in_order_and_nobody_waits() -> None:
    gate, made = threading.Event(), list[int]()
    calls = Background("test")
    calls.submit(lambda: gate.wait(10))
    for number in range(100):
        calls.submit(lambda number=number: made.append(number))  # type: ignore[misc]
    assert made == []
    gate.set()
    calls.finish(10)
    assert made == list(range(100))
    assert calls.failure is None


@pytest.mark.parametrize("error", [OSError("pipe"), SystemExit(3)])
def test_after_a_failure_no_call_is_made(error: BaseException) -> None:
    made: list[str] = []

    def fail() -> None:
        raise error

    calls = Background("test")
    calls.submit(fail)
    calls.submit(lambda: made.append("later"))
    calls.finish(10)
    calls.submit(lambda: made.append("much later"))
    calls.finish(10)
    assert made == []
    assert isinstance(calls.failure, OSError | RuntimeError)
    assert str(error) in str(calls.failure)


def test_what_does_not_end_in_time_is_the_failure(hang: Hang) -> None:
    calls = Background("test")
    calls.submit(hang)
    calls.finish(0.1)
    assert not hang.has_returned
    assert isinstance(calls.failure, TimeoutError)
    assert str(calls.failure) == "no answer within 0.1 s"


def test_what_waits_is_bounded(hang: Hang) -> None:
    calls = Background("test", most=3)
    calls.submit(hang)
    for _ in range(10):
        calls.submit(lambda: None)
    assert str(calls.failure) == "3 calls wait for one that does not return"


def test_a_stall_is_told_once_and_again_after_a_beat() -> None:
    told: list[int] = []
    heard = threading.Event()

    def on_stall(step: int, seconds: float) -> None:
        assert seconds >= 0.1
        told.append(step)
        heard.set()

    watch = StallWatch(0.1, on_stall)
    watch.start(3)
    assert heard.wait(10)
    time.sleep(0.4)
    assert told == [3]
    heard.clear()
    watch.beat(4)
    assert heard.wait(10)
    watch.stop()
    assert told == [3, 4]


def test_a_run_that_goes_on_or_has_ended_does_not_stall() -> None:
    told: list[int] = []
    watch = StallWatch(2.0, lambda step, _: told.append(step))
    watch.start(0)
    for step in range(1, 6):
        time.sleep(0.05)
        watch.beat(step)
    watch.stop()
    assert told == []
