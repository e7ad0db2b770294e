"""The entries that many families have alike: sizes under LLaMA's names, and what only training reads."""

from __future__ import annotations

from trainer.families.fields import Constant, Entry, Field, Listed


def sizes(vocab: int, hidden: int, ffn: int, layers: int, heads: int, tied: bool = False) -> tuple[Entry, ...]:
    """Return the sizes under the names of LLaMA's config.json, each with the default of transformers' class."""
    return (
        Field("vocab_size", "vocab_size", vocab),
        Field("hidden_size", "hidden_size", hidden),
        Field("intermediate_size", "ffn_hidden_size", ffn),
        Field("num_hidden_layers", "num_layers", layers),
        Field("num_attention_heads", "num_attention_heads", heads),
        Field("tie_word_embeddings", "tied_embeddings", tied),
        Field("initializer_range", "init_std", 0.02),
    )


def short_sizes(vocab: int, tied: bool = True, hidden: int = 768, layers: int = 12) -> tuple[Entry, ...]:
    """Return the sizes under the names of GPT-2's config.json."""
    return (
        Field("vocab_size", "vocab_size", vocab),
        Field("n_embd", "hidden_size", hidden),
        Field("n_layer", "num_layers", layers),
        Field("n_head", "num_attention_heads", 16 if hidden > 768 else 12),
        Field("tie_word_embeddings", "tied_embeddings", tied),
        Field("initializer_range", "init_std", 0.02),
        Field("layer_norm_epsilon", "norm_eps", 1e-5),
    )


def rms_norm(eps: float) -> tuple[Entry, ...]:
    """Return RMSNorm with a weight, and no biases anywhere."""
    return (Constant("norm", "rmsnorm"), Constant("bias", False), Field("rms_norm_eps", "norm_eps", eps))


def layer_norm() -> tuple[Entry, ...]:
    """Return LayerNorm with weight and bias, and biases everywhere else too."""
    return (Constant("norm", "layernorm"), Constant("bias", True))


ATTENTION_DROPOUT: Entry = Listed("attention_dropout", 0.0, "attention_dropout")
SHORT_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
"""Names that GPT-2's class takes for its own."""


def dropouts(default: float, *names: str) -> tuple[Entry, ...]:
    """Return the probabilities of dropout, which a run chooses for itself; the last name is that of attention."""
    *others, attention = names
    return (*(Listed(name, default, "dropout") for name in others), Listed(attention, default, "attention_dropout"))


def summaries() -> tuple[Entry, ...]:
    """Return the keys of a head for classification, which a language model does not have."""
    return (
        Listed("summary_type", "cls_index"),
        Listed("summary_use_proj", True),
        Listed("summary_activation"),
        Listed("summary_proj_to_labels", True),
        Listed("summary_first_dropout", 0.1),
    )
