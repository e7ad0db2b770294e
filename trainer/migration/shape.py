"""The parameters of a transformer, counted from a foreign config's own keys.

It is written for the comparison with the model that the experiment describes, and therefore takes nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """Sizes and options of a GPT as another trainer builds it."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    inner: int
    """Width of the MLP behind its activation."""
    is_gated: bool = False
    qkv_bias: bool = True
    output_bias: bool = True
    mlp_bias: bool = True
    vectors_per_norm: int = 2
    """2: weight and bias; 1: weight; 0: neither."""
    norms_per_layer: int = 2
    query_key_norms: int = 0
    """Elements of the norms of queries and keys of a layer."""
    position_rows: int = 0
    """Rows of the table of learned positions."""
    is_tied: bool = True
    has_embedding_norm: bool = False

    @property
    def without_vocabulary(self) -> int:
        """Parameters outside of the token embedding and the head."""
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        attention = self.hidden * (queries + 2 * keys) + queries * self.hidden
        attention += (queries + 2 * keys) * self.qkv_bias + self.hidden * self.output_bias
        into = self.inner * (2 if self.is_gated else 1)
        mlp = self.hidden * into + self.inner * self.hidden + (into + self.hidden) * self.mlp_bias
        norm = self.hidden * self.vectors_per_norm
        layer = attention + mlp + self.norms_per_layer * norm + self.query_key_norms
        outside = norm + norm * self.has_embedding_norm + self.position_rows * self.hidden
        return self.layers * layer + outside

    def parameters(self, vocab_size: int) -> int:
        """Return all parameters with a vocabulary of this size."""
        return self.without_vocabulary + vocab_size * self.hidden * (1 if self.is_tied else 2)


@dataclass
class There:
    """Numbers of a run as the foreign files say them."""

    shape: Shape | None = None
    """None if they say no model, or one that cannot be counted."""
    not_counted: str = ""
    """Reason why a model cannot be counted."""
    vocab_size: int | None = None
    """Ids of the tokenizer, without padding."""
    padded_vocab_size: int | None = None
    sequences_per_step: int | None = None
    """None if it depends on a number of GPUs that nobody says."""
    seq_length: int | None = None
    more_parameters: int = 0
    """Parameters there that the model here has no use for."""
    because: list[str] = field(default_factory=list)
    """Reasons for these, a phrase each."""

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens of a step, after a warm-up of the batch."""
        if self.sequences_per_step is None or self.seq_length is None:
            return None
        return self.sequences_per_step * self.seq_length
