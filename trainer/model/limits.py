"""The limits of the models that the layers can compute. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.spec.model import Model
from trainer.spec.parts import Norm, NormKind


def not_computed(model: Model) -> Iterator[str]:
    """Yield one line for each option of a model that the layers do not know yet."""
    embedding, head = model.embedding, model.head
    wanted: dict[str, tuple[object, object]] = {
        "embedding.scale": (embedding.scale, 1.0),
        "embedding.norm": (embedding.norm, None),
        "positions.offset": (model.positions.offset, 0),
        "head.bias": (head.bias, False),
        "head.scale": (head.scale, 1.0),
        "head.softcap": (head.softcap, None),
    }
    for block in dict.fromkeys(model.blocks):
        name, attention = f"blocks[{model.blocks.index(block)}]", block.attention
        wanted |= {
            f"{name}.residual_scale": (block.residual_scale, 1.0),
            f"{name}.attention.query_norm": (attention.query_norm, None),
            f"{name}.attention.key_norm": (attention.key_norm, None),
            f"{name}.attention.clip": (attention.clip, None),
            f"{name}.attention.alibi": (attention.alibi, False),
        }
        yield from _norm_not_computed(f"{name}.norm", block.norm)
        rope = attention.rope
        if rope is not None:
            wanted[f"{name}.attention.rope.scaling"] = (rope.scaling, None)
            if rope.dims % 2 or not 0 < rope.dims <= attention.head_dim:
                size = attention.head_dim
                yield f"{name}.attention.rope.dims must be even and at most head_dim ({size}), but is {rope.dims}"
    if model.final_norm is not None:
        yield from _norm_not_computed("final_norm", model.final_norm)
    for option, (found, computed) in wanted.items():
        if found != computed:
            yield f"{option} must be {computed}, since the layers do not compute it otherwise yet, but is {found}"


def _norm_not_computed(name: str, norm: Norm) -> Iterator[str]:
    if norm.kind is NormKind.rmsnorm and norm.bias:
        yield f"{name}.bias must be False for an RMSNorm, but is True"
    if norm.bias and not norm.weight:
        yield f"{name}.bias must be False for a norm without weight, but is True"


def not_divisible(model: Model, tensor_parallel_size: int) -> Iterator[str]:
    """Yield one line for each size that cannot be sharded evenly over the ranks, or divided into groups of heads."""
    for block in dict.fromkeys(model.blocks):
        heads, groups = block.attention.num_heads, block.attention.num_key_value_heads
        sizes = {
            "model.num_attention_heads": heads,
            "model.num_key_value_heads": groups,
            "model.ffn_hidden_size": block.feed_forward.inner_size,
        }
        for key, value in sizes.items():
            if value % tensor_parallel_size:
                yield f"{key} ({value}) must be divisible by layout.tensor_parallel_size ({tensor_parallel_size})"
        if heads % groups:
            yield f"model.num_attention_heads ({heads}) must be divisible by model.num_key_value_heads ({groups})"
