"""Memory of each stage on the page: predicted by purpose, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.records.run_record import RunRecord
from trainer.reporting.facts import number_of, prediction
from trainer.reporting.number_words import purpose_name, short

COLOURS: Mapping[str, str] = {
    "weights": "--c0",
    "gradients": "--c2",
    "master": "--c3",
    "moments": "--c10",
    "activations": "--c1",
    "working": "--c5",
    "loss": "--c4",
    "buckets": "--c7",
    "gathered": "--c9",
    "overhead": "--c11",
}
"""Purpose of memory -> its colour."""
MOST_STAGES = 64


@dataclass(frozen=True)
class MemoryBoard:
    """The drawing of a run's memory, and its numbers."""

    data: Mapping[str, Any]
    alt: str
    head: list[str]
    rows: list[list[str]]
    legend: list[tuple[str, str]]
    notes: list[str]


def memory_board(record: RunRecord) -> MemoryBoard | None:
    """Return the memory of a run's stages, or None if nothing was predicted."""
    held = prediction(record)
    stages = [stage for stage in _stages(held) if number_of(stage.get("peak_gib"))]
    if not stages:
        return None
    notes = [f"The first {MOST_STAGES} of {len(stages)} stages are drawn."] if len(stages) > MOST_STAGES else []
    stages = stages[:MOST_STAGES]
    purposes = list(dict.fromkeys(name for stage in stages for name in _by_purpose(stage)))
    purposes = [name for name in purposes if any(_by_purpose(stage).get(name, 0.0) > 0 for stage in stages)]
    predicted = [number_of(stage["peak_gib"]) or 0.0 for stage in stages]
    measured = [measured_gib(record, index, len(stages)) for index in range(len(stages))]
    if not any(value is not None for value in measured):
        notes.append("What each stage held was not measured in this run.")
    device = number_of(held.get("device_memory_gib"))
    names = [f"stage {index}" for index in range(len(stages))]
    gib = {name: [_by_purpose(stage).get(name, 0.0) for stage in stages] for name in purposes}
    # The peaks of purposes fall together in no one moment, so that their bars may be longer than the peak.
    data = {
        "kind": "memory",
        "stages": names,
        "purposes": [
            {"name": purpose_name(name), "colour": COLOURS.get(name, "--c6"), "gib": _rounded(gib[name])}
            for name in purposes
        ],
        "predicted": _rounded(predicted),
        "measured": [None if value is None else float(f"{value:.6g}") for value in measured],
        "device_gib": device,
    }
    rows = [
        [
            name,
            *(f"{short(gib[purpose][index])}" for purpose in purposes),
            short(predicted[index]),
            _told(measured[index]),
        ]
        for index, name in enumerate(names)
    ]
    head = ["GiB", *(purpose_name(name) for name in purposes), "predicted peak", "measured"]
    legend = [(purpose_name(name), COLOURS.get(name, "--c6")) for name in purposes] + [("measured", "--ink")]
    return MemoryBoard(data, _alt(names, predicted, measured), head, rows, legend, notes)


def _stages(held: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    stages = held.get("stages")
    return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []


def _by_purpose(stage: Mapping[str, Any]) -> dict[str, float]:
    held = stage.get("memory_gib")
    found = {str(name): number_of(value) for name, value in held.items()} if isinstance(held, dict) else {}
    return {name: value for name, value in found.items() if value is not None}


def measured_gib(record: RunRecord, stage: int, stages: int) -> float | None:
    """Return the most that the fullest rank of a stage held, as predictions count; None if nobody measured it."""
    for name, scale in ((f"memory/stage{stage}/peak_used_gib", 1.0), ("plan/peak_memory_ratio", None)):
        values = record.metrics.series(name)[1]
        values = values[np.isfinite(values)]
        if scale is None and stages == 1:
            # Versions that measured no stage: the ratio is that of the fullest rank, here of the only stage.
            expected = record.metrics.last("plan/peak_memory_gib")
            if len(values) and expected:
                return float(values.max()) * expected
        elif scale is not None and len(values):
            return float(values.max())
    return None


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _told(value: float | None) -> str:
    return "" if value is None else short(value)


def _alt(names: Sequence[str], predicted: Sequence[float], measured: Sequence[float | None]) -> str:
    told = [
        f"{name}: {short(one)} predicted{f', {short(other)} measured' if other is not None else ''}"
        for name, one, other in zip(names[:8], predicted, measured, strict=False)
    ]
    more = f"; and {len(names) - 8} more stages" if len(names) > 8 else ""
    return f"Bar chart of memory by stage in GiB. {'; '.join(told)}{more}."
