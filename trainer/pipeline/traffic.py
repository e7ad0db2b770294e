"""Bytes that ranks send to each other in one step, and how many of them leave a machine. No torch.

Collectives are counted as rings: each of the n ranks sends (n - 1) / n of the whole tensor to the next one, twice for
an all-reduce, once for an all-gather or a reduce-scatter. Tensor parallelism moves hidden states `[S, B, H]`: Megatron-
LM, arXiv 1909.08053, section 3, and 2205.05198, section 4.2.2. A pipeline hands the same tensor from stage to stage.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype
from trainer.mesh import Mesh
from trainer.pipeline.partition import Stage, stages
from trainer.spec.execution import RecomputeKind
from trainer.spec.model import Block, Layer, LayerKind
from trainer.spec.parts import Positions
from trainer.spec.tensors import Cut

_FP32_BYTES = 4


@dataclass(frozen=True)
class NodeTraffic:
    """Bytes that the busiest machine sends to others in one step, by axis."""

    tensor_bytes: float
    pipeline_bytes: float


def hidden_bytes(plan: RunPlan) -> int:
    """Return the bytes of one micro-batch's hidden states, `[S, B, H]`, whole."""
    element = _FP32_BYTES if plan.dtype is Dtype.fp32 else 2
    return plan.execution.seq_length * plan.micro_batch_size * plan.model.hidden_size * element


def tensor_link_bytes(plan: RunPlan, stage: Stage) -> float:
    """Return the bytes that a tensor-parallel rank of a stage sends to its neighbour in one step. 0 for a group of one.

    Vectors (norms, biases) are left out: they are as small as one position of a hidden state.
    """
    size = plan.tensor_parallel_size
    whole = hidden_bytes(plan)
    rounds = sum(_rounds(plan, layer) for layer in stage.layers)
    in_bytes = rounds * whole + 2 * sum(_shared_bytes(plan, layer) for layer in stage.layers)
    in_bytes += sum(_adapter_bytes(plan, layer.spec) for layer in stage.layers if isinstance(layer.spec, Block))
    if any(layer.kind is LayerKind.head for layer in stage.layers):
        positions = plan.execution.seq_length * plan.micro_batch_size
        # The loss. Fused: two numbers a position of every rank, gathered; otherwise a maximum and two sums.
        in_bytes += (size * 2 if plan.execution.fused_loss else 2 * 3) * positions * _FP32_BYTES
    return in_bytes * (size - 1) / size * plan.num_micro_batches


def _rounds(plan: RunPlan, layer: Layer) -> float:
    """Return how often a layer's hidden states go once round the ring in one micro-batch, forward and backward."""
    sharded = plan.sequence_parallel
    if isinstance(layer.spec, Block):
        if layer.spec.wiring.is_parallel and plan.execution.dropout == 0:
            return _rounds_of_joined_branches(plan, len(layer.spec.norm_names))
        # Two pairs of a column- and a row-parallel matrix. Sharded, the column's input is gathered once more in
        # backward. The recomputed part is the forward pass up to the last matrix, whose sum nothing needs.
        again = 0 if plan.execution.recompute is not RecomputeKind.full else (3 if sharded else 2)
        return (10 if sharded else 8) + again
    if layer.kind is LayerKind.embedding:
        return 2
    if isinstance(layer.spec, Positions) and layer.spec.length is not None and sharded:
        # Gradients of the positions, `[S, H]`.
        return 1 / plan.micro_batch_size
    # Fused, the head's gradients are made in forward, where its input is whole.
    return (3 if sharded and not plan.execution.fused_loss else 2) if layer.kind is LayerKind.head else 0


def _rounds_of_joined_branches(plan: RunPlan, inputs: int) -> float:
    """Return the same for a parallel block, whose branches share a message each way, with one or two inputs."""
    recomputed = plan.execution.recompute is RecomputeKind.full
    if not plan.sequence_parallel:
        return 2 + 2 * inputs
    return 2 + 2 * inputs + (inputs if recomputed else 0)


def _shared_bytes(plan: RunPlan, layer: Layer) -> float:
    """Return the bytes of the gradients that several tensor-parallel ranks' key/value heads have in common."""
    size = plan.tensor_parallel_size
    if not isinstance(layer.spec, Block) or layer.spec.attention.num_key_value_heads >= size:
        return 0.0
    element = _FP32_BYTES if plan.dtype is Dtype.fp32 else 2
    return 2.0 * layer.spec.attention.keys * plan.model.hidden_size * element


def _adapter_bytes(plan: RunPlan, block: Block) -> float:
    """Return the bytes of what adapters send: `rank` elements of each position, and gradients that ranks have parts of.

    Source: the module docstring of `trainer.tensor_parallel.adapters`.
    """
    element = _FP32_BYTES if plan.dtype is Dtype.fp32 else 2
    positions = plan.execution.seq_length * plan.micro_batch_size
    joined = block.wiring.is_parallel and plan.execution.dropout == 0
    again = plan.sequence_parallel and plan.execution.recompute is RecomputeKind.full
    elements = 0
    for linear in (block.attention.output, block.feed_forward.down):
        elements += sum(2 * linear.out_features * one.rank for one in linear.adapters)
    for linear in (block.attention.qkv, block.feed_forward.up):
        for one in linear.adapters:
            elements += 0 if joined else (3 if again else 2) * positions * one.rank
            elements += 2 * one.rank * linear.in_features * (joined or plan.sequence_parallel)
            part = linear.adapted(one)
            whole = Cut(0, part.sections, heads=part.heads).whole_sections(plan.tensor_parallel_size)
            elements += 2 * one.rank * sum(part.sections[len(part.sections) - whole :])
    return float(elements * element)


def node_traffic(plan: RunPlan, nodes: Sequence[Hashable]) -> NodeTraffic:
    """Return the traffic between machines.

    Args:
        plan: numbers of the run.
        nodes: the machine of every rank, in rank order.
    """
    mesh = plan.mesh
    tensor: dict[Hashable, float] = dict.fromkeys(nodes, 0.0)
    pipeline: dict[Hashable, float] = dict.fromkeys(nodes, 0.0)
    links = [0.0] * plan.pipeline_parallel_size
    for stage in stages(plan):
        links[stage.rank_index] += tensor_link_bytes(plan, stage)
    for group in mesh.tensor_groups():
        for rank, following in zip(group, [*group[1:], group[0]], strict=True):
            if nodes[rank] != nodes[following]:
                tensor[nodes[rank]] += links[mesh.coordinate(rank).stage]
    for sender, receiver in _hand_overs(plan, mesh):
        if nodes[sender] != nodes[receiver]:
            pipeline[nodes[sender]] += _hand_over_bytes(plan)
    return NodeTraffic(max(tensor.values()), max(pipeline.values()))


def _hand_overs(plan: RunPlan, mesh: Mesh) -> list[tuple[int, int]]:
    """Return (sender, receiver) of hidden states and of their gradients, over all stages' edges."""
    ranks = [stage.rank_index for stage in stages(plan)]
    pairs = [(a, b) for a, b in pairwise(ranks) if a != b]
    ways = [*pairs, *((b, a) for a, b in pairs)]
    return [(group[a], group[b]) for group in mesh.pipeline_groups() for a, b in ways]


def _hand_over_bytes(plan: RunPlan) -> float:
    share = plan.sequence_shards
    return hidden_bytes(plan) / share * plan.num_micro_batches


def split_tensor_groups(plan: RunPlan, nodes: Sequence[Hashable]) -> list[list[int]]:
    """Return the tensor-parallel groups, as global ranks, that do not lie on one machine."""
    return [group for group in plan.mesh.tensor_groups() if len({nodes[rank] for rank in group}) > 1]
