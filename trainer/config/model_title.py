"""The name of a model as a screen shows it. No torch."""

from __future__ import annotations

import textwrap
from dataclasses import replace

from trainer.config.schema import ModelConfig
from trainer.config.searched import conf_folder
from trainer.config.written import from_yaml

_LEFT_OUT = (
    *("name", "path", "seq_length", "vocab_size", "vocab_pad_multiple", "dropout", "attention_dropout", "init_std"),
    *("recompute", "fused_loss", "lora"),
)
"""Keys that say how a model is trained and computed, or that the tokenizer decides: they make no other model."""


def model_title(model: ModelConfig) -> str:
    """Return a model's name, and that it is changed if words made another model of the shipped one of that name."""
    # Not by the path: a name may be any text.
    file = next((file for file in (conf_folder() / "model").glob("*.yaml") if file.stem == model.name), None)
    if file is None:
        return model.name
    shipped = from_yaml("model:\n" + textwrap.indent(file.read_text(encoding="utf-8"), "  ")).model
    same = replace(shipped, **{key: getattr(model, key) for key in _LEFT_OUT})
    return model.name if same == model else f"{model.name}, changed"
