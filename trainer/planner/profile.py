"""Profiles: the share of a device's data sheet that software reaches, for each kind of device and era of software.

A profile is fitted on published runs, or measured on this machine by `trident plan --calibrate`; never on the run that
is predicted. `trainer.planner.step_time` says how each number is used. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from trainer.config.schema import Dtype
from trainer.planner.constants import Constant

ZERO = Constant(0.0, "this term is not modelled here")


class Collective(Enum):
    """An exchange between ranks, by the data that it moves."""

    all_reduce = "all_reduce"
    """Every rank ends with the sum of all ranks' tensors."""
    all_gather = "all_gather"
    """Every rank ends with all ranks' parts."""
    reduce_scatter = "reduce_scatter"
    """Every rank ends with its part of the sum."""
    send = "send"
    """One rank hands a tensor to another one."""


@dataclass(frozen=True)
class Link:
    """A link between devices.

    A collective of n ranks, of which each sends S bytes (as rings do: `trainer.planner.links`), takes
    latency + (n - 2) hop + S / (efficiency x rate x S / (S + half)) seconds; bytes above `cached_bytes` take
    1 / `uncached_rate` more each.
    """

    latency_s: Constant
    efficiency: Constant
    """Share of the link's rate that large messages reach."""
    half_bytes: Constant
    """Bytes that a rank sends at which half of that is reached."""
    hop_s: Constant = ZERO
    """Seconds that each rank above two adds."""
    rate: Constant | None = None
    """Measured bytes a second and direction of a rank, which replace the data sheet's."""
    cached_bytes: Constant = ZERO
    """Bytes that a rank sends at once and that are still in its caches, where messages go through memory."""
    uncached_rate: Constant | None = None
    """Measured bytes a second of what goes beyond them, besides `rate`; None: long messages are as fast."""


@dataclass(frozen=True)
class Profile:
    """Constants of the time model.

    Of a CPU, rates are those of a whole machine whose cores all work: ranks have a share of them by their threads.
    """

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
    """Between ranks of a machine."""
    inter_node: Link
    """Between ranks of different machines."""
    host: Link
    """Between a device and the memory of its machine."""
    gradient_traffic: Constant
    """Bytes that gradients really take, divided by those of the volume formula."""
    overlap: Constant
    """Share of computing that hides collectives of gradients and weights where they are overlapped."""
    optimizer_efficiency: Constant
    """Share of the memory's bandwidth that the optimizer reaches."""
    step_s: Constant
    """Fixed seconds of a step."""
    error: Constant
    """Relative error of the step time that this profile had on runs that it was not fitted on."""
    memory_error: Constant
    """The same for the peak of memory."""
    gemm_half_width: Constant = ZERO
    """Smallest side of a GEMM at which half of `gemm_efficiency` is reached; 0: sides have no influence."""
    score_passes: Constant = ZERO
    """Times that all scores of attention are written to memory or read from it in forward; 0: a fused attention."""
    causal_share: Constant = field(default=Constant(1.0, "attention computes all scores, also of later tokens"))
    """Share of the scores that are computed: 0.5 for a kernel that leaves out those of later tokens."""
    odd_head_factor: Constant = field(default=Constant(1.0, "heads of every width are as fast"))
    """Factor of the time of attention where `head_dim` is not a multiple of 8, which tensor cores ask for."""
    weight_traffic: Constant = field(default=Constant(1.0, "weights are gathered at the rate of other collectives"))
    """Bytes that gathering the weights of ZeRO-3 really takes, divided by those of the volume formula."""
    floor_s: Constant = ZERO
    """Least seconds of a block in one forward pass of a micro-batch, in which the host starts its kernels; backward
    takes at least twice that."""
    tensor_overlap: Constant = ZERO
    """Share of the collectives of the tensor axis that GEMMs hide."""
    tensor_call_s: Constant = ZERO
    """Seconds of each collective of hidden states over the tensor axis, beyond its message: ranks wait for the slowest
    one, which is never the same, and Python calls it."""
    micro_batch_s: Constant = ZERO
    """Fixed seconds of a micro-batch on each pipeline rank, forward and backward: Python of the engine, the loss."""
    loss_efficiency: Constant | None = None
    """Share of the memory's bandwidth that the loss reaches, whose chunks of logits may stay in caches.

    None: that of other element-wise work."""
    half_factor: Constant = field(default=Constant(1.0, "half as many bytes take half the time"))
    """Factor of the time of element-wise work in bf16 and fp16, beyond what its bytes take."""
    recompute_factor: Constant = field(default=Constant(1.0, "a second forward pass takes as long as the first"))
    """Factor of the time of what full recomputation computes again."""
    shard_bytes: Constant = ZERO
    """Bytes that ZeRO's buckets move through memory for each element that a rank trains, each time it reduces."""
    attention_flops: Mapping[Dtype, Constant] = field(default_factory=dict)
    """Measured FLOP/s of attention by number format, which replace `attention_efficiency` x peak."""
    gather_s: Constant = ZERO
    """Fixed seconds of a block in one pass under ZeRO-3, which gathers its weights: hooks, and calls of collectives."""
    host_bandwidth: Constant | None = None
    """Bytes a second that an optimizer on the host moves through the machine's memory, all ranks of it together.

    None: optimizers on the host are not modelled, and neither is offload."""
    nvme_bandwidth: Constant | None = None
    """Bytes a second of the drives of a machine, all ranks of it together. None: offload to them is not modelled."""
    collectives: Mapping[Collective, Link] = field(default_factory=dict)
    """Links as single collectives of ranks of a machine were measured; those that are missing take `intra_node`."""
    measured_on: str | None = None
    """Day of the calibration, as 2026-11-29; None: fitted on published runs, or from data sheets only."""
    peak_flops: Mapping[Dtype, Constant] = field(default_factory=dict)
    """Measured FLOP/s of large GEMMs, which replace the data sheet's."""
    memory_bandwidth: Constant | None = None
    """Measured bytes a second, which replace the data sheet's."""
