from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from trainer.data.prefetch import Prefetch, prefetched
from trainer.errors import DataError
from trainer.progress import READER


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == READER]


def wait_until(holds: object, seconds: float = 5.0) -> None:
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def broken(at: int) -> Iterator[int]:
    yield from range(at)
    raise DataError("token ids must be there, but are not")


@pytest.mark.parametrize("ahead", [0, 1, 2, 50])
def test_values_come_in_order_and_end(ahead: int) -> None:
    with prefetched(iter(range(20)), ahead) as values:
        assert list(values) == list(range(20))
        assert list(values) == []
    assert threads() == []


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_no_more_values_are_made_than_there_is_room_for(ahead: int) -> None:
    made: list[int] = []

    def values() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with prefetched(values(), ahead) as coming:
        for taken in range(10):
            wait_until(lambda taken=taken: len(made) == taken + ahead)
            # Time for one too many.
            time.sleep(0.005)
            assert len(made) == taken + ahead
            assert next(coming) == taken
    assert threads() == []


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_a_fault_is_raised_in_its_place_and_again_after_it(ahead: int) -> None:
    with prefetched(broken(3), ahead) as values:
        assert [next(values) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match="token ids must be there, but are not"):
            next(values)
        with pytest.raises((DataError, StopIteration)):
            next(values)
    assert threads() == []


def test_a_fault_of_the_beginning_is_raised_by_the_first_value() -> None:
    def begin() -> None:
        raise RuntimeError("no such device")

    with prefetched(iter([1]), 2, begin) as values, pytest.raises(RuntimeError, match="no such device"):
        next(values)


def test_the_thread_ends_while_it_waits_for_room_and_while_it_makes_a_value() -> None:
    waiting = Prefetch(iter(range(100)), 2)
    assert next(waiting) == 0
    waiting.close()
    assert threads() == []

    begun, goes_on = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        begun.set()
        goes_on.wait(5.0)
        yield 1
        raise AssertionError("nobody wants another one")

    making = Prefetch(slow(), 2)
    begun.wait(5.0)
    threading.Timer(0.02, goes_on.set).start()
    making.close()
    assert threads() == []


def test_a_disk_that_does_not_answer_does_not_hold_the_end_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.prefetch._END_S", 0.01)
    answers = threading.Event()

    def hung() -> Iterator[int]:
        answers.wait(5.0)
        yield 1

    coming = Prefetch(hung(), 1)
    coming.close()
    assert threads() == [READER]
    answers.set()
    wait_until(lambda: threads() == [])
