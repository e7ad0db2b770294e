"""Work, traffic and messages of one rank for a layer and one micro-batch, from the layer's components. No torch.

GEMM shapes follow from the matrices and their sharding (Megatron-LM, arXiv 1909.08053, section 3); attention counts all
scores, as `Attention.forward_flops` does; where documents do not see each other, those of a mean document. Element-wise
work is counted as bytes that a kernel for each step would read and write: a norm reads and writes its input, the sum
onto the residual stream reads two tensors and writes one.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype
from trainer.config.schema_cluster import Software
from trainer.spec.execution import RecomputeKind
from trainer.spec.model import Block, Layer, LayerKind
from trainer.spec.parts import Attention, Embedding, Head, Linear, Norm, Positions

FP32_BYTES = 4
LOSS_PASSES = 5
"""Times that fp32 logits are read or written in forward: as they are made, for the maximum, for the exponentials, which
are written, and for their sum."""


@dataclass(frozen=True)
class Gemm:
    """A matrix multiplication: [m, k] x [k, n]."""

    m: float
    n: float
    k: float

    @property
    def flops(self) -> float:
        """A multiply-add counts as two."""
        return 2.0 * self.m * self.n * self.k

    @property
    def elements(self) -> float:
        """Elements of both operands and the result."""
        return self.m * self.k + self.k * self.n + self.m * self.n

    @property
    def narrowest(self) -> float:
        """The smallest side."""
        return min(self.m, self.n, self.k)


@dataclass(frozen=True)
class Work:
    """Work of one rank for a layer's forward pass of one micro-batch, and what backward needs to know."""

    gemms: tuple[Gemm, ...] = ()
    attention_flops: float = 0.0
    """Scores and their product with the values, those of later tokens included."""
    is_causal: bool = False
    """True if half of the scores are of later tokens."""
    scores: float = 0.0
    """Elements of the scores."""
    has_odd_heads: bool = False
    """True if the width of a head is not a multiple of 8."""
    moved_bytes: float = 0.0
    """Bytes that element-wise steps read and write."""
    is_block: bool = False
    rounds_forward: float = 0.0
    """Times that whole hidden states go round the ring of tensor-parallel ranks in forward."""
    rounds_backward: float = 0.0
    rounds_again: float = 0.0
    """The same in what full recomputation computes again."""
    sums: float = 0.0
    """Bytes that the ranks of the tensor axis gather for the loss: a few numbers of each token."""
    parameters: int = 0
    """Elements of the layer's tensors on this rank, before ZeRO shards them."""
    trained: int = 0
    """Elements of them that the run trains."""

    @property
    def trained_share(self) -> float:
        """Share of the parameters whose gradients are computed."""
        return self.trained / self.parameters if self.parameters else 1.0


def layer_work(plan: RunPlan, layer: Layer, software: Software) -> Work:
    """Return the work of one tensor-parallel rank for a layer of the plan's model."""
    spec, size = layer.spec, plan.tensor_parallel_size
    unit = plan.execution.vocab_unit
    here = [(tensor, tensor.local_numel(size, unit)) for tensor in layer.tensors()]
    held = sum(count for _, count in here)
    trained = sum(count for tensor, count in here if plan.execution.trains(tensor))
    if isinstance(spec, Block):
        return _block(plan, spec, software, held, trained)
    if isinstance(spec, Head):
        return _head(plan, spec, held, trained)
    element, positions = element_bytes(plan), tokens(plan)
    whole = positions * plan.model.hidden_size / plan.sequence_shards * element
    if isinstance(spec, Embedding):
        # Rows are read and written, and dropped out.
        passes = 4 if plan.execution.dropout else 2
        rounds = 2.0 if size > 1 else 0.0
        return Work(moved_bytes=passes * whole, rounds_forward=rounds, parameters=held, trained=trained)
    passes = 2 if isinstance(spec, Norm) or (isinstance(spec, Positions) and spec.length is not None) else 0
    return Work(moved_bytes=passes * whole, parameters=held, trained=trained)


def tokens(plan: RunPlan) -> int:
    """Return the tokens of one micro-batch."""
    return plan.micro_batch_size * plan.execution.seq_length


def element_bytes(plan: RunPlan) -> int:
    """Return the bytes of an element of weights and activations."""
    return FP32_BYTES if plan.dtype is Dtype.fp32 else 2


def gradient_bytes(plan: RunPlan, software: Software) -> int:
    """Return the bytes of an element of gradients as they add up: Megatron and DeepSpeed keep fp16 with fp16."""
    return FP32_BYTES if software is Software.trident or plan.dtype is not Dtype.fp16 else 2


def reduced_bytes(plan: RunPlan, software: Software) -> int:
    """Return the bytes of an element of gradients as it travels.

    DeepSpeed reduced fp32 in both formats: with that, what was fitted on its fp16 runs is right for BLOOM's bf16.
    """
    return FP32_BYTES if software is Software.deepspeed else gradient_bytes(plan, software)


def _block(plan: RunPlan, block: Block, software: Software, held: int, trained: int) -> Work:
    size, positions, length = plan.tensor_parallel_size, tokens(plan), plan.execution.attended_length
    attention, mlp = block.attention, block.feed_forward
    keys = length if attention.window is None else min(length, attention.window)
    linears = (attention.qkv, attention.output, mlp.up, mlp.down)
    forward, backward, again = _block_rounds(plan, block, software)
    return Work(
        gemms=tuple(gemm for linear in linears for gemm in _gemms(linear, positions, size)),
        attention_flops=4.0 * attention.queries / size * keys * positions,
        is_causal=keys == length,
        scores=attention.num_heads / size * keys * positions,
        has_odd_heads=attention.head_dim % 8 != 0,
        moved_bytes=positions * element_bytes(plan) * _moved_elements(plan, block),
        is_block=True,
        rounds_forward=forward,
        rounds_backward=backward,
        rounds_again=again,
        parameters=held,
        trained=trained,
    )


def _gemms(linear: Linear, positions: int, size: int) -> list[Gemm]:
    inner, outer = linear.in_features, linear.out_features
    cut_inner, cut_outer = (inner / size, outer) if linear.cut_inputs else (inner, outer / size)
    found = [Gemm(positions, cut_outer, cut_inner)]
    for one in linear.adapters:
        own = linear.adapted(one).out_features / (1 if linear.cut_inputs else size)
        found += [Gemm(positions, one.rank, cut_inner), Gemm(positions, own, one.rank)]
    return found


def _moved_elements(plan: RunPlan, block: Block) -> float:
    """Return the elements of one token that element-wise steps of a block read and write in forward, on one rank."""
    size, hidden = plan.tensor_parallel_size, plan.model.hidden_size
    sums = 1 if block.wiring.is_parallel else 2
    stream = 2 * len(block.norm_names) + 3 * sums
    if plan.execution.dropout:
        # Two reads and a write of the dropped branch; masks are a byte.
        stream += 2 * sums
    attention, mlp = block.attention, block.feed_forward
    inner = (3 if mlp.gated else 2) * mlp.inner_size
    return stream * hidden / plan.sequence_shards + (inner + _turned(attention)) / size


def _turned(attention: Attention) -> float:
    """Return the elements of queries and keys that rotations and norms read and write."""
    steps = (attention.rope is not None) + (attention.query_norm is not None) + (attention.clip is not None)
    return 2.0 * steps * (attention.queries + attention.keys)


def _block_rounds(plan: RunPlan, block: Block, software: Software) -> tuple[float, float, float]:
    """Return how often hidden states go round the ring in forward, in backward, and in a recomputed forward.

    Trident: `trainer.pipeline.traffic`. Megatron and DeepSpeed compute the whole forward again, with both sums; with
    sequence parallelism Megatron hides the second gathering of the inputs behind a GEMM (arXiv 2205.05198, 4.2.2).
    """
    if plan.tensor_parallel_size == 1:
        return 0.0, 0.0, 0.0
    sharded, is_ours = plan.sequence_parallel, software is Software.trident
    if is_ours and block.wiring.is_parallel and plan.execution.dropout == 0:
        inputs = len(block.norm_names)
        return 2.0, 2.0 * inputs, float(inputs if sharded else 0)
    if not is_ours:
        return 4.0, 4.0, 4.0
    return 4.0, 6.0 if sharded else 4.0, 3.0 if sharded else 2.0


def _head(plan: RunPlan, head: Head, held: int, trained: int) -> Work:
    size, positions = plan.tensor_parallel_size, tokens(plan)
    rows = plan.execution.padded(plan.model.vocab_size) / size
    # The weight of a tied head is the embedding's, which is on the same rank or has a copy here.
    copy = int(rows * head.hidden_size) if head.tied and plan.pipeline_parallel_size > 1 else 0
    rounds = 0.0 if size == 1 else 2.0
    return Work(
        gemms=(Gemm(positions, rows, head.hidden_size),),
        moved_bytes=LOSS_PASSES * FP32_BYTES * rows * positions,
        rounds_backward=rounds,
        # Fused: two numbers of every rank; otherwise a maximum and two sums. As messages they are about as long.
        sums=0.0 if size == 1 else 2.0 * size * positions * FP32_BYTES,
        parameters=held + copy,
        trained=trained + copy,
    )


def is_recomputed(plan: RunPlan, layer: Layer) -> bool:
    """Return whether backward computes a layer's forward pass again."""
    return layer.kind is LayerKind.block and plan.execution.recompute is RecomputeKind.full
