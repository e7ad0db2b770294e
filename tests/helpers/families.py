"""A model family that the package has never heard of, as data, and what the oracle has to know of it.

Parallel blocks as in GPT-J with rotary positions of half of each head, and every other block sees a window only.
"""

from __future__ import annotations

from dataclasses import fields, replace

from tests.helpers.reference import OracleConfig
from trainer.config.schema import ModelConfig
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


def toy_oracle(config: ModelConfig) -> OracleConfig:
    """Return the same for the oracle, which knows nothing of components."""
    plain = {field.name: getattr(config, field.name) for field in fields(ModelConfig)}
    size = config.head_dim or config.hidden_size // config.num_attention_heads
    windows = tuple((None, WINDOW)[index % 2] for index in range(config.num_layers))
    position = type(config.position).rope
    return OracleConfig(
        **{**plain, "position": position, "rope_theta": THETA},
        wiring="parallel",
        rotary_dims=size // 2,
        windows=windows,
    )
