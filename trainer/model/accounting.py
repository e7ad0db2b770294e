"""Parameters and FLOPs of a model from its spec alone. No torch.

Counts are of the whole model, without vocabulary padding. FLOPs count a multiply-add as two and only matrix products,
as in PaLM (arXiv 2204.02311, appendix B): attention over all S keys, not the causal half, so that MFU compares with
published figures. A sliding window bounds the keys.
"""

from __future__ import annotations

from trainer.config.plan import ModelSpec
from trainer.config.schema import ActivationKind, NormKind, PositionKind


def _norm_parameters(spec: ModelSpec) -> int:
    has_bias = spec.norm is NormKind.layernorm and spec.bias
    return spec.hidden_size * (2 if has_bias else 1)


def _block_biases(spec: ModelSpec) -> int:
    if not spec.bias:
        return 0
    qkv = (spec.num_attention_heads + 2 * spec.num_key_value_heads) * spec.head_dim
    inner = spec.ffn_hidden_size * (2 if spec.activation is ActivationKind.swiglu else 1)
    return qkv + inner + 2 * spec.hidden_size


def block_parameter_count(spec: ModelSpec) -> int:
    """Return the parameters of one block."""
    return spec.block_matrix_parameters + _block_biases(spec) + 2 * _norm_parameters(spec)


def layer_parameter_counts(spec: ModelSpec) -> tuple[int, ...]:
    """Return the parameters of every layer of `layer_names`; a tied head has none of its own."""
    vocabulary = spec.vocab_size * spec.hidden_size
    position = spec.seq_length * spec.hidden_size if spec.position is PositionKind.learned else 0
    blocks = (block_parameter_count(spec),) * spec.num_layers
    return (vocabulary, position, *blocks, _norm_parameters(spec), 0 if spec.tied_embeddings else vocabulary)


def parameter_count(spec: ModelSpec) -> int:
    """Return the parameters of the model; a tied embedding counts once."""
    return sum(layer_parameter_counts(spec))


def layer_forward_flops(spec: ModelSpec) -> tuple[float, ...]:
    """Return the forward FLOPs of one token in every layer of `layer_names`. Lookups and norms count as zero."""
    keys = spec.seq_length if spec.sliding_window is None else min(spec.seq_length, spec.sliding_window)
    attention = 4 * spec.num_attention_heads * spec.head_dim * keys
    block = float(2 * spec.block_matrix_parameters + attention)
    head = float(2 * spec.hidden_size * spec.vocab_size)
    return (0.0, 0.0, *(block,) * spec.num_layers, 0.0, head)


def flops_per_token(spec: ModelSpec) -> float:
    """Return the training FLOPs of one token: forward, and twice that for backward.

    6 N + 12 L S N_heads D, with N the matrix parameters, head included and lookups not. Recomputation is not model
    work and does not count.
    """
    return 3.0 * sum(layer_forward_flops(spec))
