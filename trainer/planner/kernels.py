"""Seconds of a layer's work on one rank, by what the time goes to. No torch.

A GEMM takes FLOPs / (efficiency x peak) + bytes / (efficiency x bandwidth) + a latency: an additive roofline, which is
monotone in every size. Backward has two GEMMs for each of forward, and twice the element-wise traffic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype, Software
from trainer.errors import ConfigError
from trainer.planner.cluster import Cluster
from trainer.planner.links import Group, Wires
from trainer.planner.profile import Collective, Profile
from trainer.planner.work import Gemm, Work, element_bytes, gradient_bytes, is_recomputed, layer_work, tokens
from trainer.spec.execution import RecomputeKind
from trainer.spec.model import Layer, LayerKind

FUSED_BACKWARD = 2.5
"""FLOPs of a fused attention's backward, which makes the scores anew, over its forward (arXiv 2307.08691)."""


class Costs(NamedTuple):
    """Seconds of layers for one micro-batch, forward and backward, and the elements of their tensors on one rank."""

    forward: float = 0.0
    backward: float = 0.0
    """Recomputation included."""
    gemm: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    recompute: float = 0.0
    launch: float = 0.0
    tensor_parallel: float = 0.0
    parameters: int = 0
    trained: int = 0
    blocks: int = 0


def all_costs(layers: Iterable[tuple[Costs, int]]) -> Costs:
    """Return the costs of layers together: costs of one, and how many there are like it."""
    return Costs(*map(sum, zip(*([count * value for value in costs] for costs, count in layers), strict=True)))


class Kernels:
    """Times of work on the devices of a cluster under a profile."""

    def __init__(self, cluster: Cluster, profile: Profile) -> None:
        """Keep both."""
        self._cluster = cluster
        self._profile = profile

    def peak(self, plan: RunPlan) -> float:
        """Return the FLOP/s that GEMMs could reach on a whole device, or on all cores of a machine.

        Raises:
            ConfigError: the device does not compute in the run's precision.
        """
        found = self._profile.peak_flops.get(plan.dtype) or self._cluster.peak_flops.get(plan.dtype)
        if found is None:
            known = ", ".join(sorted(dtype.value for dtype in self._cluster.peak_flops))
            raise ConfigError(
                f"precision.dtype must be one of {known} on cluster.device={self._cluster.device}, "
                f"but is {plan.dtype.value}"
            )
        return found.value

    @property
    def bandwidth(self) -> float:
        """Bytes a second of the memory of a device, or of a machine with CPU ranks."""
        return (self._profile.memory_bandwidth or self._cluster.memory_bandwidth).value

    def layer(self, plan: RunPlan, layer: Layer, share: float, wires: Wires, group: Group) -> Costs:
        """Return the costs of a layer.

        Args:
            plan: numbers of the run.
            layer: a layer of its model.
            share: share of a device, or of a machine with CPU ranks, that a rank has.
            wires: links between the ranks.
            group: ranks of the tensor axis.
        """
        profile, software = self._profile, self._cluster.software
        work = layer_work(plan, layer, software)
        gemm = sum(self._gemm(one, plan, share) for one in work.gemms)
        attention = self._attention(work, plan, share)
        moved = self._moved(work, layer, plan, share)
        again = is_recomputed(plan, layer)
        gathering = profile.gather_s.value if work.is_block and plan.zero_stage == 3 else 0.0
        recompute = profile.recompute_factor.value * (gemm + attention + moved) if again else 0.0
        if work.is_block and plan.execution.recompute is RecomputeKind.selective:
            recompute = attention
        backward_attention = attention * (2.0 if profile.score_passes.value else FUSED_BACKWARD)
        rounds = work.rounds_backward + (work.rounds_again if again else 0.0)
        sums = [self._rounds(plan, count, share, wires, group) for count in (work.rounds_forward, rounds)]
        if work.sums:
            sums[0] += wires.seconds(Collective.all_gather, work.sums, group)
        backward_gemm = (1.0 + work.trained_share) * gemm
        forward = gemm + attention + moved + sums[0]
        # A new gradient is added to those of earlier micro-batches, which are read and written.
        added = 2.0 * work.trained * gradient_bytes(plan, software)
        added /= profile.gemm_bandwidth_efficiency.value * self.bandwidth * share
        backward = backward_gemm + backward_attention + 2.0 * moved + added + recompute + sums[1]
        launches = [0.0, 0.0]
        if work.is_block:
            passes = 3.0 if again else 2.0
            launches = [
                units * profile.launch_s.value + gathering + max(0.0, units * profile.floor_s.value - busy)
                for units, busy in ((1.0, forward), (passes, backward))
            ]
        forward += launches[0]
        backward += launches[1]
        return Costs(
            forward,
            backward,
            gemm=gemm + backward_gemm,
            attention=attention + backward_attention,
            elementwise=3.0 * moved + added,
            recompute=recompute,
            launch=sum(launches),
            tensor_parallel=sum(sums),
            parameters=work.parameters,
            trained=work.trained,
            blocks=int(work.is_block),
        )

    def _gemm(self, gemm: Gemm, plan: RunPlan, share: float) -> float:
        profile = self._profile
        side = gemm.narrowest
        efficiency = profile.gemm_efficiency.value * side / (side + profile.gemm_half_width.value)
        moved = gemm.elements * element_bytes(plan)
        seconds = gemm.flops / (efficiency * self.peak(plan) * share)
        seconds += moved / (profile.gemm_bandwidth_efficiency.value * self.bandwidth * share)
        return seconds + profile.gemm_latency_s.value

    def _moved(self, work: Work, layer: Layer, plan: RunPlan, share: float) -> float:
        profile = self._profile
        efficiency, factor = profile.bandwidth_efficiency, 1.0
        if layer.kind is LayerKind.head and profile.loss_efficiency is not None:
            efficiency = profile.loss_efficiency
        elif plan.dtype is not Dtype.fp32:
            factor = profile.half_factor.value
        return factor * work.moved_bytes / (efficiency.value * self.bandwidth * share)

    def _attention(self, work: Work, plan: RunPlan, share: float) -> float:
        profile = self._profile
        rate = profile.attention_flops.get(plan.dtype)
        peak = profile.attention_efficiency.value * self.peak(plan) if rate is None else rate.value
        flops = work.attention_flops * (profile.causal_share.value if work.is_causal else 1.0)
        seconds = flops / (peak * share)
        if work.has_odd_heads:
            seconds *= profile.odd_head_factor.value
        moved = profile.score_passes.value * work.scores * element_bytes(plan)
        return seconds + moved / (profile.bandwidth_efficiency.value * self.bandwidth * share)

    def _rounds(self, plan: RunPlan, rounds: float, share: float, wires: Wires, group: Group) -> float:
        """Return the exposed time of hidden states that go round the ring: sums, or gathers and scatters."""
        if rounds == 0.0 or group.ranks < 2:
            return 0.0
        whole = float(tokens(plan) * plan.model.hidden_size * element_bytes(plan))
        if plan.sequence_parallel:
            gather = wires.seconds(Collective.all_gather, whole, group)
            scatter = wires.seconds(Collective.reduce_scatter, whole, group)
            calls, seconds = rounds, rounds * ((gather + scatter) / 2 + self._laid_out(plan, whole, share))
        else:
            calls = rounds / 2
            seconds = calls * wires.seconds(Collective.all_reduce, whole, group)
        return (seconds + calls * self._profile.tensor_call_s.value) * (1.0 - self._profile.tensor_overlap.value)

    def _laid_out(self, plan: RunPlan, whole: float, share: float) -> float:
        """Return the seconds in which a gather or a scatter along the sequence puts its tokens in order.

        Trident keeps sequences first, collectives want the sequence axis first: unless there is one sequence, the shard
        and the whole are read and written once more. Megatron keeps the sequence axis first.
        """
        if self._cluster.software is Software.megatron or plan.micro_batch_size == 1:
            return 0.0
        moved = 2.0 * whole * (1.0 + 1.0 / plan.tensor_parallel_size)
        return moved / (self._profile.bandwidth_efficiency.value * self.bandwidth * share)
