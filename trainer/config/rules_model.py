"""Rules about the shape of the model, alone and sharded over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.rules_common import Case, Rule, divisors, legal_tensor_parallel_sizes, neighbours, use


def hidden_size_by_heads(case: Case) -> Iterator[str]:
    """Heads divide the residual width evenly, unless their size is given."""
    model = case.config.model
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        legal = use(neighbours(model.hidden_size, model.num_attention_heads), model.hidden_size)
        yield (
            f"model.hidden_size ({model.hidden_size}) must be divisible by model.num_attention_heads "
            f"({model.num_attention_heads}); {legal}, or set model.head_dim"
        )


def heads_by_key_value_heads(case: Case) -> Iterator[str]:
    """Every key/value head serves the same number of query heads."""
    model = case.config.model
    groups = model.num_key_value_heads
    if groups is not None and model.num_attention_heads % groups:
        yield (
            f"model.num_attention_heads ({model.num_attention_heads}) must be divisible by "
            f"model.num_key_value_heads ({groups}); {use(divisors(model.num_attention_heads), groups)}"
        )


def cut_over_tensor_ranks(case: Case) -> Iterator[str]:
    """Heads, MLP and (if sharded) the sequence are sharded evenly, and key/value heads too or shared evenly."""
    model, layout = case.config.model, case.config.layout
    tp = layout.tensor_parallel_size
    parts = [("model.num_attention_heads", model.num_attention_heads)]
    named = "model.ffn_hidden_size" if model.ffn_hidden_size is not None else "4 x model.hidden_size"
    parts.append((named, case.sizes.ffn_hidden_size))
    if layout.sequence_parallel:
        parts.append(("model.seq_length", model.seq_length))
    legal = use(legal_tensor_parallel_sizes(case), tp)
    for key, size in parts:
        if size % tp:
            yield f"{key} ({size}) must be divisible by layout.tensor_parallel_size ({tp}); {legal}"
    groups = model.num_key_value_heads
    if groups is not None and groups % tp and tp % groups:
        yield (
            f"model.num_key_value_heads ({groups}) must be divisible by layout.tensor_parallel_size ({tp}), or divide "
            f"it; {legal}"
        )


def sequence_parallel_alone(case: Case) -> Iterator[str]:
    """Sequence parallelism shards over the tensor-parallel group."""
    layout = case.config.layout
    if layout.sequence_parallel and layout.tensor_parallel_size == 1:
        yield (
            "layout.sequence_parallel=true has no effect with layout.tensor_parallel_size=1; "
            "use layout.tensor_parallel_size >= 2, or layout.sequence_parallel=false"
        )


RULES: tuple[Rule, ...] = (
    hidden_size_by_heads,
    heads_by_key_value_heads,
    cut_over_tensor_ranks,
    sequence_parallel_alone,
)
