"""Models to choose from when only a budget is given: one kind of block in many sizes, or the shipped ones. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from textwrap import indent

from trainer.config.models import is_gated, make_model
from trainer.config.schema import ModelConfig
from trainer.config.searched import conf_folder, shown
from trainer.config.written import from_yaml
from trainer.errors import ConfigError
from trainer.planner.scaling_laws import parameter_count
from trainer.spec.model import Model

WIDTHS = (
    *(128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792),
    *(2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 10240, 12288, 14336, 16384, 20480),
)
"""Widths of the residual stream: GPT-3's (arXiv 2005.14165, table 2.1) and LLaMA's, and others between them. From 2048
on they are heads of 128, before it heads of 64, so that the heads can be divided between tensor-parallel ranks."""
WIDE_HEADS_FROM = 2048
ASPECTS = (60, 130)
"""Smallest and largest width / layers; GPT-3 and LLaMA have 43 to 130, and loss hardly depends on it (arXiv 2001.08361,
figure 5)."""
FAVOURITE_ASPECT = 100
SMALLEST_DEPTH = 6
SMALLEST_STEP = 1.1
"""Sizes that are nearer to each other than this factor are one choice."""
KEY_VALUE_HEADS = 8
"""Groups of keys and values where the kind of model has grouped queries (Llama 3, all sizes)."""


@dataclass(frozen=True)
class Candidate:
    """A model that a budget may be spent on."""

    overrides: tuple[str, ...]
    """Words that make it: they change the model that it was made from."""
    config: ModelConfig
    vocab_size: int

    @cached_property
    def model(self) -> Model:
        """The description of the model."""
        return make_model(self.config, self.vocab_size)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, embeddings included."""
        return parameter_count(self.model)


def family(base: ModelConfig, vocab_size: int) -> tuple[Candidate, ...]:
    """Return the kind of model of a config in all sizes up to a trillion parameters, smallest first.

    Width, layers, heads and the MLP's width change; positions, norms, activation, length and vocabulary stay.
    """
    kept: list[Candidate] = []
    for one in sorted(_sized(base, vocab_size), key=lambda one: one.parameters):
        if not kept or one.parameters >= SMALLEST_STEP * kept[-1].parameters:
            kept.append(one)
        elif _oddness(one) < _oddness(kept[-1]):
            kept[-1] = one
    return tuple(kept)


def shipped() -> tuple[Candidate, ...]:
    """Return the models of conf/model that have sizes and a vocabulary, smallest first."""
    return tuple(sorted(_shipped(), key=lambda one: one.parameters))


def fixed(config: ModelConfig, vocab_size: int) -> tuple[Candidate]:
    """Return the user's own model as the only choice."""
    return (Candidate((), config, vocab_size),)


def _sized(base: ModelConfig, vocab_size: int) -> Iterator[Candidate]:
    for width in WIDTHS:
        few, many = (math.ceil(width / aspect) for aspect in reversed(ASPECTS))
        # Numbers that can be divided between pipeline stages.
        unit = 2 if many < 16 else 4 if many < 64 else 8
        depths = {max(SMALLEST_DEPTH, unit * math.ceil(depth / unit)) for depth in range(few, many + 1)}
        for depth in sorted(depths):
            yield _candidate(base, vocab_size, width, depth)


def _candidate(base: ModelConfig, vocab_size: int, width: int, depth: int) -> Candidate:
    heads = width // (128 if width >= WIDE_HEADS_FROM else 64)
    grouped = base.num_key_value_heads is not None and base.num_key_value_heads < base.num_attention_heads
    groups = KEY_VALUE_HEADS if grouped and heads % KEY_VALUE_HEADS == 0 else None
    sizes: dict[str, int | None] = {
        "hidden_size": width,
        "num_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": None,
        "ffn_hidden_size": _gated_width(width) if is_gated(base) else None,
    }
    changed = {name: value for name, value in sizes.items() if getattr(base, name) != value}
    words = (f"model.{name}={'null' if value is None else value}" for name, value in changed.items())
    return Candidate(tuple(words), replace(base, name="custom", **changed), vocab_size)  # type: ignore[arg-type]


def _gated_width(width: int) -> int:
    """Return 8/3 of a width, as LLaMA: three matrices have then as many parameters as two of 4 x width."""
    unit = 256 if width >= 1024 else 64
    return unit * math.ceil(8 * width / 3 / unit)


def _oddness(one: Candidate) -> float:
    aspect = one.config.hidden_size / one.config.num_layers
    return abs(math.log(aspect / FAVOURITE_ASPECT))


def _shipped() -> Iterable[Candidate]:
    for path in sorted((conf_folder() / "model").glob("*.yaml")):
        try:
            config = from_yaml("model:\n" + indent(path.read_text(encoding="utf-8"), "  ")).model
        except (OSError, ConfigError) as error:
            raise ConfigError(f"{shown(path)} must be a model that can be read, but: {error}") from error
        # Those for debugging take the tokenizer's vocabulary, and model=hf has its sizes elsewhere.
        if config.vocab_size is not None and not path.stem.endswith("_debug"):
            yield Candidate((f"model={path.stem}",), config, config.vocab_size)
