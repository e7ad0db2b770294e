"""The layout that `layout=auto` takes against all layouts measured, on two CPU ranks.

`trident plan --calibrate` goes before. All layouts without recomputation and offload, which only save memory that these
models do not need, train in turns. What counts is how much slower the chosen one is than the fastest that was measured.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arena import Contender
from benchmarks.case import Case
from benchmarks.contest import load_average, written
from benchmarks.record import table
from benchmarks.settings import Settings, UsageError, check_known
from benchmarks.suites.plan_time import CASES, TOGETHER, measured
from trainer.calibration.measurements import lower_quartile
from trainer.hardware import look_here
from trainer.planner.cluster import cluster_of
from trainer.planner.layout_search import Found, search
from trainer.planner.predict import Planner
from trainer.planner.profile_file import CPU, find_calibration

RANKS = 2
_HELD = frozenset(("zero.offload", "zero.offload_parameters", "model.recompute"))


def ranked(case: Case) -> tuple[Found, ...]:
    """Return all layouts of a model on two ranks, the fastest first."""
    base = case.plan(("layout=dp2",), RANKS)
    planner = Planner(cluster_of(base.config, RANKS, look_here(os.environ)))
    return search(planner, base, RANKS, _HELD, shown=1000).ranked


def plan_layouts(settings: Settings) -> Path:
    """Measure every layout of three models, and say how good the one that is chosen is.

    Raises:
        UsageError: this machine is not calibrated, or a model that is asked for does not exist.
    """
    found = find_calibration(CPU)
    if found.calibration is None:
        raise UsageError(found.note or "plan_layouts needs a device profile of this machine: trident plan --calibrate")
    check_known(settings.only, [case.name for case in CASES], "--only", "model")
    before = load_average()
    chosen = [case for case in CASES if not settings.only or case.name in settings.only]
    models = {case.name: _model(case, settings) for case in chosen}
    body: dict[str, Any] = {
        "load_average_before": before,
        "rounds": settings.rounds,
        "warmup_steps": settings.warmup,
        "profile": {"name": found.calibration.profile.name, "date": found.calibration.date},
        "models": models,
    }
    return written("plan_layouts", "cpu", body, text(models), settings)


def _model(case: Case, settings: Settings) -> dict[str, Any]:
    layouts = ranked(case)
    contenders = [_contender(case, found) for found in layouts]
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as logs:
        records = [
            record
            for start in range(0, len(contenders), TOGETHER)
            for record in measured(contenders[start : start + TOGETHER], Path(logs), settings)
        ]
    rows = []
    for found, record in zip(layouts, records, strict=True):
        row: dict[str, Any] = {
            "overrides": list(found.words),
            "predicted_s": round(found.prediction.time.total, 4),
        }
        if record.reason is None:
            row["measured_s"] = round(lower_quartile([turn.seconds / settings.steps for turn in record.turns]), 4)
        else:
            row["skipped"] = record.reason
        rows.append(row)
    fastest = min(row["measured_s"] for row in rows if "measured_s" in row)
    return {"case": case.to_dict(), "layouts": rows, "chosen_over_fastest": round(rows[0]["measured_s"] / fastest, 4)}


def _contender(case: Case, found: Found) -> Contender:
    case = replace(case, micro_batch_size=found.plan.micro_batch_size)
    words = [*(word for word in found.words if not word.startswith("batch.")), "runtime.threads_per_rank=1"]
    return Contender(" ".join(found.words), "trident", case, {"overrides": words}, ranks=RANKS, threads=1)


def text(models: dict[str, dict[str, Any]]) -> str:
    """Return a table for each model, its layouts in the order in which they were ranked."""
    parts = []
    for name, model in models.items():
        rows = [
            [" ".join(row["overrides"]), f"{row['predicted_s']:.3f}", f"{row['measured_s']:.3f}"]
            for row in model["layouts"]
            if "measured_s" in row
        ]
        parts.append(
            f"{name}: the chosen layout takes {model['chosen_over_fastest']:.3f} x the step of the fastest\n\n"
            + table(rows, ["layout, as ranked", "predicted, s a step", "measured"])
        )
    return "\n\n".join(parts)
