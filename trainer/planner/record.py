"""A prediction as it is stored in plan.json, and the part of it that a run is held against. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.planner.prediction import GIB, Prediction

LEAST_SLOWER = 0.3
"""Share by which steps must be slower than predicted to be told, however sure the prediction is."""
LEAST_FULLER = 0.1
"""The same for memory."""
PREDICTION = "prediction"
"""Entry of plan.json: what `prediction_record` returns, or null where nothing could be predicted."""


def prediction_record(prediction: Prediction) -> dict[str, object]:
    """Return a prediction as JSON values: seconds, GiB, and every constant with its source."""
    confidence, time = prediction.confidence, prediction.time
    return {
        "fits": prediction.fits,
        "peak_memory_gib": prediction.peak / GIB,
        "device_memory_gib": prediction.device_bytes / GIB,
        "fullest_stage": prediction.fullest,
        "stages": [
            {
                "memory_gib": {name: value / GIB for name, value in stage.by_purpose.items()},
                "peak_gib": stage.peak / GIB,
                "init_peak_gib": stage.init_peak / GIB,
                "step_peak_gib": stage.step_peak / GIB,
                "host_gib": stage.host / GIB,
                "in_flight": stage.in_flight,
            }
            for stage in prediction.stages
        ],
        "step_time_s": time.total,
        "step_time_parts_s": time.by_part,
        "data_parallel_hidden_s": time.data_parallel_hidden,
        "tokens_per_second": prediction.tokens_per_second,
        "tflops_per_gpu": prediction.tflops_per_gpu,
        "mfu": prediction.mfu,
        "hfu": prediction.hfu,
        "bubble_fraction": prediction.bubble_fraction,
        "confidence": {
            "step_time": confidence.step_time,
            "memory": confidence.memory,
            "reason": confidence.reason,
            "outside": list(confidence.outside),
        },
        "constants": {
            name: {"value": constant.value, "source": constant.source}
            for name, constant in prediction.constants.items()
        },
    }


@dataclass(frozen=True)
class Expected:
    """The part of a stored prediction that a run is held against."""

    step_ms: float
    """Time of an optimizer step."""
    peak_memory_gib: float
    """Memory of the fullest rank at its fullest moment, libraries and device context included."""
    overhead_gib: float
    """The part of it that no tensor holds."""
    step_error: float
    """Relative error that the time has to be expected to have."""
    memory_error: float
    """Relative error that the memory has to be expected to have."""
    bubble_fraction: float
    """Share of the pipeline ranks' time in which they wait for each other: 0 to 1."""
    stage_peaks_gib: tuple[float, ...] = ()
    """The same memory of each pipeline rank, in order."""


def read_expected(plan_file: Path) -> Expected | None:
    """Return what a run's plan.json expects; None if it holds no prediction, or none that can be read."""
    try:
        record = json.loads(plan_file.read_text(encoding="utf-8"))[PREDICTION]
        return expected_of(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def expected_of(record: Mapping[str, object]) -> Expected:
    """Return what a record of `prediction_record` expects.

    Raises:
        KeyError: it lacks an entry.
        TypeError: an entry is of another kind.
        ValueError: a time or size is not a positive number.
    """
    stages, confidence = record["stages"], record["confidence"]
    if not isinstance(stages, list) or not isinstance(confidence, dict):
        raise TypeError("stages must be a list and confidence an object")
    fullest = max(stages, key=lambda stage: float(stage["peak_gib"]))
    found = Expected(
        step_ms=1000 * _number(record["step_time_s"]),
        peak_memory_gib=_number(record["peak_memory_gib"]),
        overhead_gib=_number(fullest["memory_gib"]["overhead"]),
        step_error=_number(confidence["step_time"]),
        memory_error=_number(confidence["memory"]),
        bubble_fraction=_number(record["bubble_fraction"]),
        stage_peaks_gib=tuple(_number(stage["peak_gib"]) for stage in stages),
    )
    if found.step_ms <= 0 or found.peak_memory_gib <= 0:
        raise ValueError("a step must take time, and a rank memory")
    return found


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"must be a number of at least 0, but is {value!r}")
    return float(value)
