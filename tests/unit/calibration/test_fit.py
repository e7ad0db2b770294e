from __future__ import annotations

import itertools
import math
import random

import pytest

from trainer.calibration.fit import Free, adjusted, nonnegative_fit, solved


def test_known_coefficients_are_found() -> None:
    true = (2e-11, 5e-10, 3e-6)
    rows = [(f, b, 1.0) for f, b in itertools.product((1e5, 1e7, 1e9), (1e3, 1e5, 1e7))]
    times = [sum(c * x for c, x in zip(true, row, strict=True)) for row in rows]
    assert nonnegative_fit(rows, times) == pytest.approx(true, rel=1e-6)


def test_noise_moves_them_little() -> None:
    noise = random.Random(7)
    rows = [(f, 1.0) for f in (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)] * 20
    times = [(1e-9 * f + 4e-5) * math.exp(noise.gauss(0, 0.05)) for f, _ in rows]
    assert nonnegative_fit(rows, times) == pytest.approx((1e-9, 4e-5), rel=0.05)


def test_none_is_below_zero() -> None:
    # The line through these times cuts the axis below it.
    assert nonnegative_fit([(1.0, 1.0), (2.0, 1.0)], [0.5, 2.0])[1] == 0.0


def test_a_column_of_nothing_stays_nothing() -> None:
    assert nonnegative_fit([(1.0, 0.0), (2.0, 0.0)], [3.0, 6.0]) == pytest.approx([3.0, 0.0])


def test_constants_of_a_model_are_found_in_orders_of_magnitude() -> None:
    sizes = [1e3, 1e5, 1e7, 1e9]

    def predict(values: dict[str, float]) -> list[float]:
        return [size / values["rate"] + values["latency"] for size in sizes]

    true = {"rate": 3e9, "latency": 2e-4}
    free = {"rate": Free(1e10, 5.0), "latency": Free(1e-3, 5.0)}
    found = adjusted(free, predict, predict(true))  # type: ignore[arg-type]
    assert found == pytest.approx(true, rel=0.02)


def test_a_constant_that_times_do_not_determine_stays() -> None:
    found = adjusted({"a": Free(1.0, 1.0), "b": Free(7.0, 1.0)}, lambda values: [values["a"]], [2.0])
    assert found["b"] == pytest.approx(7.0)
    assert found["a"] == pytest.approx(2.0, rel=0.01)


def test_a_narrow_spread_holds() -> None:
    found = adjusted({"a": Free(1.0, 0.01)}, lambda values: [values["a"]], [2.0])
    assert found["a"] < 1.1


def test_linear_equations() -> None:
    assert solved([[0.0, 2.0], [3.0, 1.0]], [4.0, 5.0]) == pytest.approx([1.0, 2.0])
    with pytest.raises(ZeroDivisionError):
        solved([[1.0, 1.0], [1.0, 1.0]], [1.0, 2.0])
