"""Learning rate as a pure function of the step: nothing to save or restore, the same on every rank. No torch."""

from __future__ import annotations

import math

from trainer.config.schema import OptimizerConfig, ScheduleConfig, ScheduleKind


def learning_rate(
    step: int, optimizer: OptimizerConfig, schedule: ScheduleConfig, total_steps: int, decay_steps: int
) -> float:
    """Return the learning rate of optimizer step `step`.

    Steps 1 to `warmup_steps` climb a straight line that reaches the peak at its last step. After that the rate
    is the peak (constant), or falls to `min_lr_ratio` of it: along a line or a half cosine that ends at step
    `decay_steps` (linear, cosine), or along a line over the last `decay_steps` steps of the run (wsd).
    Later steps stay at the minimum.

    Args:
        step: counted from 1.
        optimizer: holds the peak, `lr`.
        schedule: shape of the curve.
        total_steps: length of the run (wsd counts its decay back from here).
        decay_steps: `RunPlan.decay_steps`.

    Source: cosine: SGDR, arXiv 1608.03983, equation 5 without restarts. wsd: MiniCPM, arXiv 2404.06395, section 4.
    """
    peak, warmup = optimizer.lr, schedule.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    if schedule.kind is ScheduleKind.constant:
        return peak
    if schedule.kind is ScheduleKind.wsd:
        start, end = max(warmup, total_steps - decay_steps), total_steps
    else:
        start, end = warmup, decay_steps
    progress = min(1.0, max(0.0, (step - start) / max(1, end - start)))
    remaining = 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule.kind is ScheduleKind.cosine else 1.0 - progress
    minimum = peak * schedule.min_lr_ratio
    return minimum + (peak - minimum) * remaining
