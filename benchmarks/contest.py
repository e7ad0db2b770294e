"""A contest from start to record: who takes part, the turns, the table, and what is written down."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arena import FP32, HALF, Contender, Record, compete
from benchmarks.record import contender_record, save, speed_table
from benchmarks.settings import Settings, chosen
from trainer.log import say

More = Callable[[Sequence[Record]], tuple[Mapping[str, Any], str]]
"""Derives further results from the records: values for the file, text for people."""


def held(suite: str, settings: Settings, contenders: Sequence[Contender], base: str, more: More | None = None) -> Path:
    """Let contenders compete; print the table with ratios to `base`, and write the record.

    Raises:
        UsageError: settings name a contender that does not exist.
    """
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as logs:
        records = compete(
            chosen(contenders, settings, base),
            Path(logs),
            rounds=settings.rounds,
            steps=settings.steps,
            warmup=settings.warmup,
            tolerance=FP32 if settings.case.dtype == "fp32" else HALF,
            say=say,
        )
    against = next((record for record in records if record.contender.name == base), None)
    values = [contender_record(record, settings.steps, against) for record in records]
    text = speed_table(values)
    body: dict[str, Any] = {
        "load_average_before": before,
        "rounds": settings.rounds,
        "steps_in_a_turn": settings.steps,
        "warmup_steps": settings.warmup,
        "base": base,
        "contenders": values,
    }
    if more is not None:
        further, shown = more(records)
        body |= further
        text += f"\n\n{shown}" if shown else ""
    return written(suite, settings.case.name, body, text, settings)


def written(suite: str, name: str, body: Mapping[str, Any], text: str, settings: Settings) -> Path:
    """Write the record and show its table."""
    path = save(suite, name, body, text, settings.results, settings.site)
    say(f"\n{text}\n\nwrote {path} and .md")
    return path


def load_average() -> list[float]:
    """Return how busy the machine is."""
    return [round(load, 2) for load in os.getloadavg()]
