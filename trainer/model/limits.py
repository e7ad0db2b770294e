"""The limits of the models that the layers can compute. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.spec.model import Model
from trainer.spec.parts import Norm, NormKind


def not_computed(model: Model) -> Iterator[str]:
    """Yield one line for each option of a model that the layers do not know, or that contradicts another."""
    for block in dict.fromkeys(model.blocks):
        name, attention = f"blocks[{model.blocks.index(block)}]", block.attention
        yield from _norm_not_computed(f"{name}.norm", block.norm)
        rope, size = attention.rope, attention.head_dim
        if rope is not None and (rope.dims % 2 or not 0 < rope.dims <= size):
            yield f"{name}.attention.rope.dims must be even and at most head_dim ({size}), but is {rope.dims}"
        for part, norm in (("query_norm", attention.query_norm), ("key_norm", attention.key_norm)):
            if norm is not None:
                yield from _norm_not_computed(f"{name}.attention.{part}", norm, may_have_bias=False)
        if (attention.query_norm is None) != (attention.key_norm is None):
            yield f"{name}.attention must normalise queries and keys alike, but has a norm for one of them only"
    for name, other in (("final_norm", model.final_norm), ("embedding.norm", model.embedding.norm)):
        if other is not None:
            yield from _norm_not_computed(name, other)


def _norm_not_computed(name: str, norm: Norm, may_have_bias: bool = True) -> Iterator[str]:
    if norm.bias and not may_have_bias:
        yield f"{name}.bias must be False, since norms of queries and keys have none, but is True"
    if norm.kind is NormKind.rmsnorm and norm.bias:
        yield f"{name}.bias must be False for an RMSNorm, but is True"
    if norm.bias and not norm.weight:
        yield f"{name}.bias must be False for a norm without weight, but is True"


def not_divisible(model: Model, tensor_parallel_size: int) -> Iterator[str]:
    """Yield one line for each size that cannot be sharded evenly over the ranks, or divided into groups of heads."""
    for block in dict.fromkeys(model.blocks):
        heads, groups = block.attention.num_heads, block.attention.num_key_value_heads
        sizes = {"model.num_attention_heads": heads, "model.ffn_hidden_size": block.feed_forward.inner_size}
        for key, value in sizes.items():
            if value % tensor_parallel_size:
                yield f"{key} ({value}) must be divisible by layout.tensor_parallel_size ({tensor_parallel_size})"
        # Ranks of which there are more than key/value heads have one each, as many ranks each of them.
        if groups % tensor_parallel_size and tensor_parallel_size % groups:
            yield (
                f"model.num_key_value_heads ({groups}) must be divisible by layout.tensor_parallel_size "
                f"({tensor_parallel_size}), or divide it"
            )
        if heads % groups:
            yield f"model.num_attention_heads ({heads}) must be divisible by model.num_key_value_heads ({groups})"
