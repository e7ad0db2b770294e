"""The links that many families have alike: norms, matrices with their biases, and the tensors of a LLaMA block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainer.families.family import Dims
from trainer.families.layouts import Layout, Link, Same, Stacked

KINDS = ("weight", "bias")


def both(ours: str, *theirs: str, layout: Layout | Stacked | None = None) -> tuple[Link, ...]:
    """Return the links of weight and bias of one of our modules."""
    if layout is None:
        layout = Same() if len(theirs) == 1 else Stacked()
    return tuple(Link(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), layout) for kind in KINDS)


def block(ours: str, prefix: str, *theirs: str, layout: Layout | Stacked | None = None) -> tuple[Link, ...]:
    """Return the links of weight and bias of a module of each block; `prefix` is their name of a block."""
    return both(f"blocks.{{layer}}.{ours}", *(f"{prefix}.{name}" for name in theirs), layout=layout)


def flat(links: Iterable[tuple[Link, ...]]) -> tuple[Link, ...]:
    """Return all links in one tuple."""
    return tuple(link for several in links for link in several)


LLAMA_LAYER = "model.layers.{layer}"
LLAMA_NORMS: Mapping[str, str] = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
"""Our norm of a block -> theirs. The same name means another norm in other families."""


def llama_links(
    _dims: Dims, norms: Mapping[str, str] = LLAMA_NORMS, others: tuple[tuple[Link, ...], ...] = ()
) -> tuple[Link, ...]:
    """Return the links of LLaMA and of the many that keep its names.

    Args:
        _dims: the model's sizes.
        norms: our norms of a block -> theirs.
        others: links that take the place of LLaMA's for the same tensors of ours, or come on top.
    """
    layer = LLAMA_LAYER
    return flat(
        (
            both("embedding", "model.embed_tokens"),
            *(block(ours, layer, theirs) for ours, theirs in norms.items()),
            block("attention.qkv", layer, *(f"self_attn.{part}_proj" for part in "qkv")),
            block("attention.query_norm", layer, "self_attn.q_norm"),
            block("attention.key_norm", layer, "self_attn.k_norm"),
            block("attention.output", layer, "self_attn.o_proj"),
            block("mlp.gate_up", layer, "mlp.gate_proj", "mlp.up_proj"),
            block("mlp.down", layer, "mlp.down_proj"),
            both("final_norm", "model.norm"),
            both("head", "lm_head"),
            *others,
        )
    )
