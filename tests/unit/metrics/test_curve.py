from __future__ import annotations

from trainer.metrics.curve import loss_curve


def test_a_falling_loss_is_a_falling_line() -> None:
    lines = loss_curve([(step, 10.0 - step) for step in range(1, 9)], height=8, unicode=False)
    marks = [line.index("*", 10) for line in lines[:-1]]
    assert marks == sorted(marks)
    assert len(set(marks)) == 8
    assert lines[0].split()[0] == "9"
    assert lines[-2].split()[0] == "2"
    assert lines[-1].split() == ["step", "|1", "8"]


def test_a_long_run_fits_the_width() -> None:
    lines = loss_curve([(step, 5.0 / step) for step in range(1, 100_001)], width=60)
    assert max(len(line) for line in lines) <= 70
    assert sum(line.count("•") for line in lines) == 60


def test_a_flat_loss_and_too_few_points() -> None:
    assert sum(line.count("•") for line in loss_curve([(1, 2.0), (2, 2.0), (3, 2.0)])) == 3
    assert loss_curve([(1, 2.0)]) == []
    assert loss_curve([]) == []
