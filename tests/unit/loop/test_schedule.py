from __future__ import annotations

import math

import pytest

from trainer.config.schema import OptimizerConfig, ScheduleConfig, ScheduleKind
from trainer.engine.learning_rate import learning_rate

PEAK = 0.5
OPTIMIZER = OptimizerConfig(lr=PEAK)


def rate(step: int, kind: ScheduleKind, warmup: int = 4, total: int = 20, decay: int = 20, ratio: float = 0.1) -> float:
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, min_lr_ratio=ratio)
    return learning_rate(step, OPTIMIZER, schedule, total, decay)


@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_warmup_is_a_line_that_ends_at_the_peak(kind: ScheduleKind) -> None:
    assert [rate(step, kind) for step in (1, 2, 3, 4)] == pytest.approx([0.125, 0.25, 0.375, 0.5])


@pytest.mark.parametrize("kind", [ScheduleKind.linear, ScheduleKind.cosine])
def test_without_warmup_the_first_step_has_left_the_peak_by_one_step(kind: ScheduleKind) -> None:
    expected = {
        ScheduleKind.linear: 0.05 + 0.45 * 0.9,
        ScheduleKind.cosine: 0.05 + 0.225 * (1 + math.cos(math.pi / 10)),
    }
    assert rate(1, kind, warmup=0, total=10, decay=10) == pytest.approx(expected[kind])


def test_constant_stays_at_the_peak() -> None:
    assert [rate(step, ScheduleKind.constant) for step in (5, 12, 20, 99)] == [PEAK] * 4


def test_linear_known_values() -> None:
    # Halfway between warm-up end (4) and decay end (20) is step 12.
    assert rate(12, ScheduleKind.linear) == pytest.approx((0.5 + 0.05) / 2)
    assert rate(20, ScheduleKind.linear) == pytest.approx(0.05)


def test_cosine_known_values() -> None:
    assert rate(8, ScheduleKind.cosine) == pytest.approx(0.05 + 0.45 * (1 + math.sqrt(0.5)) / 2)
    assert rate(12, ScheduleKind.cosine) == pytest.approx(0.275)
    assert rate(20, ScheduleKind.cosine) == pytest.approx(0.05)


@pytest.mark.parametrize("kind", [ScheduleKind.linear, ScheduleKind.cosine])
def test_after_the_decay_the_minimum_stays(kind: ScheduleKind) -> None:
    assert rate(11, kind, total=20, decay=10) == pytest.approx(0.05)
    assert rate(20, kind, total=20, decay=10) == pytest.approx(0.05)


def test_wsd_is_stable_then_falls_over_the_last_steps() -> None:
    values = [rate(step, ScheduleKind.wsd, decay=5) for step in range(4, 21)]
    assert values[:12] == [PEAK] * 12
    assert values[12:] == pytest.approx([0.41, 0.32, 0.23, 0.14, 0.05])


def test_wsd_decay_longer_than_what_the_warmup_leaves_starts_at_the_warmup() -> None:
    assert rate(4, ScheduleKind.wsd, total=8, decay=100) == PEAK
    assert rate(6, ScheduleKind.wsd, total=8, decay=100) == pytest.approx(0.275)
    assert rate(8, ScheduleKind.wsd, total=8, decay=100) == pytest.approx(0.05)


def test_decay_that_ends_inside_the_warmup_goes_to_the_minimum() -> None:
    assert rate(4, ScheduleKind.cosine, decay=2) == PEAK
    assert rate(5, ScheduleKind.cosine, decay=2) == pytest.approx(0.05)


def test_ratio_one_never_falls_and_ratio_zero_reaches_zero() -> None:
    assert rate(20, ScheduleKind.linear, ratio=1.0) == PEAK
    assert rate(20, ScheduleKind.linear, ratio=0.0) == 0.0
