"""Throughput of a run, from the time of a step and the model's FLOPs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Throughput:
    """Rates of the window of a report."""

    tokens_per_second: float
    """Tokens of all ranks."""
    tokens_per_second_per_gpu: float
    tflops_per_gpu: float
    """Model FLOPs: those that the mathematics needs. Recomputed activations do not count as work."""
    mfu: float | None
    """Share of the device's peak, 0 to 1; None if the peak is not known."""


@dataclass(frozen=True)
class ThroughputMeter:
    """Turns the time of a step into rates. No collectives: every number but the time is known beforehand.

    Args:
        tokens_per_step: tokens of all ranks in a full batch.
        flops_per_token: training FLOPs of the whole model for one token.
        world_size: ranks, one device each.
        peak_flops: FLOP/s of one device, or None.

    Source: model FLOPs utilisation: PaLM, arXiv 2204.02311, appendix B.
    """

    tokens_per_step: int
    flops_per_token: float
    world_size: int
    peak_flops: float | None

    def measure(self, step_ms: float, step_tokens: float | None = None) -> Throughput:
        """Return the rates of steps that took `step_ms` each, with so many tokens; None: a full batch."""
        tokens = self.tokens_per_step if step_tokens is None else step_tokens
        tokens_per_second = 1000.0 * tokens / max(step_ms, 1e-6)
        per_gpu = tokens_per_second / self.world_size
        flops_per_gpu = per_gpu * self.flops_per_token
        return Throughput(
            tokens_per_second=tokens_per_second,
            tokens_per_second_per_gpu=per_gpu,
            tflops_per_gpu=flops_per_gpu / 1e12,
            mfu=None if self.peak_flops is None else flops_per_gpu / self.peak_flops,
        )
