"""Activations that this product's layers keep for backward, tensor by tensor, in bytes. No torch.

Elements as the components count them (`trainer/spec/parts.py`: arXiv 2205.05198, section 4), and what they leave out:
statistics of norms, sums of softmax, masks of dropout, token ids, tables of rotary embedding, masks of documents.
A test holds all of it against what autograd keeps on live runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype
from trainer.planner.model_parts import RankParts
from trainer.spec.execution import RecomputeKind
from trainer.spec.model import Block
from trainer.spec.parts import Attention, Norm, NormKind

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Logits in a chunk of the fused loss, as in `trainer.tensor_parallel.fused_loss`, which would import torch."""
_ROW_MULTIPLE = 64
_FP32, _INT64 = 4, 8


@dataclass(frozen=True)
class Activations:
    """Bytes of one pipeline rank."""

    chunks: tuple[int, ...]
    """Bytes that one micro-batch leaves in each of the rank's stages."""
    shared: int
    """Tables and masks, which all micro-batches share."""
    working: int
    """The block that is computed again, and gradients at the widest place of backward."""
    loss: int
    """Logits, or a chunk of them, and the gradients that the loss keeps."""
    kept_by_loss: int
    """The part of it that autograd is handed: 0 if the loss is fused."""


class Shape:
    """Sizes of a plan that activations depend on."""

    def __init__(self, plan: RunPlan, on_cpu: bool) -> None:
        self.plan = plan
        self.execution = plan.execution
        self.length = plan.execution.seq_length
        self.tokens = plan.micro_batch_size * self.length
        self.ranks = plan.tensor_parallel_size
        self.shards = plan.sequence_shards
        self.width = _FP32 if plan.dtype is Dtype.fp32 else 2
        self.on_cpu = on_cpu

    @property
    def rows(self) -> int:
        """Rows of positions and masks: one for all sequences, unless they hold several documents each."""
        return self.plan.micro_batch_size if self.execution.documents else 1

    @property
    def statistic(self) -> int:
        """Bytes of a number that LayerNorm keeps of a token: of the input's dtype on a CPU, fp32 on a GPU."""
        return self.width if self.on_cpu else _FP32


def activations_of(plan: RunPlan, rank: RankParts, on_cpu: bool) -> Activations:
    """Return the activations of a pipeline rank, whose layers are computed on the CPU or on a GPU."""
    shape = Shape(plan, on_cpu)
    recompute = plan.execution.recompute
    # Blocks that are computed again make use of the tables without keeping them.
    is_kept = recompute is not RecomputeKind.full
    chunks = [sum(count * _kept(shape, block) for block, count in blocks) for blocks in rank.chunks]
    if rank.embeds:
        chunks[0] += _embedding(shape)
    norm = plan.model.final_norm
    if rank.heads and norm is not None:
        chunks[-1] += _norm(shape, norm)
    blocks = [block for chunk in rank.chunks for block, _ in chunk]
    recomputed = 0
    if recompute is RecomputeKind.full:
        recomputed = max(_whole_block(shape, block) for block in blocks)
    elif recompute is RecomputeKind.selective:
        recomputed = max(_core(shape, block.attention) for block in blocks)
    if recompute is not RecomputeKind.none:
        recomputed += max(_apart(shape, [(block, 1)]) for block in blocks)
    else:
        chunks = [size + _apart(shape, own) for size, own in zip(chunks, rank.chunks, strict=True)]
    loss, kept = _loss(shape) if rank.heads else (0, 0)
    tables, rotations = _masks(shape, blocks), _rotations(shape, blocks)
    if not shape.execution.documents:
        tables += rotations
    elif is_kept:
        # Documents begin elsewhere in each micro-batch.
        own = (_rotations(shape, [block for block, _ in chunk]) for chunk in rank.chunks)
        chunks = [size + turned for size, turned in zip(chunks, own, strict=True)]
    else:
        recomputed += rotations
    positions = _INT64 * shape.length * shape.rows if rank.embeds and plan.model.positions.length is not None else 0
    return Activations(
        chunks=tuple(chunks),
        shared=positions + (tables if is_kept else 0),
        working=recomputed + (0 if is_kept else tables) + max(_gradients(shape, block) for block in blocks),
        loss=loss,
        kept_by_loss=kept,
    )


def _kept(shape: Shape, block: Block) -> int:
    """Return what a block leaves of one micro-batch."""
    if shape.execution.recompute is RecomputeKind.full:
        return shape.tokens * block.norm.width * shape.width // shape.shards
    kept = _whole_block(shape, block)
    return kept - _core(shape, block.attention) if shape.execution.recompute is RecomputeKind.selective else kept


def _whole_block(shape: Shape, block: Block) -> int:
    """Return what a block leaves without recomputation."""
    attention = _local(shape, block.attention)
    whole = block.kept.whole
    cut = attention.kept.cut + block.feed_forward.kept.cut // shape.ranks + _repeated(shape, attention)
    elements = whole // shape.shards + cut
    statistics = len(block.norm_names) * _beside(shape, block.norm) // shape.shards
    heads = [norm for norm in (block.attention.query_norm, block.attention.key_norm) if norm is not None]
    counts = (attention.num_heads, attention.num_key_value_heads)
    for norm, count in zip(heads, counts, strict=False):
        statistics += _beside(shape, norm) * count if norm.heads is None else _beside(shape, norm) // shape.ranks
    masks = 2 * block.norm.width // shape.shards if shape.execution.dropout > 0 else 0
    kept = shape.tokens * (elements * shape.width + statistics + masks)
    return kept + _core(shape, block.attention) + _joined_weight(shape, block.attention)


def _local(shape: Shape, attention: Attention) -> Attention:
    """Return the attention of one tensor-parallel rank; ranks of which there are more than key/value heads have one."""
    heads, groups = attention.num_heads // shape.ranks, max(1, attention.num_key_value_heads // shape.ranks)
    return replace(attention, num_heads=heads, num_key_value_heads=groups)


def _is_windowed(shape: Shape, attention: Attention) -> bool:
    return attention.window is not None and attention.window < shape.length


def _by_lengths(shape: Shape, attention: Attention) -> bool:
    """Return whether a kernel of sequences of several lengths keeps documents apart, as `can_varlen` of kernels."""
    plain = not attention.alibi and shape.execution.attention_dropout == 0 and attention.head_dim % 8 == 0
    return shape.execution.documents and plain and not shape.on_cpu and shape.width < _FP32


def _is_masked(shape: Shape, attention: Attention) -> bool:
    if _by_lengths(shape, attention):
        return False
    masked = attention.alibi or _is_windowed(shape, attention) or shape.execution.documents
    return masked or shape.execution.attention_dropout > 0


def _apart(shape: Shape, blocks: Iterable[tuple[Block, int]]) -> int:
    """Return what attention that keeps documents apart leaves of one micro-batch: the larger of its two ways.

    Either masks, which layers that are alike share, or the outputs of each document besides those of all.
    """
    counted = [(block.attention, count) for block, count in blocks if not _by_lengths(shape, block.attention)]
    if not shape.execution.documents or not counted:
        return 0
    masks = sum(
        shape.rows * shape.length**2 * shape.width * (attention.num_heads // shape.ranks if attention.alibi else 1)
        for attention in {(one.window, one.alibi): one for one, _ in counted}.values()
    )
    if not shape.on_cpu or shape.execution.attention_dropout > 0:
        return masks
    outputs = sum(count * shape.tokens * attention.queries // shape.ranks * shape.width for attention, count in counted)
    return max(masks, outputs)


def _repeated(shape: Shape, local: Attention) -> int:
    """Return the further elements of a token with grouped queries under a mask: keys and values are repeated."""
    if not _is_masked(shape, local) or local.num_heads == local.num_key_value_heads:
        return 0
    if shape.execution.recompute is RecomputeKind.selective:
        return 0
    # With rotary embedding the keys before them, and the output of the projection, are not kept.
    return 2 * local.queries if local.rope is None else local.queries - 3 * local.keys


def _core(shape: Shape, attention: Attention) -> int:
    """Return what softmax leaves: a sum for each head and token; or, with dropout, weights three times and a mask.

    A fused attention turns a window's mask of bools into numbers, which it keeps, in each layer anew.
    """
    heads = attention.num_heads // shape.ranks
    if shape.execution.attention_dropout == 0:
        has_bools = _is_windowed(shape, attention) and not attention.alibi and not shape.execution.documents
        return _FP32 * shape.tokens * heads + (shape.length**2 * shape.width if has_bools else 0)
    scores = shape.tokens * heads * shape.length
    # Softmax in fp32, its dropout's mask, the dropped weights; and which keys are not seen.
    seen = 0 if attention.alibi or shape.execution.documents else shape.length**2
    return scores * (_FP32 + 1 + shape.width) + seen


def _beside(shape: Shape, norm: Norm) -> int:
    """Return the bytes that a norm keeps of a token beside the elements that it counts.

    Mean and deviation, or with RMSNorm one of them. In half precision RMSNorm's two tensors are in fp32 on a CPU.
    """
    if norm.kind is NormKind.layernorm:
        return 2 * shape.statistic
    return _FP32 + (2 * norm.width * (_FP32 - shape.width) if shape.on_cpu else 0)


def _joined_weight(shape: Shape, attention: Attention) -> int:
    """Return the matrix that is put together of own and shared rows where ranks outnumber key/value heads."""
    if attention.num_key_value_heads >= shape.ranks:
        return 0
    local = _local(shape, attention)
    return local.qkv.out_features * local.hidden_size * shape.width


def _norm(shape: Shape, norm: Norm) -> int:
    """Return what a norm between layers leaves."""
    kept = norm.kept.whole * shape.width + _beside(shape, norm)
    return shape.tokens * kept // shape.shards


def _embedding(shape: Shape) -> int:
    """Return what embedding and positions leave: ids, which of them other ranks hold, the dropout's mask."""
    model, execution = shape.plan.model, shape.execution
    kept = shape.tokens * (_INT64 + (1 if shape.ranks > 1 else 0))
    if model.embedding.norm is not None:
        kept += _norm(shape, model.embedding.norm)
    if model.positions.length is not None and model.positions.offset:
        kept += _INT64 * shape.length
    return kept + (shape.tokens * model.hidden_size // shape.shards if execution.dropout > 0 else 0)


def _rotations(shape: Shape, blocks: Iterable[Block]) -> int:
    """Return the bytes of tables of rotary embedding, one for all layers that are alike."""
    ropes = {block.attention.rope for block in blocks}
    return sum(shape.rows * shape.length * rope.dims * _FP32 for rope in ropes if rope is not None)


def _masks(shape: Shape, blocks: Iterable[Block]) -> int:
    """Return the bytes of masks that all micro-batches share, one for all layers that are alike."""
    total, alike = 0, {replace(block.attention, rope=None) for block in blocks}
    for attention in alike:
        if attention.alibi and _is_masked(shape, attention):
            total += attention.num_heads // shape.ranks * shape.length**2 * shape.width
        if (_is_windowed(shape, attention) or shape.execution.documents) and _is_masked(shape, attention):
            total += shape.length**2
    return total


def _gradients(shape: Shape, block: Block) -> int:
    """Return the gradients of activations at the widest place of a block's backward: around the MLP's activation."""
    mlp = block.feed_forward
    inner = (mlp.up.out_features + mlp.inner_size) // shape.ranks
    return shape.tokens * shape.width * (inner + 2 * block.norm.width // shape.shards)


def _loss(shape: Shape) -> tuple[int, int]:
    """Return the bytes of head and loss, and how many of them autograd is handed."""
    model, execution, width = shape.plan.model, shape.execution, shape.width
    hidden, columns = model.hidden_size, execution.padded(model.vocab_size) // shape.ranks
    gathered = shape.tokens * hidden * width
    if not execution.fused_loss:
        # Logits, and labels, weights and normalisers of the tokens.
        kept = shape.tokens * (columns * width + _INT64 + 2 * _FP32) + gathered // shape.shards
        return kept + shape.tokens * columns * width, kept
    rows = chunk_rows(shape.tokens, columns, "cpu" if shape.on_cpu else "cuda")
    if shape.tokens <= min(rows, hidden) and width == _FP32:
        return gathered + 2 * shape.tokens * columns * width, 0
    chunk = rows * columns * (2 * _FP32 if width == _FP32 else _FP32 + 2 * width)
    return 2 * gathered + _FP32 * columns * hidden + chunk, 0


def chunk_rows(rows: int, width: int, device: str) -> int:
    """Return how many rows of logits the fused loss computes at a time: `tensor_parallel.fused_loss.chunk_rows`."""
    wanted = max(_ROW_MULTIPLE, CHUNK_ELEMENTS[device] // max(1, width) // _ROW_MULTIPLE * _ROW_MULTIPLE)
    equal = -(-rows // -(-rows // wanted))
    return min(rows, -(-equal // _ROW_MULTIPLE) * _ROW_MULTIPLE)
