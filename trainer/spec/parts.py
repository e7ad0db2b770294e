"""The components of a model. Each answers which tensors it has, its FLOPs, and what it keeps for backward.

FLOPs are those of one token in one forward pass; a multiply-add counts as two, and only matrix products count, as in
PaLM (arXiv 2204.02311, appendix B): attention over all keys, not the causal half, so that MFU compares with published
figures. What is kept is counted tensor by tensor as in arXiv 2205.05198, section 4, without dropout and without the
scores, which a fused attention never keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from trainer.spec.tensors import Cut, Init, TensorSpec


class NormKind(Enum):
    """Normalisation before attention, before the MLP, and before the head."""

    layernorm = "layernorm"
    rmsnorm = "rmsnorm"


class Activation(Enum):
    """An element-wise non-linearity. `gelu` is exact, `gelu_tanh` GPT-2's approximation, `relu2` the squared ReLU."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    relu = "relu"
    relu2 = "relu2"
    silu = "silu"


@dataclass(frozen=True)
class Kept:
    """Elements of one token that forward leaves for backward."""

    whole: int = 0
    """On every tensor-parallel rank, or cut over the sequence with sequence parallelism."""
    cut: int = 0
    """Over all tensor-parallel ranks, each of which holds its share."""

    def __add__(self, other: Kept) -> Kept:
        """Return both together."""
        return Kept(self.whole + other.whole, self.cut + other.cut)


@dataclass(frozen=True)
class Norm:
    """LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467) over the last dimension."""

    kind: NormKind
    width: int
    eps: float
    weight: bool = True
    """Scale by a trained vector."""
    bias: bool = False
    """Add a trained vector. LayerNorm only."""
    offset: float = 0.0
    """Added to the weight before it scales (Gemma: 1)."""

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the norm with that global name."""
        if self.weight:
            init = Init.zeros if self.offset else Init.ones
            yield TensorSpec(f"{name}.weight", (self.width,), init, decays=False)
        if self.bias:
            yield TensorSpec(f"{name}.bias", (self.width,), Init.zeros, decays=False)

    @property
    def kept(self) -> Kept:
        """Its input, and for RMSNorm the normalized values before the scale."""
        return Kept(whole=self.width * (2 if self.kind is NormKind.rmsnorm else 1))


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b, with the rows (outputs) or the columns (inputs) of W cut over tensor-parallel ranks."""

    in_features: int
    sections: tuple[int, ...]
    """Widths of the fused outputs."""
    bias: bool
    cut_inputs: bool = False
    """Cut the inputs, whose partial sums are added over the ranks, instead of the outputs."""
    init: Init = Init.normal

    @property
    def out_features(self) -> int:
        """Width of all outputs together."""
        return sum(self.sections)

    @property
    def forward_flops(self) -> int:
        """FLOPs of one token."""
        return 2 * self.in_features * self.out_features

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the layer with that global name."""
        rows = Cut(0, self.sections)
        cut = Cut(1, (self.in_features,)) if self.cut_inputs else rows
        yield TensorSpec(f"{name}.weight", (self.out_features, self.in_features), self.init, cut)
        if self.bias:
            cut_bias = None if self.cut_inputs else rows
            yield TensorSpec(f"{name}.bias", (self.out_features,), Init.zeros, cut_bias, decays=False)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of queries and keys (arXiv 2104.09864), pairs half a rotation apart as in LLaMA's weights."""

    theta: float
    """Base of the frequencies."""
    dims: int
    """The first `dims` elements of each head are turned, the others pass as they are (GPT-NeoX, Phi)."""


@dataclass(frozen=True)
class Attention:
    """Causal multi-head attention with grouped keys and values."""

    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: Rope | None = None
    """None: the layer does not know where a token is."""
    window: int | None = None
    """Only this many last tokens are attended to; None: all."""
    bias: bool = False
    """Of queries, keys and values."""
    output_bias: bool = False
    scale: float | None = None
    """Of the scores; None: 1 / sqrt(head_dim)."""
    query_key_norm: Norm | None = None
    """Of queries and keys before the rotation: each head (width head_dim), or all heads at once."""
    clip: float | None = None
    """Queries, keys and values are kept in [-clip, clip]."""

    @property
    def queries(self) -> int:
        """Width of all queries together."""
        return self.num_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys together, and of all values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def qkv(self) -> Linear:
        """Makes all queries, then all keys, then all values."""
        return Linear(self.hidden_size, (self.queries, self.keys, self.keys), self.bias)

    @property
    def output(self) -> Linear:
        """Writes into the residual stream."""
        return Linear(self.queries, (self.hidden_size,), self.output_bias, cut_inputs=True, init=Init.residual)

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the attention with that global name."""
        yield from self.qkv.tensors(f"{name}.qkv")
        if self.query_key_norm is not None:
            yield from self.query_key_norm.tensors(f"{name}.query_norm")
            yield from self.query_key_norm.tensors(f"{name}.key_norm")
        yield from self.output.tensors(f"{name}.output")

    def forward_flops(self, length: int) -> float:
        """Return the FLOPs of one token in a sequence of `length`."""
        keys = length if self.window is None else min(length, self.window)
        return float(self.qkv.forward_flops + self.output.forward_flops + 4 * self.queries * keys)

    @property
    def kept(self) -> Kept:
        """Queries, keys, values, turned ones beside them, and the input of the output projection; not its own input."""
        turned = 0 if self.rope is None else self.queries + self.keys
        return Kept(cut=2 * self.queries + 2 * self.keys + turned)


@dataclass(frozen=True)
class FeedForward:
    """The MLP of a block: up, activate, down; with a gate, activate(gate) x up (SwiGLU, arXiv 2002.05202)."""

    hidden_size: int
    inner_size: int
    activation: Activation
    gated: bool = False
    bias: bool = False
    """Of the first matrix."""
    output_bias: bool = False

    @property
    def up(self) -> Linear:
        """The first matrix; with a gate it makes all gates, then all ups."""
        return Linear(self.hidden_size, (self.inner_size,) * (2 if self.gated else 1), self.bias)

    @property
    def down(self) -> Linear:
        """Writes into the residual stream."""
        return Linear(self.inner_size, (self.hidden_size,), self.output_bias, cut_inputs=True, init=Init.residual)

    @property
    def up_name(self) -> str:
        """Name of the first matrix below the component's."""
        return "gate_up" if self.gated else "up"

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the MLP with that global name."""
        yield from self.up.tensors(f"{name}.{self.up_name}")
        yield from self.down.tensors(f"{name}.down")

    def forward_flops(self, length: int) -> float:
        """Return the FLOPs of one token, whatever the sequence's length."""
        return float(self.up.forward_flops + self.down.forward_flops)

    @property
    def kept(self) -> Kept:
        """Before and after the activation, with a gate also gate and product; not its own input."""
        return Kept(cut=(4 if self.gated else 2) * self.inner_size)


@dataclass(frozen=True)
class Embedding:
    """A row for each token id."""

    vocab_size: int
    """Ids that exist. Rows above, which make the vocabulary divisible, are of the layout."""
    hidden_size: int
    scale: float = 1.0
    """Of what is looked up (Gemma: sqrt(hidden_size))."""
    norm: Norm | None = None
    """Of what is looked up (BLOOM)."""

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the embedding with that global name."""
        cut = Cut(0, (self.vocab_size,), is_vocabulary=True)
        yield TensorSpec(f"{name}.weight", (self.vocab_size, self.hidden_size), Init.normal, cut)
        if self.norm is not None:
            yield from self.norm.tensors(f"{name}.norm")

    def forward_flops(self, length: int) -> float:
        """Return 0: a lookup is no matrix product."""
        return 0.0


@dataclass(frozen=True)
class Positions:
    """What is added to the looked-up tokens for their place: a learned table, or nothing."""

    hidden_size: int
    length: int | None = None
    """Learned positions; None: there are none."""
    offset: int = 0
    """Row of the first position (OPT: 2)."""

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the layer with that global name."""
        if self.length is not None:
            yield TensorSpec(f"{name}.weight", (self.length + self.offset, self.hidden_size), Init.normal)

    def forward_flops(self, length: int) -> float:
        """Return 0: a lookup is no matrix product."""
        return 0.0


@dataclass(frozen=True)
class Head:
    """Hidden to a logit for each token id."""

    hidden_size: int
    vocab_size: int
    tied: bool
    """It multiplies with the embedding's weight."""
    bias: bool = False
    scale: float = 1.0
    """Of the logits (Cohere)."""

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the head's own tensors with that global name."""
        cut = Cut(0, (self.vocab_size,), is_vocabulary=True)
        if not self.tied:
            yield TensorSpec(f"{name}.weight", (self.vocab_size, self.hidden_size), Init.normal, cut)
        if self.bias:
            yield TensorSpec(f"{name}.bias", (self.vocab_size,), Init.zeros, cut, decays=False)

    def forward_flops(self, length: int) -> float:
        """Return the FLOPs of one token."""
        return float(2 * self.hidden_size * self.vocab_size)
