"""Profiles: the share of a device's data sheet that software reaches, for each kind of device and era of software.

A profile is fitted on published runs, or measured on this machine by `trident plan --calibrate`; never on the run that
is predicted. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.config.schema import Dtype
from trainer.planner.constants import Constant


@dataclass(frozen=True)
class Link:
    """A link between devices: a message of S bytes takes latency + S / (efficiency x rate x S / (S + half))."""

    latency_s: Constant
    efficiency: Constant
    """Share of the link's rate that large messages reach."""
    half_bytes: Constant
    """Message size at which half of that is reached."""


@dataclass(frozen=True)
class Profile:
    """Constants of the time model."""

    name: str
    gemm_efficiency: Constant
    """Share of the peak that a large GEMM reaches."""
    gemm_bandwidth_efficiency: Constant
    """Share of the memory's bandwidth that a GEMM's operands reach."""
    gemm_latency_s: Constant
    """Seconds that each GEMM takes besides."""
    attention_efficiency: Constant
    """Share of the peak that scores and their product with the values reach."""
    bandwidth_efficiency: Constant
    """Share of the memory's bandwidth that element-wise work reaches."""
    launch_s: Constant
    """Fixed seconds of a block in one forward pass of a micro-batch; backward takes twice that."""
    intra_node: Link
    inter_node: Link
    host: Link
    gradient_traffic: Constant
    """Bytes that gradients really take, divided by those of the volume formula."""
    overlap: Constant
    """Share of backward that hides collectives of gradients where they are overlapped."""
    optimizer_efficiency: Constant
    """Share of the memory's bandwidth that the optimizer reaches."""
    step_s: Constant
    """Fixed seconds of a step."""
    error: Constant
    """Relative error of the step time that this profile had on runs that it was not fitted on."""
    memory_error: Constant
    """The same for the peak of memory."""
    measured_on: str | None = None
    """Day of the calibration, as 2026-11-29; None: fitted on published runs, or from data sheets only."""
    peak_flops: Mapping[Dtype, Constant] = field(default_factory=dict)
    """Measured FLOP/s of large GEMMs, which replace the data sheet's."""
    memory_bandwidth: Constant | None = None
    """Measured bytes a second, which replace the data sheet's."""
