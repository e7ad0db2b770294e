"""Bytes that a rank holds with each ZeRO stage at the fullest moment of backward, divided by purpose. No torch.

Activations are left out: they are the same with every stage. Source: ZeRO (arXiv 1910.02054, section 3), and the way in
which DeepSpeed and its repairs here do it: a bucket of gradients is collected while the layers before it are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from trainer.config.ds_json import block_elements, largest_parameter, reduce_bucket_size
from trainer.config.plan import RunPlan
from trainer.config.schema import DeviceKind, Dtype, OffloadKind

MIB = 1 << 20


@dataclass(frozen=True)
class ZeroBytes:
    """One rank's states, and the memory that sharding them takes besides."""

    weights: int
    gathered: int
    """Weights of ZeRO-3 that are whole at once."""
    gradients: int
    master: int
    """fp32 master weights beside those of half precision; fp32 weights are their own master weights."""
    moments: int
    buffers: int
    """Buffers of collectives and of offload."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(asdict(self).values())


def zero_bytes(plan: RunPlan, stage: int | None = None, offload: OffloadKind | None = None) -> ZeroBytes:
    """Return the bytes that a rank holds in the memory that its device computes in.

    Args:
        plan: numbers of the run.
        stage: ZeRO stage; None for the plan's.
        offload: offload of the optimizer's state; None for the plan's.
    """
    stage = plan.zero_stage if stage is None else stage
    offload = plan.offload if offload is None else offload
    replicas = plan.data_parallel_size
    width = 4 if plan.dtype is Dtype.fp32 else 2
    size, unit = plan.tensor_parallel_size, plan.execution.vocab_unit
    sizes_here = {tensor: tensor.local_numel(size, unit) for tensor in plan.model.tensors.values()}
    held = sum(sizes_here.values()) // plan.pipeline_parallel_size
    trains = plan.execution.trains
    trained = sum(here for tensor, here in sizes_here.items() if trains(tensor)) // plan.pipeline_parallel_size
    own = trained // replicas if stage else trained
    block, largest = block_elements(plan), largest_parameter(plan)
    bucket = reduce_bucket_size(plan)
    # Those of the layer that is computed, which the bucket does not hold yet.
    leaving = min(block, trained)
    # DeepSpeed's bf16 optimizer, which stage 1 has on the device, keeps the sum of all gradients in fp32.
    is_bf16_optimizer = plan.dtype is Dtype.bf16 and offload is OffloadKind.none
    # Between CPU ranks fp32 gradients of stage 1 have a place of their own, from which they are summed.
    is_flat = stage == 1 and width == 4 and plan.device is DeviceKind.cpu and offload is OffloadKind.none
    whole_gradients = stage == 0 or is_flat or (stage == 1 and (plan.num_micro_batches > 1 or is_bf16_optimizer))
    buffers = 0
    if replicas > 1:
        # A bucket and what is received of it; ZeRO-3 has another one, as it is cut. Without ZeRO a bucket ends with the
        # parameter that fills it; from a place of their own gradients need not be copied to one.
        sizes = {0: min(bucket + largest, trained), 1: bucket if is_flat else 2 * bucket, 2: 2 * bucket, 3: 3 * bucket}
        buffers = 4 * sizes[stage]
    result = ZeroBytes(
        weights=width * (held // replicas if stage == 3 else held),
        gathered=width * min(max(2 * block, largest), held) if stage == 3 else 0,
        gradients=4 * (trained if whole_gradients else own + leaving),
        master=4 * own if width == 2 else 0,
        moments=8 * own,
        buffers=buffers,
    )
    if stage == 0 or offload is OffloadKind.none:
        return result
    if plan.device is DeviceKind.cpu and offload is OffloadKind.cpu:
        # Moved from a memory to the same one, where DeepSpeed keeps a place for the gradients that a rank steps.
        kept = {"gradients": result.gradients + 4 * own, "buffers": buffers + 2 * 4 * largest}
        return ZeroBytes(**{**asdict(result), **kept})
    remaining = result.gradients if whole_gradients else 4 * leaving
    moved = {"master": 0, "moments": 0, "gradients": remaining, "buffers": buffers + 4 * largest}
    return ZeroBytes(**{**asdict(result), **moved})


def cheaper_choice(plan: RunPlan) -> str | None:
    """Return a sentence on a choice of less ZeRO that takes less memory at this size; None if there is none."""
    mine = zero_bytes(plan).total
    others = [(zero_bytes(plan, stage, offload).total, stage, offload) for stage, offload in _less(plan)]
    cost, stage, offload = min(others, key=lambda other: other[0], default=(mine, 0, OffloadKind.none))
    if cost >= mine:
        return None
    chosen = _name(plan.zero_stage, plan.offload)
    return (
        f"{chosen} takes {mine / MIB:,.0f} MiB a rank for states and buffers, "
        f"more than {_name(stage, offload)} with {cost / MIB:,.0f} MiB: here it does not pay"
    )


def _less(plan: RunPlan) -> Iterator[tuple[int, OffloadKind]]:
    """Yield the choices with a lower stage, or without offload, that the run could make instead."""
    offload = plan.offload
    least = 0 if plan.dtype is Dtype.fp32 else 1
    for stage in range(least, plan.zero_stage + 1):
        for kind in {OffloadKind.none, offload} if stage else {OffloadKind.none}:
            if (stage, kind) != (plan.zero_stage, offload):
                yield stage, kind


def _name(stage: int, offload: OffloadKind) -> str:
    return f"ZeRO-{stage}" + (f" + {offload.value} offload" if offload is not OffloadKind.none else "")
