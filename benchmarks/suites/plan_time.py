"""The planner's step times against measured ones, on the CPU: `trident plan --calibrate` first.

Layouts of several models train in turns, as users run them; none of these models is one that the calibration trains.
What is compared are the seconds of a step, lower quartile over the turns, and the order of the layouts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.arena import Contender, ContenderFailed, Record, Running
from benchmarks.case import Case
from benchmarks.contest import load_average, written
from benchmarks.record import table
from benchmarks.settings import Settings, UsageError, check_known
from trainer.calibration.measurements import lower_quartile
from trainer.config.plan import RunPlan
from trainer.hardware import look_here
from trainer.log import say
from trainer.planner.cluster import cluster_of
from trainer.planner.profile import Profile
from trainer.planner.profile_file import CPU, find_calibration
from trainer.planner.step_time import TimeModel

TOGETHER = 6
"""Layouts whose processes are alive at the same time: they take memory."""
ENOUGH = 0.15
"""Relative error that is aimed at."""
_SMALL = Case("small", hidden_size=256, num_layers=8, num_heads=4, ffn_hidden_size=1024, global_batch_size=8)
_MIDDLE = Case("middle")
_WIDE = replace(_MIDDLE, name="wide", hidden_size=768, num_layers=4, num_heads=12, ffn_hidden_size=3072, seq_length=128)
_LLAMA = replace(
    _MIDDLE,
    name="llama",
    family="llama",
    hidden_size=1024,
    num_layers=3,
    num_heads=16,
    ffn_hidden_size=2816,
    seq_length=128,
    global_batch_size=4,
)
CASES = (_SMALL, _WIDE, _LLAMA)
"""Models whose layouts are searched and measured one by one."""


def layouts(threads: int) -> list[Contender]:
    """Return what is measured: models, layouts, micro-batches and number formats that differ from each other."""

    def one(case: Case, micro_batch: int, layout: str, *words: str, dtype: str = "fp32") -> Contender:
        ranks = 1 if layout == "single" else 2
        case = replace(case, micro_batch_size=micro_batch, dtype=dtype)
        shown = " ".join([case.name, layout, *(word.partition("=")[2] for word in words), f"mb{micro_batch}", dtype])
        layout_words = () if ranks == 1 else (f"layout={layout}", "runtime.threads_per_rank=1")
        overrides = {"overrides": [*layout_words, *words]}
        return Contender(shown, "trident", case, overrides, ranks=ranks, threads=threads if ranks == 1 else 1)

    return [
        one(_SMALL, 2, "single"),
        one(_SMALL, 4, "single", dtype="bf16"),
        one(_SMALL, 1, "dp2", "zero=stage0"),
        one(_SMALL, 2, "dp2", "zero=stage3"),
        one(_SMALL, 4, "tp2"),
        one(_SMALL, 1, "pp2"),
        one(_MIDDLE, 8, "single"),
        one(_MIDDLE, 4, "single", "model.recompute=full"),
        one(_MIDDLE, 4, "dp2", "zero=stage1"),
        one(_MIDDLE, 8, "tp2_sp"),
        one(_MIDDLE, 1, "pp2_dualpipev"),
        one(_MIDDLE, 4, "dp2", "zero=stage2", dtype="bf16"),
        one(_WIDE, 2, "dp2", "zero=stage1"),
        one(_WIDE, 4, "dp2", "zero=stage1_offload"),
        one(_WIDE, 4, "tp2", dtype="bf16"),
        one(_WIDE, 2, "pp2"),
        one(_LLAMA, 4, "single"),
        one(_LLAMA, 2, "dp2", "zero=stage3"),
    ]


def plan_of(contender: Contender) -> RunPlan:
    """Return the plan of a contender's run."""
    return contender.case.plan(tuple(contender.options["overrides"]), contender.ranks)


def plan_time(settings: Settings) -> Path:
    """Predict and measure; write both, their errors, and how well the order is predicted.

    Raises:
        UsageError: this machine is not calibrated, or a layout that is asked for does not exist.
    """
    found = find_calibration(CPU)
    if found.calibration is None:
        raise UsageError(found.note or "plan_time needs a device profile of this machine: trident plan --calibrate")
    calibration = found.calibration
    contenders = layouts(settings.threads)
    check_known(settings.only, [one.name for one in contenders], "--only", "layout")
    chosen = [one for one in contenders if not settings.only or one.name in settings.only]
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as logs:
        records = [
            record
            for start in range(0, len(chosen), TOGETHER)
            for record in measured(chosen[start : start + TOGETHER], Path(logs), settings)
        ]
    rows = [compared(record, calibration.profile, settings.steps) for record in records]
    body: dict[str, Any] = {
        "load_average_before": before,
        "rounds": settings.rounds,
        "warmup_steps": settings.warmup,
        "profile": {"name": calibration.profile.name, "date": calibration.date},
        "layouts": rows,
        **summary([row for row in rows if "skipped" not in row]),
    }
    return written("plan_time", "cpu", body, text(rows, body), settings)


def measured(contenders: Sequence[Contender], logs: Path, settings: Settings) -> list[Record]:
    """Let layouts train in turns and return a record of each."""
    records = [Record(contender) for contender in contenders]
    running: dict[int, Running] = {}
    try:
        for index, record in enumerate(records):
            try:
                running[index] = Running(record.contender, logs)
                record.start_seconds = running[index].start_seconds
                running[index].turn(settings.warmup)
            except ContenderFailed as error:
                record.reason = str(error)
                say(f"skipped {record.contender.name}: {error}")
                if index in running:
                    running.pop(index).close()
                continue
            say(f"ready   {record.contender.name} ({record.start_seconds:.1f} s)")
        for number in range(settings.rounds):
            for index in sorted(running, reverse=number % 2 == 1):
                records[index].turns.append(running[index].turn(settings.steps))
    finally:
        for one in running.values():
            one.close()
    return records


def compared(record: Record, profile: Profile, steps: int) -> dict[str, Any]:
    """Return a layout's measured and predicted seconds of a step."""
    contender = record.contender
    values: dict[str, Any] = {
        "name": contender.name,
        "case": contender.case.to_dict(),
        "overrides": contender.options["overrides"],
        "ranks": contender.ranks,
    }
    if record.reason is not None:
        return {**values, "skipped": record.reason}
    seconds = [turn.seconds / steps for turn in record.turns]
    plan = plan_of(contender)
    cluster = cluster_of(plan.config, contender.ranks, look_here(os.environ))
    predicted = TimeModel(cluster, profile).step(plan).time
    found = lower_quartile(seconds)
    return values | {
        "turn_seconds": [round(one, 4) for one in seconds],
        "measured_s": round(found, 4),
        "predicted_s": round(predicted.total, 4),
        "error": round(predicted.total / found - 1, 4),
        "predicted_parts_s": {name: round(value, 4) for name, value in predicted.by_part.items()},
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the errors over all layouts, and Spearman's rank correlation of predicted and measured times."""
    errors = [abs(row["error"]) for row in rows]
    if len(rows) < 2:
        return {}
    return {
        "mean_error": round(fmean(errors), 4),
        "largest_error": max(errors),
        "within_15_percent": sum(error <= ENOUGH for error in errors),
        "spearman": round(spearman([row["predicted_s"] for row in rows], [row["measured_s"] for row in rows]), 4),
    }


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the correlation of ranks; equal values share their mean rank."""
    a, b = _ranks(one), _ranks(other)
    middle = (len(a) + 1) / 2
    both = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = [sum((x - middle) ** 2 for x in ranks) for ranks in (a, b)]
    return float(both / (spread[0] * spread[1]) ** 0.5) if all(spread) else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


def text(rows: Sequence[Mapping[str, Any]], body: Mapping[str, Any]) -> str:
    """Return the table and what follows from it."""
    shown = [
        [row["name"], f"{row['measured_s']:.3f}", f"{row['predicted_s']:.3f}", f"{100 * row['error']:+.1f} %"]
        if "skipped" not in row
        else [row["name"], "-", "-", f"skipped: {row['skipped']}"]
        for row in rows
    ]
    lines = table(shown, ["layout", "measured, s a step", "predicted", "error"])
    if "spearman" not in body:
        return lines
    return (
        f"{lines}\n\nMean error {100 * body['mean_error']:.1f} %, largest {100 * body['largest_error']:.1f} %, "
        f"{body['within_15_percent']} of {len(rows)} within 15 %, Spearman {body['spearman']:.3f}."
    )
