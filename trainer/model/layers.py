"""The model as a list of layers, by name. No torch: planning and partitioning read it."""

from __future__ import annotations

from trainer.config.plan import ModelSpec


def block_name(index: int) -> str:
    """Return the name of block `index`, counted from 0."""
    return f"blocks.{index}"


def layer_names(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of all layers, in the order in which data passes them."""
    blocks = (block_name(index) for index in range(spec.num_layers))
    return ("embedding", "position", *blocks, "final_norm", "head")
