"""The profile of a device from what was measured on it: kernels and messages first, then what steps take besides.

Rates of kernels and of messages are fitted on their own times. What no kernel shows (element-wise work, Python, the
engine's own work for a micro-batch and for a step, the optimizer) is fitted on steps of small models in the real
engine, by the time model itself, so that its terms mean the same when they are fitted and when they predict. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean

from trainer.calibration.fit import Free, adjusted, nonnegative_fit
from trainer.calibration.measurements import AttentionTime, GemmTime, Measurements, MessageTime
from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype, OffloadKind
from trainer.errors import TridentError
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.profile import Collective, Link, Profile
from trainer.planner.step_time import TimeModel
from trainer.spec.execution import RecomputeKind


class NothingMeasured(TridentError):
    """A calibration has no times of something that every profile needs."""


@dataclass(frozen=True)
class Facts:
    """Facts that stand beside every number of a profile."""

    device: str
    date: str
    software: str
    """Software in a few words, such as `torch 2.9.0`."""

    def source(self, what: str) -> str:
        """Return the source of a constant."""
        return f"measured on {self.date} with {self.software}: {what}"


def kernel_profile(measured: Sequence[Measurements], facts: Facts, is_cpu: bool) -> Profile:
    """Return a profile of the times of kernels and messages; what only steps show has its usual value.

    Args:
        measured: by groups of ranks. Of a CPU the largest group says what all cores reach together.
        facts: day and software.
        is_cpu: whether rates are those of a whole machine, which ranks share.

    Raises:
        NothingMeasured: there is no time of a GEMM or of memory.
    """
    busy = max(measured, key=lambda one: (one.ranks * one.threads if is_cpu else 1, one.ranks))
    together = busy.ranks if is_cpu else 1
    if not busy.gemms or not busy.streams:
        raise NothingMeasured("a device profile needs times of GEMMs and of memory, but none was measured")
    source = facts.source
    streams = [together * one.bytes / one.seconds for one in busy.streams]
    # The largest array is in no cache.
    bandwidth = together * busy.streams[-1].bytes / busy.streams[-1].seconds
    peaks, moved, latency = gemm_rates(busy.gemms)
    return Profile(
        name=f"{facts.device}, calibrated {facts.date}",
        gemm_efficiency=Constant(1.0, "measured peaks are those that GEMMs reach"),
        gemm_bandwidth_efficiency=Constant(
            moved * together / bandwidth, source(f"{len(busy.gemms)} GEMMs of layers, {busy.ranks} ranks at once")
        ),
        gemm_latency_s=Constant(latency, source(f"{len(busy.gemms)} GEMMs of layers")),
        attention_efficiency=Constant(0.3, "of formats whose attention was not measured: a usual share"),
        bandwidth_efficiency=Constant(max(streams) / bandwidth, source("sums of arrays that fit into caches")),
        launch_s=Constant(1e-3 if is_cpu else 6e-4, _USUAL),
        intra_node=link_of(_messages(measured, *_COLLECTIVES), facts, "all collectives") or _no_link(),
        inter_node=link_of(_messages(measured, *_COLLECTIVES), facts, "collectives inside the machine") or _no_link(),
        host=link_of(_messages(measured, "to_device", "to_host"), facts, "copies of pinned memory") or _no_link(),
        gradient_traffic=Constant(1.0, "volume formula"),
        overlap=Constant(0.0 if is_cpu else 0.5, _USUAL),
        optimizer_efficiency=Constant(1.0, _USUAL),
        step_s=Constant(1e-3, _USUAL),
        error=Constant(0.3, _USUAL),
        memory_error=Constant(0.1, "memory is not calibrated"),
        micro_batch_s=Constant(1e-3, _USUAL),
        gather_s=Constant(1e-3, _USUAL),
        host_bandwidth=Constant(bandwidth, source("sums of large arrays")) if is_cpu else None,
        collectives=_collectives(measured, facts),
        measured_on=facts.date,
        peak_flops={
            Dtype(dtype): Constant(together * peak, source(f"{dtype} GEMMs of layers, {busy.ranks} ranks at once"))
            for dtype, peak in peaks.items()
        },
        attention_flops={
            Dtype(dtype): Constant(together * rate, source(f"causal attention in {dtype}, {busy.ranks} ranks at once"))
            for dtype, rate in attention_rates(busy.attention).items()
        },
        memory_bandwidth=Constant(bandwidth, source(f"sums of large arrays, {busy.ranks} ranks at once")),
    )


_USUAL = "a usual value, not measured"
_COLLECTIVES = tuple(one.value for one in Collective)


def _messages(measured: Iterable[Measurements], *kinds: str) -> list[MessageTime]:
    return [one for group in measured for one in group.messages if one.kind in kinds]


def _no_link() -> Link:
    nothing = "not measured: there is only one rank, or host and device have the same memory"
    # Quick, so that what is not there costs nothing.
    return Link(Constant(0.0, nothing), Constant(1.0, nothing), Constant(0.0, nothing), rate=Constant(1e12, nothing))


def _collectives(measured: Iterable[Measurements], facts: Facts) -> dict[Collective, Link]:
    groups = list(measured)
    found = {one: link_of(_messages(groups, one.value), facts, f"{one.value} between ranks") for one in Collective}
    return {one: link for one, link in found.items() if link is not None}


def gemm_rates(gemms: Sequence[GemmTime]) -> tuple[dict[str, float], float, float]:
    """Return FLOP/s by number format, bytes a second of operands, and the seconds of a call, of one rank.

    A GEMM takes FLOPs / peak + bytes / bandwidth + latency (`trainer.planner.kernels`).
    """
    dtypes = list(dict.fromkeys(one.dtype for one in gemms))
    rows = [[*(one.flops * (one.dtype == dtype) for dtype in dtypes), one.bytes, 1.0] for one in gemms]
    *per_flop, per_byte, latency = nonnegative_fit(rows, [one.seconds for one in gemms])
    peaks = {}
    for dtype, cost in zip(dtypes, per_flop, strict=True):
        fastest = max(one.flops / one.seconds for one in gemms if one.dtype == dtype)
        # Where bytes and calls explain all of the time, the fastest one bounds the peak from below.
        peaks[dtype] = min(1 / cost, 3 * fastest) if cost else fastest
    slowest_bytes = min(one.seconds / one.bytes for one in gemms)
    return peaks, 1 / max(per_byte, slowest_bytes * 1e-2), latency


def attention_rates(times: Sequence[AttentionTime]) -> dict[str, float]:
    """Return the FLOP/s of attention by number format: forward and backward are 3.5 times forward's FLOPs."""
    rates: dict[str, list[float]] = {}
    for one in times:
        rates.setdefault(one.dtype, []).append(3.5 * one.forward_flops / one.seconds)
    return {dtype: geometric_mean(found) for dtype, found in rates.items()}


def link_of(messages: Sequence[MessageTime], facts: Facts, what: str) -> Link | None:
    """Return latency, hop and rate of a link from messages of many sizes; None without any."""
    if not messages:
        return None
    rows = [
        [1.0, float(max(0, one.ranks - 2)), one.wire_bytes, max(0.0, one.wire_bytes - CACHED_BYTES)] for one in messages
    ]
    latency, hop, per_byte, uncached = nonnegative_fit(rows, [one.seconds for one in messages])
    source = facts.source(f"{what}, {len(messages)} sizes up to {max(one.bytes for one in messages) >> 20} MiB")
    rate = 1 / per_byte if per_byte else max(one.wire_bytes / one.seconds for one in messages)
    whole = "the rate is a measured one"
    return Link(
        latency_s=Constant(latency, source),
        efficiency=Constant(1.0, whole),
        half_bytes=Constant(0.0, "contained in the latency"),
        hop_s=Constant(hop, source),
        rate=Constant(rate, source),
        cached_bytes=Constant(CACHED_BYTES, "a usual size of caches"),
        uncached_rate=Constant(1 / uncached, source) if uncached else None,
    )


CACHED_BYTES = float(1 << 22)
"""Bytes of a message from which on it is slower than short ones, which stay in a core's caches."""


STEPS = {
    "gemm_efficiency": Free(1.0, 0.1),
    "bandwidth_efficiency": Free(1.0, 1.0),
    "loss_efficiency": Free(1.0, 1.0),
    "half_factor": Free(1.0, 0.5),
    "recompute_factor": Free(1.0, 0.5),
    "launch_s": Free(1e-3, 1.5),
    "micro_batch_s": Free(1e-3, 1.5),
    "step_s": Free(1e-3, 1.5),
    "tensor_call_s": Free(1e-4, 1.5),
    "gather_s": Free(1e-3, 1.5),
    "weight_traffic": Free(1.5, 1.0),
    "optimizer_efficiency": Free(1.0, 0.7),
    "shard_bytes": Free(30.0, 1.0),
    "host_bandwidth": Free(1e10, 1.5),
}
"""Constants that are fitted on steps, with their usual values on a CPU and how far those may be off."""


def fitted_on_steps(
    start: Profile, plans: Sequence[RunPlan], seconds: Sequence[float], cluster: Cluster, facts: Facts
) -> Profile:
    """Return the profile under which the time model predicts measured steps best.

    Args:
        start: profile of the kernels.
        plans: runs whose steps were measured.
        seconds: of a step of each.
        cluster: this machine.
        facts: day and software.
    """

    def under(values: Mapping[str, float]) -> Profile:
        source = facts.source(f"steps of {len(plans)} small models")
        changed = {name: Constant(value, source) for name, value in values.items()}
        return replace(start, **changed)  # type: ignore[arg-type]

    def predict(values: Mapping[str, float]) -> list[float]:
        model = TimeModel(cluster, under(values))
        return [model.step(plan).time.total for plan in plans]

    undetermined = set(_undetermined(plans))
    found = adjusted({name: one for name, one in STEPS.items() if name not in undetermined}, predict, seconds)
    errors = [abs(guess / time - 1) for guess, time in zip(predict(found), seconds, strict=True)]
    told = f"twice the mean error over the {len(plans)} small models that it was fitted on, measured on {facts.date}"
    return replace(under(found), error=Constant(2 * fmean(errors), told))


def _undetermined(plans: Sequence[RunPlan]) -> Iterator[str]:
    """Yield the constants that none of these runs depends on."""
    if not any(plan.zero_stage == 3 for plan in plans):
        yield from ("gather_s", "weight_traffic")
    if not any(plan.zero_stage for plan in plans):
        yield "shard_bytes"
    if all(plan.tensor_parallel_size == 1 for plan in plans):
        yield "tensor_call_s"
    if not any(plan.dtype is not Dtype.fp32 for plan in plans):
        yield "half_factor"
    if not any(plan.execution.recompute is RecomputeKind.full for plan in plans):
        yield "recompute_factor"
    if all(plan.offload is OffloadKind.none for plan in plans):
        yield "host_bandwidth"
