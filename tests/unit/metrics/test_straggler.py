from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.metrics.straggler import RankTimes, Slowest, Straggler, StragglerWatch

STEP_MS = 100.0


def times(*own: float, waits: Sequence[float] = ()) -> list[RankTimes]:
    return [RankTimes(value, waits[rank] if waits else 0.0) for rank, value in enumerate(own)]


def watch(stages: Sequence[int], factor: float = 1.5) -> StragglerWatch:
    return StragglerWatch(stages, [f"node{rank // 2}" for rank in range(len(stages))], factor)


def test_a_rank_is_named_in_the_third_slow_report_and_only_there() -> None:
    watching = watch([0, 0, 0, 0])
    told = [watching.look(times(10, 11, 10, 22), STEP_MS)[1] for _ in range(5)]
    assert told == [[], [], [Straggler(3, 0, "node1", 2.2, "computing")], [], []]
    assert str(told[2][0]) == "3 (stage 0) on node1, whose computing takes 2.2 times as long"


def test_one_fast_report_begins_the_count_anew() -> None:
    watching = watch([0, 0])
    slow, fast = times(10, 20), times(10, 10)
    told = [watching.look(found, STEP_MS)[1] for found in (slow, slow, fast, slow, slow)]
    assert told == [[]] * 5
    assert len(watching.look(slow, STEP_MS)[1]) == 1


def test_stages_do_other_work_and_are_not_compared() -> None:
    watching = watch([0, 0, 1, 1])
    for _ in range(4):
        slowest, told = watching.look(times(10, 10, 40, 41), STEP_MS)
        assert told == []
        assert slowest == Slowest(3, 41 / 40)


def test_a_rank_alone_in_its_stage_is_held_against_itself() -> None:
    watching = watch([0, 1])
    for _ in range(4):
        assert watching.look(times(10, 40), STEP_MS)[1] == []
    told = [watching.look(times(10, 90), STEP_MS)[1] for _ in range(3)]
    assert told[:2] == [[], []]
    assert told[2] == [Straggler(1, 1, "node0", 2.25, "computing")]


def test_a_rank_whose_data_come_late_is_named_for_that() -> None:
    watching = watch([0, 0, 0])
    late = times(10, 10, 10, waits=(1.0, 30.0, 2.0))
    told = [watching.look(late, STEP_MS)[1] for _ in range(3)]
    assert told[2] == [Straggler(1, 0, "node0", 20.0, "reading data")]


def test_a_wait_that_is_a_small_part_of_a_step_is_not_worth_a_word() -> None:
    watching = watch([0, 0])
    assert all(watching.look(times(10, 10, waits=(0.01, 9.0)), STEP_MS)[1] == [] for _ in range(5))


def test_factor_zero_names_nobody_but_still_measures() -> None:
    watching = watch([0, 0], factor=0.0)
    for _ in range(5):
        slowest, told = watching.look(times(1, 100), STEP_MS)
        assert told == []
        assert slowest == Slowest(1, 100.0)


def test_what_is_not_known_is_neither_slow_nor_a_reference() -> None:
    assert watch([0, 0]).look(times(math.nan, math.nan), STEP_MS) == (None, [])
    watching = watch([0, 0, 0])
    assert watching.look(times(math.nan, 10, 30), STEP_MS)[0] == Slowest(2, 3.0)


def test_one_rank_alone_is_never_said_to_keep_others_waiting_for_data() -> None:
    watching = watch([0])
    assert all(watching.look(times(10, waits=(90.0,)), STEP_MS)[1] == [] for _ in range(5))
