from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arena import Contender, ContenderFailed, Turn
from benchmarks.case import Case, gpu_case
from benchmarks.search import GIB, Fitted, Search, Setup
from benchmarks.settings import Settings
from benchmarks.suites.gpu import PEERS, _Rows, gpu_table, measured, takes_part

PLAIN, SMALL, SMALLEST = Setup("as is"), Setup("recompute"), Setup("offload")
CASE = replace(gpu_case("124m", 1024), micro_batch_size=16)
# By hand: the package's attribute of this name is the suite.
MODULE = importlib.import_module("benchmarks.suites.gpu")


class Device:
    """Has room for so many sequences in each setup, and trains one in so many seconds."""

    def __init__(self, room: dict[Setup, int], seconds: dict[Setup, float] | None = None) -> None:
        self.room = room
        self.seconds = seconds or {}
        self.search = Search(self.attempt, 2)

    def attempt(self, setup: Setup, case: Case) -> Sequence[Turn]:
        if case.micro_batch_size > self.room[setup]:
            raise ContenderFailed("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        # The first turn is the warm-up.
        return [Turn(seconds, (3.0,), {"peak_bytes": 7}) for seconds in (99.0, *[self.seconds.get(setup, 1.0)] * 3)]

    def best(self, *setups: Setup) -> Fitted | None:
        return self.search.best(CASE, setups)

    def sizes(self) -> list[tuple[str, int]]:
        return [(one["setup"], one["micro_batch_size"]) for one in self.search.tried]


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
    assert len(device.search.tried) == 10
    assert all("out of memory" in one["failed"] for one in device.search.tried)
    assert device.search.reason.startswith("OutOfMemoryError: CUDA out of memory")


def test_another_failure_is_not_tried_again_with_less() -> None:
    def attempt(setup: Setup, case: Case) -> Sequence[Turn]:
        raise ContenderFailed("ImportError: no module named x")

    search = Search(attempt, 1)
    assert search.best(CASE, [PLAIN, SMALL]) is None
    assert [one["micro_batch_size"] for one in search.tried] == [16, 16]


def expecting(monkeypatch: pytest.MonkeyPatch, states: float, sequence: float) -> None:
    """Let theory expect so many GiB, and so many more for each sequence."""
    monkeypatch.setattr(
        Search, "expected", lambda self, case, setup: int((states + sequence * case.micro_batch_size) * GIB)
    )


@pytest.mark.parametrize(
    ("states", "first"),
    [
        (10.0, 16),  # 10 + 16 + 2 GiB of 32
        (20.0, 8),
        (27.0, 1),
        (29.0, 1),  # 32 GiB are more than 95 % of them, and tried all the same
        (38.5, 1),
        (38.7, None),
    ],
)
def test_the_search_starts_where_theory_fits(monkeypatch: pytest.MonkeyPatch, states: float, first: int | None) -> None:
    expecting(monkeypatch, states, 1.0)
    device = Device({PLAIN: 16})
    device.search = Search(device.attempt, 2, memory=32 * GIB)
    best = device.best(PLAIN)
    assert (None if best is None else best.case.micro_batch_size) == first
    (only,) = device.search.tried
    assert only["expected_bytes"] == int((states + (first or 1)) * GIB)
    if first is None:
        assert device.search.reason == only["left_out"] == "by theory: needs 41.7 GiB, the GPU has 32.0 GiB"


def test_what_theory_leaves_out_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "expected", lambda self, case, setup: (99 if setup is PLAIN else 9) * GIB)
    device = Device({PLAIN: 0, SMALL: 16})
    device.search = Search(device.attempt, 2, memory=32 * GIB)
    best = device.best(PLAIN, SMALL)
    assert best is not None
    assert best.setup is SMALL


def test_theory_of_a_real_case_is_that_of_its_setup_and_contender() -> None:
    def attempt(setup: Setup, case: Case) -> Sequence[Turn]:
        return []

    again = Setup("again", ("model.recompute=full",))
    assert Search(attempt, 1).expected(CASE, again) < Search(attempt, 1).expected(CASE, PLAIN)
    whole = Search(attempt, 1, theory=PEERS["plain loop, fused AdamW + compile"].theory)
    assert whole.expected(CASE, PLAIN) > Search(attempt, 1).expected(CASE, PLAIN)


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


def test_without_names_only_three_take_part() -> None:
    assert takes_part(()) == ["trident", "trident, compiled blocks", "plain loop, fused AdamW + compile"]
    assert takes_part(("transformers Trainer", "trident, Liger kernels")) == [
        "trident",
        "trident, Liger kernels",
        "transformers Trainer",
    ]


def rows_of(
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[[Contender], Sequence[float]],
    case: Case = CASE,
    memory: int = 80 * GIB,
) -> list[dict[str, Any]]:
    """Measure Trident, its compiled blocks and the plain loop, whose losses of the warm-up `train` tells."""

    def train_alone(contender: Contender, logs: Path, *turns: int) -> list[Turn]:
        return [Turn(9.0, tuple(train(contender)), {}), *[Turn(1.0, (1.0,), {"peak_bytes": GIB})] * (len(turns) - 1)]

    monkeypatch.setattr(MODULE, "train_alone", train_alone)
    return _Rows(Settings(rounds=1), {}, memory, Path()).of(case, takes_part(()))


def test_whose_losses_differ_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(monkeypatch, lambda contender: (10.0, 9.3) if contender.kind == "plain" else (10.0, 9.0))
    assert ["tokens_per_second" in row for row in rows] == [True, True, False]
    assert rows[2]["skipped"] == "its losses differ: step 1 by 0.0e+00, worst 3.3e-02 (relative)"
    assert rows[0]["expected_bytes"] == Search(lambda setup, case: [], 1).expected(CASE, PLAIN)
    text = gpu_table(rows)
    assert "skipped: its losses differ" in text
    assert f"1.00 ({rows[0]['expected_bytes'] / GIB:.2f})" in text


def test_losses_are_held_against_the_first_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(contender: Contender) -> Sequence[float]:
        if contender.name == "trident":
            raise ContenderFailed("ImportError: no module named x")
        return (10.0, 9.0) if contender.kind == "plain" else (11.0, 9.0)

    first, second, third = rows_of(monkeypatch, train)
    assert first["skipped"] == "ImportError: no module named x"
    assert second["loss_error"] == 0
    assert third["skipped"].startswith("its losses differ: step 1 by 9.1e-02")


def test_the_search_of_a_suite_starts_by_theory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(monkeypatch, lambda contender: (10.0, 9.0), gpu_case("124m", 1024), 32 * GIB)
    # 65,536 tokens have 18 GiB of whole logits, which the plain loop keeps and Trident does not.
    assert [row["micro_batch_size"] for row in rows] == [64, 64, 32]
    assert all(len(row["tried"]) == 1 for row in rows)
