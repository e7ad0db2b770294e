"""Weights, gradients, optimizer state and buffers that a rank of this product holds on DeepSpeed 0.19.8. No torch.

Counted as DeepSpeed's optimizers and their repairs in `trainer/engine` hold them: flat tensors are padded, the bf16
optimizer keeps fp32 sums beside the gradients of the weights, ZeRO-3 keeps small parameters whole. Sources: ZeRO, arXiv
1910.02054, section 3; DeepSpeed 0.19.8, runtime/bf16_optimizer.py, runtime/zero/stage_1_and_2.py and stage3.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype, OffloadKind
from trainer.planner.model_parts import RankParts
from trainer.spec.stepping import StepRule

_FP32 = 4


class Keeping(Enum):
    """The class of DeepSpeed's that keeps the optimizer's state: see `trainer/engine/sharding_*.py`."""

    plain = "plain"
    """No ZeRO."""
    bf16 = "bf16"
    """`BF16_Optimizer`: ZeRO-1 of bf16 weights on the device."""
    flat = "flat"
    """ZeRO-1 whose gradients lie in one flat tensor: fp32 between CPU ranks."""
    partitioned = "partitioned"
    """`DeepSpeedZeroOptimizer`: ZeRO-1 and 2 otherwise."""
    sub_groups = "sub_groups"
    """ZeRO-3."""


@dataclass(frozen=True)
class States:
    """Bytes of the memory that the device computes in, and of the host's."""

    weights: int
    gradients: int
    """Gradients that are held when the last backward pass of a step is over."""
    master: int
    moments: int
    buckets: int
    gathered: int
    step: int
    """Bytes that the optimizer step takes besides."""
    start: int
    """Bytes that the start takes besides weights, master weights and moments."""
    host: int

    @property
    def held(self) -> int:
        """Bytes that are held from step to step, gradients included."""
        return self.weights + self.gradients + self.master + self.moments


@dataclass(frozen=True)
class Choice:
    """A choice of ZeRO, and where it is made."""

    stage: int
    offload: OffloadKind
    on_cpu: bool
    """Ranks compute on the CPU, so that offload moves to the same memory."""
    bucket: int
    """Elements that are reduced in one collective."""


def keeping_of(dtype: Dtype, choice: Choice) -> Keeping:
    """Return the class that DeepSpeed wraps an optimizer in."""
    stage = choice.stage
    if stage == 0:
        return Keeping.plain
    if stage == 3:
        return Keeping.sub_groups
    here = choice.offload is OffloadKind.none
    if stage == 1 and here and dtype is Dtype.bf16:
        return Keeping.bf16
    if stage == 1 and here and dtype is Dtype.fp32 and choice.on_cpu:
        return Keeping.flat
    return Keeping.partitioned


def states_of(plan: RunPlan, rank: RankParts, choice: Choice) -> States:
    """Return the states of a pipeline rank.

    Args:
        plan: numbers of the run.
        rank: what the pipeline rank holds.
        choice: ZeRO stage and offload, which need not be the plan's.
    """
    return replace(_states(plan, rank, choice), step=_FP32 * _whole_matrices(plan, rank, choice))


def _whole_matrices(plan: RunPlan, rank: RankParts, choice: Choice) -> int:
    """Return at most how many elements the step needs besides to make whole matrices of its updates.

    They are sent and received once over each axis that shards them, and one matrix after the other is multiplied with
    itself: see `trainer.engine.whole_matrices`.
    """
    held = sum(numel for group, numel in rank.trained.items() if group.rule is StepRule.muon)
    if not held:
        return 0
    ranks, replicas = plan.tensor_parallel_size, plan.data_parallel_size
    own = -(-held // replicas) if choice.stage else held
    copies = 1 + (2 if choice.stage and replicas > 1 else 0) + (2 if ranks > 1 else 0)
    largest = max(one.numel for one in rank.parameters if one.group.rule is StepRule.muon)
    return copies * own + 4 * largest * ranks


def _states(plan: RunPlan, rank: RankParts, choice: Choice) -> States:
    if choice.stage == 3:
        return _sharded(plan, rank, choice)
    replicas = plan.data_parallel_size
    width = _FP32 if plan.dtype is Dtype.fp32 else 2
    groups = rank.trained
    trained = sum(groups.values())
    frozen = rank.held - trained
    if choice.stage == 0:
        bucket = min(choice.bucket + rank.largest, trained) if replicas > 1 else 0
        gradients = trained + _joined_rows(plan, rank)
        # Half precision without ZeRO is refused; peers that have it keep fp32 weights besides.
        master = _FP32 * trained if width == 2 else 0
        moments = _FP32 * sum(numel * len(group.kept) for group, numel in groups.items())
        return States(width * rank.held, _FP32 * gradients, master, moments, _FP32 * bucket, 0, 0, 0, 0)
    # Flat tensors are padded to 4 bytes a partition of half-precision elements.
    unit = 2 * replicas
    padded = {group: -(-numel // unit) * unit for group, numel in groups.items()}
    own = sum(padded.values()) // replicas
    moments = sum(numel // replicas * len(group.kept) for group, numel in padded.items())
    return _flat(plan, rank, choice, _Sizes(width, trained, frozen, own * replicas, own, moments))


def _joined_rows(plan: RunPlan, rank: RankParts) -> int:
    """Return the elements by which gradients of queries, keys and values are larger than what a rank owns of them.

    Ranks that outnumber key/value heads multiply with own and shared rows joined, and autograd keeps the gradient of
    the own ones as a part of that of all.
    """
    ranks, found = plan.tensor_parallel_size, 0
    for attention, count in ((block.attention, count) for chunk in rank.chunks for block, count in chunk):
        if attention.num_key_value_heads < ranks and not plan.execution.frozen:
            found += count * 2 * attention.head_dim * (attention.hidden_size + (1 if attention.bias else 0))
    return found


@dataclass(frozen=True)
class _Sizes:
    width: int
    trained: int
    frozen: int
    padded: int
    own: int
    moments: int


def _flat(plan: RunPlan, rank: RankParts, choice: Choice, sizes: _Sizes) -> States:
    """ZeRO-1 and 2."""
    stage, keeping = choice.stage, keeping_of(plan.dtype, choice)
    width, own = sizes.width, sizes.own
    several = plan.data_parallel_size > 1
    bucket = choice.bucket if several else 0
    weights = width * (sizes.padded + sizes.frozen)
    master = _FP32 * own if width == 2 else 0
    moments = _FP32 * sizes.moments
    start = width * sizes.padded
    if keeping is Keeping.bf16:
        sums = _FP32 * sizes.padded
        return States(weights, sums + width * sizes.trained, master, moments, _FP32 * bucket, 0, 0, sums, 0)
    if keeping is Keeping.flat:
        return States(weights, _FP32 * sizes.padded, master, moments, _FP32 * bucket, 0, 0, start, 0)
    # Gradients of the layers that are computed, before a bucket takes them; with stage 1 those of all layers wait for
    # the last micro-batch.
    waiting = sizes.trained if stage == 1 and plan.num_micro_batches > 1 else min(rank.block_elements, sizes.trained)
    buckets = _FP32 * (waiting + 2 * bucket)
    if choice.offload is OffloadKind.none:
        return States(weights, _FP32 * own, master, moments, buckets, 0, 0, start, 0)
    # DeepSpeed keeps a place on the host for the gradients that a rank steps. In half precision it reduces them into
    # a partition on the device; in fp32 with several micro-batches ZeRO-2 adds up whole parameters on the host.
    reduced = _FP32 * own if width == 2 else 0
    added = 0
    if width == _FP32 and stage == 2 and plan.num_micro_batches > 1:
        added = _FP32 * _reached(rank, plan.data_parallel_size)
    buckets += _FP32 * rank.largest
    # Master weights go through a buffer of the weights' dtype; fp32 ones are the weights where both are in one memory.
    on_host = _FP32 * own + added + moments + _FP32 * rank.largest
    if choice.on_cpu:
        rounded = width * own if width == 2 else 0
        gradients = _FP32 * own + reduced + added
        # fp32 weights are copied before the copy becomes the weights; a place for gradients, two for the largest one.
        start = max(start, (_FP32 if width == _FP32 else 0) * own + (width + _FP32) * own + 2 * _FP32 * rank.largest)
        return States(weights, gradients, master, moments, buckets + _FP32 * rank.largest + rounded, 0, 0, start, 0)
    return States(weights, reduced, 0, 0, buckets, 0, 0, start, on_host + (_FP32 + width) * own)


def _reached(rank: RankParts, replicas: int) -> int:
    """Return the elements of the parameters that a replica steps a part of: of the one that steps most."""
    found = [0] * replicas
    for own in rank.trained:
        group = [one.numel for one in rank.in_order if one.is_trained and one.group == own]
        size = -(-sum(group) // (2 * replicas)) * 2
        end = 0
        for numel in group:
            for replica in range(end // size, (end + numel - 1) // size + 1):
                found[replica] += numel
            end += numel
    return max(found)


def _sharded(plan: RunPlan, rank: RankParts, choice: Choice) -> States:
    """ZeRO-3."""
    replicas = plan.data_parallel_size
    width = _FP32 if plan.dtype is Dtype.fp32 else 2
    own_all = own = whole = of_moments = 0
    for one, count in rank.parameters.items():
        part = -(-one.numel // replicas) * count
        own_all += part
        own += part if one.is_trained else 0
        of_moments += part * len(one.group.kept) if one.is_trained else 0
        # Small parameters are kept whole, beside the shards that are stepped.
        if replicas > 1 and one.numel <= persistence_threshold(plan):
            whole += part * replicas
    weights = width * (own_all + whole)
    gathered = width * min(max(2 * rank.block_elements, rank.largest), rank.held)
    bucket = choice.bucket if replicas > 1 else 0
    waiting = min(rank.block_elements, rank.held)
    buckets = _FP32 * (waiting + 3 * bucket)
    master = _FP32 * own if width == 2 else 0
    moments = _FP32 * of_moments
    # Shards are put into flat tensors; fp32 ones are copied once more before the copy becomes the shards.
    start = width * own_all + (_FP32 * own if width == _FP32 else 0)
    if choice.offload is OffloadKind.none:
        return States(weights, _FP32 * own, master, moments, buckets, gathered, 0, start, 0)
    if choice.on_cpu and choice.offload is OffloadKind.cpu:
        buckets += 2 * _FP32 * rank.largest
        return States(weights, 2 * _FP32 * own, master, moments, buckets, gathered, 0, start + _FP32 * own, 0)
    host = 2 * _FP32 * own + moments if choice.offload is OffloadKind.cpu else 0
    if plan.offloads_parameters:
        if choice.offload is OffloadKind.cpu:
            host += width * own_all
        weights = width * whole
    return States(weights, 0, 0, 0, buckets + _FP32 * rank.largest, gathered, 0, 0, host)


def persistence_threshold(plan: RunPlan) -> int:
    """Return up to how many elements ZeRO-3 keeps a parameter whole: see `ds_json`."""
    return 10 * plan.model.hidden_size
