"""Formulas of memory as papers print them, in bytes. No torch.

Sources: activations arXiv 2205.05198 (Korthikanti et al.), table 2 and section 4, with the bytes of half precision and
one byte for each element of a dropout mask; model states arXiv 1910.02054 (ZeRO), section 3; micro-batches in flight
arXiv 2104.04473, section 2.2.
"""

from __future__ import annotations

from trainer.spec.execution import Execution, RecomputeKind
from trainer.spec.model import Block
from trainer.spec.parts import Kept

HALF = 2
"""Bytes of an element in half precision."""
ADAM = 12
"""Bytes of a parameter's fp32 master weight and two moments."""


def token_bytes(block: Block, execution: Execution) -> tuple[Kept, int]:
    """Return what a block of Megatron-LM keeps of one token without recomputation, and how much of it are scores.

    For a GPT of width h with an inner width of 4h this is 10 h bytes on each tensor-parallel rank, 24 h bytes over all
    of them, and 5 a s bytes of scores: softmax, its dropout mask, and its output. Without attention dropout the
    attention is a fused kernel, which keeps no scores but an fp32 number for each head.

    Returns:
        Bytes whole and cut, scores left out; bytes of scores, which are cut.
    """
    attention, mlp, hidden = block.attention, block.feed_forward, block.norm.width
    masks = 2 * hidden if execution.dropout > 0 else 0
    # Inputs of both norms, of attention and of the MLP.
    whole = HALF * (len(block.norm_names) + (1 if block.wiring.is_parallel else 2)) * hidden + masks
    # Queries, keys, values and the input of the projection; the MLP before and after its activation.
    cut = HALF * (2 * attention.queries + 2 * attention.keys) + HALF * (mlp.up.out_features + mlp.inner_size)
    if execution.attention_dropout > 0:
        return Kept(whole, cut), 5 * attention.num_heads * execution.seq_length
    return Kept(whole, cut + 4 * attention.num_heads), 0


def block_bytes(
    block: Block, execution: Execution, micro_batch: int, tensor_parallel: int, sequence_parallel: bool
) -> float:
    """Return what a rank keeps of one block and one micro-batch without recomputation.

    sbh (10 + 24/t + 5as/ht), or with sequence parallelism sbh (34 + 5as/h) / t.
    """
    kept, scores = token_bytes(block, execution)
    if execution.recompute is RecomputeKind.selective:
        scores = 0
    whole = kept.whole / tensor_parallel if sequence_parallel else kept.whole
    return micro_batch * execution.seq_length * (whole + (kept.cut + scores) / tensor_parallel)


def input_bytes(
    block: Block, execution: Execution, micro_batch: int, tensor_parallel: int, sequence_parallel: bool
) -> float:
    """Return what a rank keeps of one block and one micro-batch with full recomputation: its input, 2sbh."""
    shards = tensor_parallel if sequence_parallel else 1
    return HALF * micro_batch * execution.seq_length * block.norm.width / shards


def chunks_in_flight(stage: int, stages: int, micro_batches: int, virtual_stages: int = 1) -> int:
    """Return how many chunks' activations a stage of 1F1B holds at once; each is 1/v of its layers.

    min(p - i, m) without interleaving; of interleaved 1F1B's first stage p v (1 + (p - 1) / (p v)) chunks.

    Args:
        stage: index from 0.
        stages: p.
        micro_batches: m.
        virtual_stages: v.
    """
    if virtual_stages == 1:
        return min(stages - stage, micro_batches)
    warm_up = 2 * (stages - stage - 1) + (virtual_stages - 1) * stages
    return min(warm_up + 1, micro_batches * virtual_stages)


def zero_states(parameters: int, replicas: int, stage: int) -> float:
    """Return bytes of mixed-precision states as in ZeRO's figure 1: 2 + 2 + 12 a parameter, shared out by stage.

    Args:
        parameters: of the model.
        replicas: ranks that share.
        stage: 0 (nothing is shared) to 3.
    """
    weights = HALF * parameters / (replicas if stage == 3 else 1)
    gradients = HALF * parameters / (replicas if stage >= 2 else 1)
    return weights + gradients + ADAM * parameters / (replicas if stage >= 1 else 1)
