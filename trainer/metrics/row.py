"""The row of a logged step: the names that metrics.jsonl, wandb and the summary share."""

from __future__ import annotations

import math

from trainer.loop.events import StepReport
from trainer.metrics.memory import MemoryPeaks
from trainer.metrics.sink import Row
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
    "memory/peak_allocated_gib",
    "memory/peak_reserved_gib",
    "pipeline/bubble_fraction",
)
"""The names of the loop's own numbers, in order; what hooks measure follows. On CPU a "gpu" is a rank."""


def make_row(report: StepReport, throughput: Throughput, memory: MemoryPeaks) -> Row:
    """Return the row of a report.

    Names without a value are left out: unknown (mfu, evaluation, bubble), or not finite (the gradient norm of a
    step that fp16 skipped), which JSON cannot hold.
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
        "memory/peak_allocated_gib": memory.allocated_gib,
        "memory/peak_reserved_gib": memory.reserved_gib,
        "pipeline/bubble_fraction": report.bubble_fraction,
    }
    assert tuple(values) == ROW_NAMES
    values |= report.measures
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
