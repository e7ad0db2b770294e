"""The row of a logged step: the names that metrics.jsonl, wandb and the summary share."""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainer.loop.events import StepReport
from trainer.metrics.across import Across
from trainer.metrics.sink import Row
from trainer.metrics.straggler import Slowest
from trainer.metrics.throughput import Throughput

ROW_NAMES = (
    "step",
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "train/tokens_seen",
    "eval/loss",
    "perf/tokens_per_second",
    "perf/tokens_per_second_per_gpu",
    "perf/tflops_per_gpu",
    "perf/mfu",
    "time/step_ms",
    "time/data_wait_ms",
    "time/step_p50_ms",
    "time/step_p95_ms",
    "time/step_p99_ms",
    "memory/peak_allocated_gib",
    "memory/peak_reserved_gib",
    "pipeline/bubble_fraction",
    "train/skipped_batches",
)
"""Names that every run knows, in order. On CPU a "gpu" is a rank. `make_row` adds others after them."""

_PERCENTILES = ("time/step_p50_ms", "time/step_p95_ms", "time/step_p99_ms")


def make_row(
    report: StepReport,
    throughput: Throughput,
    across: Across,
    slowest: Slowest | None = None,
    planned: Mapping[str, float] | None = None,
) -> Row:
    """Return the row of a report: `ROW_NAMES`, then names that depend on the run.

    These are `memory/stage<k>/peak_allocated_gib` and `time/stage<k>/busy_ms` with more than one stage,
    `time/slowest_rank` with more than one rank, `system/node<k>/...` when nodes were read, the measurements of
    hooks (`StepReport.measures`), and `planned`: `plan/...` of a run whose needs were predicted.
    Names without a value are left out: unknown (mfu, evaluation, bubble), or not finite (the gradient norm of a
    step that was skipped), which JSON cannot hold.
    """
    values: dict[str, float | int | None] = {
        "step": report.step,
        "train/loss": report.loss,
        "train/grad_norm": report.grad_norm,
        "train/learning_rate": report.learning_rate,
        "train/tokens_seen": report.tokens_seen,
        "eval/loss": report.eval_loss,
        "perf/tokens_per_second": throughput.tokens_per_second,
        "perf/tokens_per_second_per_gpu": throughput.tokens_per_second_per_gpu,
        "perf/tflops_per_gpu": throughput.tflops_per_gpu,
        "perf/mfu": throughput.mfu,
        "time/step_ms": report.step_ms,
        "time/data_wait_ms": report.data_wait_ms,
        **dict(zip(_PERCENTILES, report.step_percentiles_ms, strict=True)),
        "memory/peak_allocated_gib": across.fullest.allocated_gib,
        "memory/peak_reserved_gib": across.fullest.reserved_gib,
        "pipeline/bubble_fraction": report.bubble_fraction,
        "train/skipped_batches": report.skipped_steps,
    }
    if len(across.stages) > 1:
        values |= {f"memory/stage{k}/peak_allocated_gib": peak for k, peak in enumerate(across.stages)}
        values |= {f"time/stage{k}/busy_ms": busy for k, busy in enumerate(across.busy_ms)}
    if slowest is not None and len(across.times) > 1:
        values |= {"time/slowest_rank": slowest.rank, "time/slowest_rank_ratio": slowest.ratio}
    for k, node in enumerate(across.nodes):
        values |= {f"system/node{k}/{name}": value for name, value in node.items()}
    values = {**report.measures, **(planned or {}), **values}
    ordered = [*ROW_NAMES, *(name for name in values if name not in ROW_NAMES)]
    return {name: value for name in ordered if (value := values[name]) is not None and math.isfinite(value)}
