from __future__ import annotations

import time

import pytest
import torch

from trainer.engine.face import StepResult
from trainer.loop import window as window_module
from trainer.loop.window import StepWindow, percentile


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_percentiles_are_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_the_percentile_of_one_step_is_that_step() -> None:
    assert percentile([7.0], 0.99) == 7.0


def test_percentiles_reach_back_beyond_the_last_report(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(window_module, "PERCENTILE_STEPS", 200)
    window = StepWindow()
    seconds = [1.0, *[0.1] * 97, 0.5, 0.2]
    for number, length in enumerate(seconds, start=1):
        window.start_step()
        window.data_arrived()
        window.add(StepResult(torch.tensor(1.0), torch.tensor(1.0)))
        now += length
        window.stop_step()
        if number % 50 == 0:
            reading = window.close()
    assert reading.steps == 50
    assert reading.step_ms == pytest.approx(1000 * (48 * 0.1 + 0.7) / 50)
    assert reading.percentiles_ms == pytest.approx((100.0, 100.0, 500.0))
