from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.arena import ContenderFailed, Turn
from benchmarks.case import Case, gpu_case
from benchmarks.settings import Settings
from benchmarks.suites.gpu import Fitted, Setup, best_setup, measured

PLAIN, SMALL, SMALLEST = Setup("as is"), Setup("recompute"), Setup("offload")
CASE = replace(gpu_case("124m", 1024), micro_batch_size=16)


class Device:
    """Has room for so many sequences in each setup, and trains one in so many seconds."""

    def __init__(self, room: dict[Setup, int], seconds: dict[Setup, float] | None = None) -> None:
        self.room = room
        self.seconds = seconds or {}
        self.tried: list[dict[str, Any]] = []

    def attempt(self, setup: Setup, case: Case) -> Sequence[Turn]:
        if case.micro_batch_size > self.room[setup]:
            raise ContenderFailed("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        # The first turn is the warm-up.
        return [Turn(seconds, (3.0,), {"peak_bytes": 7}) for seconds in (99.0, *[self.seconds.get(setup, 1.0)] * 3)]

    def best(self, *setups: Setup) -> Fitted | None:
        return best_setup(CASE, setups, self.attempt, 2, self.tried)

    def sizes(self) -> list[tuple[str, int]]:
        return [(one["setup"], one["micro_batch_size"]) for one in self.tried]


def test_the_micro_batch_is_halved_until_it_fits() -> None:
    device = Device({PLAIN: 5})
    best = device.best(PLAIN, SMALL)
    assert best is not None
    assert (best.setup, best.case.micro_batch_size) == (PLAIN, 4)
    assert device.sizes() == [("as is", 16), ("as is", 8), ("as is", 4)]
    assert best.rates(2) == [2 * CASE.tokens_per_step] * 3


def test_a_small_micro_batch_is_held_against_recomputation() -> None:
    for seconds, expected in ((2.0, PLAIN), (0.5, SMALL)):
        device = Device({PLAIN: 1, SMALL: 8, SMALLEST: 8}, {SMALL: seconds})
        best = device.best(PLAIN, SMALL, SMALLEST)
        assert best is not None
        assert best.setup is expected
        assert "offload" not in dict(device.sizes())


def test_what_fits_nowhere_is_told() -> None:
    device = Device({PLAIN: 0, SMALL: 0})
    assert device.best(PLAIN, SMALL) is None
    assert len(device.tried) == 10
    assert all("out of memory" in one["failed"] for one in device.tried)


def test_another_failure_is_not_tried_again_with_less() -> None:
    tried: list[dict[str, Any]] = []

    def attempt(setup: Setup, case: Case) -> Sequence[Turn]:
        raise ContenderFailed("ImportError: no module named x")

    assert best_setup(CASE, [PLAIN, SMALL], attempt, 1, tried) is None
    assert [one["micro_batch_size"] for one in tried] == [16, 16]


def test_a_dry_run_claims_nothing_of_a_gpu() -> None:
    best = Device({PLAIN: 16}).best(PLAIN)
    assert best is not None
    real = measured(best, Settings(), {"4096": 500.0, "8192": 700.0})
    # 6 x 124M + 12 x 12 x 768 x 1024 FLOP a token, 131072 tokens in a second.
    assert real["mfu"]["full"] == 131072 * (6 * real["parameters"] + 12 * 12 * 768 * 1024) / 989.4e12
    assert real["mfu"]["causal"] < real["mfu"]["full"]
    assert real["of_matmul"]["full"] == real["mfu"]["full"] * 989.4 / 700
    dry = measured(best, Settings(dry=True), {})
    assert dry["mfu"] is None
    assert dry["of_matmul"] is None
