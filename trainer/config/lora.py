"""Derive a model's low-rank adapters from `model.lora.*`. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from trainer.config.schema_model import LoraConfig, LoraTarget, ModelConfig
from trainer.spec.model import Block
from trainer.spec.parts import Adapter, Linear

QKV = (LoraTarget.q, LoraTarget.k, LoraTarget.v)
GATE_UP = (LoraTarget.gate, LoraTarget.up)
FUSED = {LoraTarget.qkv: QKV, LoraTarget.gate_up: GATE_UP}
"""A target that is one adapter for several outputs -> those."""


def without_lora(model: ModelConfig) -> ModelConfig:
    """Return the model whose weights the adapters are added to."""
    return replace(model, lora=LoraConfig())


def targets_of(lora: LoraConfig, gated: bool) -> tuple[LoraTarget, ...]:
    """Return the targets without `all`, in the order of a block's outputs."""
    if LoraTarget.all not in lora.targets:
        return tuple(target for target in LoraTarget if target in lora.targets)
    gate = (LoraTarget.gate,) if gated else ()
    return (*QKV, LoraTarget.output, *gate, LoraTarget.up, LoraTarget.down)


def scale_of(lora: LoraConfig) -> float:
    """Return the factor of the product of the two matrices."""
    assert lora.rank is not None, "only LoRA has a scale"
    alpha = lora.rank if lora.alpha is None else lora.alpha
    return alpha / (math.sqrt(lora.rank) if lora.rank_stabilised else lora.rank)


def adapted(block: Block, lora: LoraConfig) -> Block:
    """Return a block with the adapters that the config says; as it is without LoRA."""
    if lora.rank is None:
        return block
    gated = block.feed_forward.gated
    targets = targets_of(lora, gated)

    def found(outputs: tuple[LoraTarget, ...], fused: LoraTarget | None = None) -> tuple[Adapter, ...]:
        return tuple(_adapters(lora, targets, outputs, fused))

    attention = replace(
        block.attention,
        qkv_adapters=found(QKV, LoraTarget.qkv),
        output_adapters=found((LoraTarget.output,)),
    )
    first = found(GATE_UP, LoraTarget.gate_up) if gated else found((LoraTarget.up,))
    feed_forward = replace(block.feed_forward, up_adapters=first, down_adapters=found((LoraTarget.down,)))
    return replace(block, attention=attention, feed_forward=feed_forward)


def _adapters(
    lora: LoraConfig, targets: tuple[LoraTarget, ...], outputs: tuple[LoraTarget, ...], fused: LoraTarget | None
) -> Iterator[Adapter]:
    assert lora.rank is not None, "only LoRA has adapters"
    scale = scale_of(lora)
    if fused in targets:
        assert fused is not None
        yield Adapter(fused.value, lora.rank, scale, count=len(outputs))
        return
    for index, output in enumerate(outputs):
        if output in targets:
            yield Adapter(output.value, lora.rank, scale, first=index)


def adapted_linears(block: Block) -> dict[str, Linear]:
    """Return the linear layers of a block that have adapters, by their name below the block's."""
    attention, feed_forward = block.attention, block.feed_forward
    linears = {
        "attention.qkv": attention.qkv,
        "attention.output": attention.output,
        f"mlp.{feed_forward.up_name}": feed_forward.up,
        "mlp.down": feed_forward.down,
    }
    return {name: linear for name, linear in linears.items() if linear.adapters}
