"""The bubble of this product's pipelines, micro-batch by micro-batch, against the planner's simulator."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.arena import Contender, ContenderFailed, Running
from benchmarks.bubbles import Bubble, bubble_of
from benchmarks.case import TINY, Case
from benchmarks.contest import load_average, written
from benchmarks.record import table
from benchmarks.settings import Settings, chosen
from trainer.config.schema import PipelineSchedule
from trainer.log import say

FORWARD_S, BACKWARD_S = 0.05, 0.1
"""Passes of a sleeping stage: long beside messages and tiny layers, and backward twice forward, as with GEMMs."""
SLOW = 1.5
"""One stage of the unequal pipeline takes so many times as long."""
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
_WARMUP = 2
"""Steps: in the first one stages tell each other shapes, and the optimizer makes its state."""
_SMALL = replace(TINY, name="sleeping", num_layers=8, micro_batch_size=1)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline that is measured with several numbers of micro-batches."""

    name: str
    kind: PipelineSchedule
    pp: int
    micro_batches: tuple[int, ...]
    slow_stage: int | None = None
    computes: bool = False
    """True if its stages compute; else they sleep."""

    def contender(self, case: Case, steps: int, warmup: int) -> Contender:
        """Return the program that measures it."""
        folded = self.kind is PipelineSchedule.dualpipev
        stages = self.pp * (2 if folded else 1)
        factors = [SLOW if stage == self.slow_stage else 1.0 for stage in range(stages)]
        overrides = [
            f"layout.pipeline_parallel_size={self.pp}",
            f"layout.pipeline_schedule={self.kind.value}",
            "runtime.threads_per_rank=1",
        ]
        options: dict[str, Any] = {
            "overrides": overrides,
            "micro_batches": self.micro_batches,
            "steps": steps,
            "warmup": warmup,
        }
        if not self.computes:
            options["forward_s"] = [FORWARD_S * factor for factor in factors]
            options["backward_s"] = [BACKWARD_S * factor for factor in factors]
        mine = replace(case, micro_batch_size=1) if self.computes else _SMALL
        return Contender(self.name, "paced", mine, options, ranks=self.pp)


_ONE, _FOLDED = PipelineSchedule.f1b1, PipelineSchedule.dualpipev
PIPELINES = (
    Pipeline("1F1B, PP 2, sleeping", _ONE, 2, _COUNTS),
    Pipeline("1F1B, PP 4, sleeping", _ONE, 4, _COUNTS),
    Pipeline("1F1B, PP 4, sleeping, stage 1 slow", _ONE, 4, _COUNTS, slow_stage=1),
    Pipeline("DualPipeV, PP 2, sleeping", _FOLDED, 2, tuple(count for count in _COUNTS if count >= 4)),
    Pipeline("DualPipeV, PP 4, sleeping", _FOLDED, 4, tuple(count for count in _COUNTS if count >= 8)),
    Pipeline("1F1B, PP 2, computing", _ONE, 2, _COUNTS, computes=True),
)


def bubble(settings: Settings) -> Path:
    """Measure every pipeline, one after the other: `--rounds` steps of each number of micro-batches."""
    before = load_average()
    warmup = min(settings.warmup, _WARMUP)
    by_name = {pipeline.name: pipeline for pipeline in PIPELINES}
    contenders = [pipeline.contender(settings.case, settings.rounds, warmup) for pipeline in PIPELINES]
    wanted = chosen(contenders, settings, settings.only[0] if settings.only else "")
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as logs:
        values = [_measured(by_name[contender.name], contender, Path(logs)) for contender in wanted]
    body = {"load_average_before": before, "steps": settings.rounds, "pipelines": values}
    return written("bubble", settings.case.name, body, _tables(values), settings)


def _measured(pipeline: Pipeline, contender: Contender, logs: Path) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": pipeline.name,
        "schedule": pipeline.kind.value,
        "ranks": pipeline.pp,
        "computes": pipeline.computes,
        "case": contender.case.to_dict(),
        "options": dict(contender.options),
    }
    found: list[Bubble] = []
    try:
        running = Running(contender, logs)
        try:
            for count in pipeline.micro_batches:
                turn = running.turn(contender.options["steps"])
                found.append(bubble_of(pipeline.kind, pipeline.pp, count, turn.extras["steps"]))
                say(f"{pipeline.name}, {count} micro-batches: {found[-1].idle:.3f} ({found[-1].simulated_idle:.3f})")
        finally:
            running.close()
    except ContenderFailed as error:
        say(f"{pipeline.name}: {error}")
        return {**values, "skipped": str(error)}
    return {**values, "bubbles": [one.to_dict() for one in found]}


def _tables(values: Sequence[Mapping[str, Any]]) -> str:
    head = ["micro-batches", "waiting (least .. most)", "simulated", "bubble", "simulated", "step, ms", "simulated"]
    parts = []
    for one in values:
        if "skipped" in one:
            parts.append(f"{one['name']}: skipped: {one['skipped']}")
            continue
        rows = [
            [
                str(each["micro_batches"]),
                f"{each['idle']:.3f} ({each['least_idle']:.3f} .. {each['most_idle']:.3f})",
                f"{each['simulated_idle']:.3f}",
                f"{each['bubble']:.3f}",
                f"{each['simulated_bubble']:.3f}",
                f"{each['step_ms']:,.1f}",
                f"{each['simulated_step_ms']:,.1f}",
                f"{each['logged']:.3f}",
            ]
            for each in one["bubbles"]
        ]
        apart = [abs(each["idle"] - each["simulated_idle"]) for each in one["bubbles"]]
        off = [abs(each["simulated_step_ms"] / each["step_ms"] - 1) for each in one["bubbles"]]
        line = (
            f"Waiting is apart by {mean(apart):.4f} in the mean, {max(apart):.4f} at most; the time of the passes by "
            f"{mean(off):.2%} in the mean, {max(off):.2%} at most."
        )
        parts.append(f"## {one['name']}\n\n{table(rows, [*head, 'logged, whole step'])}\n\n{line}")
    return "\n\n".join(parts)
