"""A model family that the package has no file of, as data, and the same for the oracle.

Parallel blocks as in GPT-J with rotary positions of half of each head, and every other block sees a window only.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.config.schema import LayerAttention, ModelConfig, PositionKind
from trainer.spec.model import Model, Wiring
from trainer.spec.rope import Rope

THETA, WINDOW = 100.0, 3


def toy(model: Model) -> Model:
    """Return the toy family's model with the sizes of another one."""
    window = (None, WINDOW)
    blocks = tuple(
        replace(
            block,
            wiring=Wiring.parallel,
            attention=replace(
                block.attention, rope=Rope(THETA, block.attention.head_dim // 2), window=window[index % 2]
            ),
        )
        for index, block in enumerate(model.blocks)
    )
    return replace(model, blocks=blocks, positions=replace(model.positions, length=None))


def toy_oracle(config: ModelConfig) -> ModelConfig:
    """Return the same in keys, which the oracle reads."""
    size = config.head_dim or config.hidden_size // config.num_attention_heads
    return replace(
        config,
        position=PositionKind.rope,
        rope_theta=THETA,
        rope_dims=size // 2,
        wiring=Wiring.parallel,
        sliding_window=WINDOW,
        layer_pattern=(LayerAttention.full, LayerAttention.window),
    )
