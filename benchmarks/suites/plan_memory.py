"""Resident memory of this product's ranks, layout by layout, beside what the planner says before they start."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.arena import Contender, ContenderFailed, train_alone
from benchmarks.case import CASES, Case
from benchmarks.contest import load_average, written
from benchmarks.record import table
from benchmarks.settings import Settings, chosen
from trainer.config.plan import RunPlan
from trainer.log import say
from trainer.planner.own_memory import OwnMemory
from trainer.planner.prediction import StageMemory

MIB = 1 << 20
_WARMUP = 2
"""Steps: the first makes the optimizer's state, the second has everything."""
_LAYOUTS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("one rank", 1, ()),
    ("full recomputation", 1, ("model.recompute=full",)),
    ("selective recomputation", 1, ("model.recompute=selective",)),
    ("loss not fused", 1, ("model.fused_loss=false",)),
    ("dropout", 1, ("model.dropout=0.1", "model.attention_dropout=0.1")),
    ("bf16", 1, ("precision=bf16",)),
    ("ZeRO-1 + offload", 1, ("zero=stage1_offload",)),
    ("DP2 ZeRO-0", 2, ("layout=dp2", "zero=stage0")),
    ("DP2 ZeRO-1", 2, ("layout=dp2", "zero=stage1")),
    ("DP2 ZeRO-2", 2, ("layout=dp2", "zero=stage2")),
    ("DP2 ZeRO-3", 2, ("layout=dp2", "zero=stage3")),
    ("DP2 ZeRO-1 bf16", 2, ("layout=dp2", "zero=stage1", "precision=bf16")),
    ("DP2 ZeRO-2 bf16", 2, ("layout=dp2", "zero=stage2", "precision=bf16")),
    ("DP2 ZeRO-3 bf16", 2, ("layout=dp2", "zero=stage3", "precision=bf16")),
    ("DP2 ZeRO-1 + offload", 2, ("layout=dp2", "zero=stage1_offload")),
    ("DP2 ZeRO-2 + offload", 2, ("layout=dp2", "zero=stage2_offload")),
    ("DP2 ZeRO-3 + offload", 2, ("layout=dp2", "zero=stage3_offload")),
    ("TP2", 2, ("layout=tp2",)),
    ("TP2, sequence parallel", 2, ("layout=tp2", "layout.sequence_parallel=true")),
    ("PP2", 2, ("layout=pp2", "zero=stage0")),
    ("PP2, full recomputation", 2, ("layout=pp2", "zero=stage0", "model.recompute=full")),
    ("PP2 bf16", 2, ("layout=pp2", "zero=stage1", "precision=bf16")),
    ("PP2 DualPipeV", 2, ("layout=pp2", "zero=stage0", "layout.pipeline_schedule=dualpipev")),
    ("PP2 TP2", 4, ("layout.pipeline_parallel_size=2", "layout.tensor_parallel_size=2", "zero=stage0")),
    ("PP2 DP2 ZeRO-1", 4, ("layout.pipeline_parallel_size=2", "layout.data_parallel_size=2", "zero=stage1")),
)
"""Name, ranks, and words after `trident train`."""
_FITTED = ("one rank", "full recomputation", "bf16", "DP2 ZeRO-2", "DP2 ZeRO-2 bf16", "TP2")
"""Layouts on which the planner's overhead of a CPU rank was fitted; the others are held out."""


def plan_memory(settings: Settings) -> Path:
    """Measure every layout, each in fresh processes and alone."""
    before = load_average()
    case = CASES["cpu_30m"] if settings.case.name == "cpu" else settings.case
    contenders = [_contender(case, *layout) for layout in _LAYOUTS]
    wanted = chosen(contenders, settings, contenders[0].name)
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as logs:
        values = [_measured(contender, Path(logs)) for contender in wanted]
    body = {"load_average_before": before, "layouts": values}
    return written("plan_memory", case.name, body, _table(values), settings)


def _contender(case: Case, name: str, ranks: int, words: Sequence[str]) -> Contender:
    # Micro-batches of four sequences, four of them: enough for every pipeline.
    replicas = 2 if any("dp2" in word or "data_parallel_size=2" in word for word in words) else 1
    sized = replace(case, micro_batch_size=4, global_batch_size=16 * replicas)
    options = {"overrides": [*words, "runtime.threads_per_rank=1"], "census": 0}
    return Contender(name, "zero_states", sized, options, ranks=ranks)


def plan_of(contender: Contender) -> RunPlan:
    """Return the plan of a contender's run."""
    return contender.case.plan(tuple(contender.options["overrides"]), contender.ranks)


def fullest(plan: RunPlan) -> StageMemory:
    """Return the planned memory of the pipeline rank that needs most."""
    return max(OwnMemory(on_cpu=True).stages(plan), key=lambda stage: stage.peak)


def _measured(contender: Contender, logs: Path) -> dict[str, Any]:
    stage = fullest(plan_of(contender))
    values: dict[str, Any] = {
        "name": contender.name,
        "ranks": contender.ranks,
        "part": "fitted" if contender.name in _FITTED else "held out",
        "case": contender.case.to_dict(),
        "overrides": contender.options["overrides"],
        "planned": {**asdict(stage), "backward": stage.backward, "peak": stage.peak},
    }
    try:
        _, turn = train_alone(contender, logs, _WARMUP, 1)
    except ContenderFailed as error:
        say(f"{contender.name}: {error}")
        return {**values, "skipped": str(error)}
    found = {key: turn.extras[key] for key in ("held_before_bytes", "start_bytes", "step_bytes")}
    measured = max(found["start_bytes"], found["step_bytes"])
    error_of_plan = stage.peak / measured - 1
    say(f"{contender.name}: {measured / MIB:.0f} MiB, planned {stage.peak / MIB:.0f} ({error_of_plan:+.1%})")
    return {**values, **found, "error": error_of_plan}


def _table(values: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in values:
        if "skipped" in one:
            rows.append([one["name"], f"skipped: {one['skipped']}"])
            continue
        planned = one["planned"]
        parts = [f"{planned[key] / MIB:,.0f}" for key in ("backward", "step_peak", "init_peak")]
        live = [f"{one[key] / MIB:,.0f}" for key in ("step_bytes", "start_bytes")]
        rows.append([one["name"], str(one["ranks"]), one["part"], *live, *parts, f"{one['error']:+.1%}"])
    head = ["MiB of the fullest rank", "ranks", "overhead", "a step", "start"]
    return table(rows, [*head, "planned: backward", "optimizer step", "start", "peak / measured"])
