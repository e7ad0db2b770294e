"""The components of a model. Each lists its tensors, its FLOPs, and the elements that it keeps for backward.

FLOPs are those of one token in one forward pass; a multiply-add counts as two, and only matrix multiplications count,
as in PaLM (arXiv 2204.02311, appendix B): attention over all keys, not the causal half, so that MFU compares with
published figures. Kept elements are counted tensor by tensor as in arXiv 2205.05198, section 4, without dropout and
without the scores, which a fused attention never keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from trainer.spec.rope import Rope
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
    """Elements on every tensor-parallel rank, or sharded over the sequence with sequence parallelism."""
    cut: int = 0
    """Elements over all tensor-parallel ranks, each of which holds its share."""

    def __add__(self, other: Kept) -> Kept:
        """Return the sums of both."""
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
    """Number added to the weight before it scales (Gemma: 1)."""
    heads: int | None = None
    """Number of attention heads that the width is made of, over which it is sharded on tensor-parallel ranks, each of
    which still normalises with the statistics of the whole width. None: every rank holds the whole width."""

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the norm with that global name."""
        cut = None if self.heads is None else Cut(0, (self.width,), heads=(self.heads,))
        if self.weight:
            init = Init.zeros if self.offset else Init.ones
            yield TensorSpec(f"{name}.weight", (self.width,), init, cut, decays=False)
        if self.bias:
            yield TensorSpec(f"{name}.bias", (self.width,), Init.zeros, cut, decays=False)

    @property
    def kept(self) -> Kept:
        """Its input, and for RMSNorm the normalized values before the scale."""
        return Kept(whole=self.width * (2 if self.kind is NormKind.rmsnorm else 1))


@dataclass(frozen=True)
class Adapter:
    """A low-rank sum to some outputs of a linear layer: y += scale x B A x (LoRA, arXiv 2106.09685)."""

    name: str
    """Name of the outputs, such as q or qkv; names of its tensors begin with it."""
    rank: int
    scale: float
    first: int = 0
    """Index of the first of the fused outputs that it adds to."""
    count: int = 1
    """Number of fused outputs that it adds to."""


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b, with the rows (outputs) or the columns (inputs) of W sharded over tensor-parallel ranks."""

    in_features: int
    sections: tuple[int, ...]
    """Widths of the fused outputs."""
    bias: bool
    cut_inputs: bool = False
    """Shard the inputs, whose partial sums are added over the ranks, instead of the outputs."""
    init: Init = Init.normal
    heads: tuple[int, ...] = ()
    """Number of attention heads that each of the outputs is made of; empty: they are not made of heads."""
    adapters: tuple[Adapter, ...] = ()

    @property
    def out_features(self) -> int:
        """Width of all outputs together."""
        return sum(self.sections)

    @property
    def forward_flops(self) -> int:
        """FLOPs of one token."""
        low_rank = sum(one.rank * (self.in_features + self.adapted(one).out_features) for one in self.adapters)
        return 2 * (self.in_features * self.out_features + low_rank)

    @property
    def kept(self) -> Kept:
        """Elements that adapters keep between their two matrices; the input of the first is the layer's own."""
        return Kept(whole=sum(one.rank for one in self.adapters))

    def adapted(self, adapter: Adapter) -> Linear:
        """Return the layer of those outputs alone that an adapter adds to."""
        own = slice(adapter.first, adapter.first + adapter.count)
        return replace(self, sections=self.sections[own], heads=self.heads[own], adapters=())

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the layer with that global name, those of its adapters last."""
        yield from self.own_tensors(name)
        for adapter in self.adapters:
            yield from self.adapter_tensors(name, adapter)

    def adapter_tensors(self, name: str, adapter: Adapter) -> Iterator[TensorSpec]:
        """Yield A `[rank, inputs]` and B `[outputs, rank]` of an adapter: sharded where the layer's weight is."""
        part, rank, prefix = self.adapted(adapter), adapter.rank, f"{name}.lora.{adapter.name}"
        columns = Cut(1, (self.in_features,)) if self.cut_inputs else None
        rows = None if self.cut_inputs else Cut(0, part.sections, heads=part.heads)
        yield TensorSpec(f"{prefix}.a", (rank, self.in_features), Init.uniform, columns, is_adapter=True)
        yield TensorSpec(f"{prefix}.b", (part.out_features, rank), Init.zeros, rows, is_adapter=True)

    def own_tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield weight and bias."""
        rows = Cut(0, self.sections, heads=self.heads)
        cut = Cut(1, (self.in_features,)) if self.cut_inputs else rows
        yield TensorSpec(f"{name}.weight", (self.out_features, self.in_features), self.init, cut)
        if self.bias:
            cut_bias = None if self.cut_inputs else rows
            yield TensorSpec(f"{name}.bias", (self.out_features,), Init.zeros, cut_bias, decays=False)


@dataclass(frozen=True)
class Attention:
    """Causal multi-head attention with grouped keys and values."""

    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: Rope | None = None
    """Rotary embedding; None: the layer does not know a token's position."""
    window: int | None = None
    """Number of latest tokens that are attended to; None: all."""
    bias: bool = False
    """Bias of queries, keys and values."""
    output_bias: bool = False
    scale: float | None = None
    """Factor of the scores; None: 1 / sqrt(head_dim)."""
    query_norm: Norm | None = None
    """Norm of queries before the rotation: of each head (its width is head_dim), or of all heads at once."""
    key_norm: Norm | None = None
    """The same for keys."""
    clip: float | None = None
    """Limit of queries, keys and values, which are kept in [-clip, clip]."""
    alibi: bool = False
    """Add to each score the key's position times the head's own slope (arXiv 2108.12409, as in BLOOM)."""
    qkv_adapters: tuple[Adapter, ...] = ()
    output_adapters: tuple[Adapter, ...] = ()

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
        """The matrix that makes all queries, then all keys, then all values."""
        groups = self.num_key_value_heads
        widths = (self.queries, self.keys, self.keys)
        heads = (self.num_heads, groups, groups)
        return Linear(self.hidden_size, widths, self.bias, heads=heads, adapters=self.qkv_adapters)

    @property
    def output(self) -> Linear:
        """The matrix that writes into the residual stream."""
        return Linear(
            self.queries,
            (self.hidden_size,),
            self.output_bias,
            cut_inputs=True,
            init=Init.residual,
            adapters=self.output_adapters,
        )

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the attention with that global name."""
        yield from self.qkv.tensors(f"{name}.qkv")
        for part, norm in (("query_norm", self.query_norm), ("key_norm", self.key_norm)):
            if norm is not None:
                yield from norm.tensors(f"{name}.{part}")
        yield from self.output.tensors(f"{name}.output")

    def forward_flops(self, length: float) -> float:
        """Return the FLOPs of one token in a sequence of `length`."""
        keys = length if self.window is None else min(length, self.window)
        return float(self.qkv.forward_flops + self.output.forward_flops + 4 * self.queries * keys)

    @property
    def kept(self) -> Kept:
        """Queries, keys, values, rotated ones too, and the input of the output projection; not its own input.

        What follows from others is kept where the next step needs it: normalised values before an RMSNorm's scale, and
        behind it, or behind a limit, what attention or the limit reads.
        """
        both = self.queries + self.keys
        turned = 0 if self.rope is None else both
        normed = limited = 0
        if self.query_norm is not None:
            normed = both * (self.query_norm.kind is NormKind.rmsnorm)
            normed += both * (self.clip is not None or self.rope is None)
        if self.clip is not None:
            limited = self.keys + both * (self.rope is None)
        return Kept(cut=2 * both + turned + normed + limited) + self.qkv.kept + self.output.kept


@dataclass(frozen=True)
class FeedForward:
    """The MLP of a block: up, activate, down; with a gate, activate(gate) x up (SwiGLU, arXiv 2002.05202)."""

    hidden_size: int
    inner_size: int
    activation: Activation
    gated: bool = False
    bias: bool = False
    """Bias of the first matrix."""
    output_bias: bool = False
    up_adapters: tuple[Adapter, ...] = ()
    down_adapters: tuple[Adapter, ...] = ()

    @property
    def up(self) -> Linear:
        """The first matrix; with a gate it makes all gates, then all ups."""
        sections = (self.inner_size,) * (2 if self.gated else 1)
        return Linear(self.hidden_size, sections, self.bias, adapters=self.up_adapters)

    @property
    def down(self) -> Linear:
        """The matrix that writes into the residual stream."""
        return Linear(
            self.inner_size,
            (self.hidden_size,),
            self.output_bias,
            cut_inputs=True,
            init=Init.residual,
            adapters=self.down_adapters,
        )

    @property
    def up_name(self) -> str:
        """Name of the first matrix below the component's."""
        return "gate_up" if self.gated else "up"

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the MLP with that global name."""
        yield from self.up.tensors(f"{name}.{self.up_name}")
        yield from self.down.tensors(f"{name}.down")

    def forward_flops(self, length: float) -> float:
        """Return the FLOPs of one token, whatever the sequence's length."""
        return float(self.up.forward_flops + self.down.forward_flops)

    @property
    def kept(self) -> Kept:
        """Elements before and after the activation, with a gate also gate and product; not its own input.

        The way back through a ReLU begins at its output, and a squared one has two.
        """
        squared = self.activation is Activation.relu2
        count = 4 + squared if self.gated else 1 if self.activation is Activation.relu else 2
        return Kept(cut=count * self.inner_size) + self.up.kept + self.down.kept


@dataclass(frozen=True)
class Embedding:
    """A row for each token id."""

    vocab_size: int
    """Number of ids that exist. Further rows, which make the vocabulary divisible, belong to the layout."""
    hidden_size: int
    scale: float = 1.0
    """Factor of the rows that are looked up (Gemma: sqrt(hidden_size))."""
    norm: Norm | None = None
    """Norm of the rows that are looked up (BLOOM)."""

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the embedding with that global name."""
        cut = Cut(0, (self.vocab_size,), is_vocabulary=True)
        yield TensorSpec(f"{name}.weight", (self.vocab_size, self.hidden_size), Init.normal, cut)
        if self.norm is not None:
            yield from self.norm.tensors(f"{name}.norm")

    def forward_flops(self, length: float) -> float:
        """Return 0: a lookup is no matrix multiplication."""
        return 0.0


@dataclass(frozen=True)
class Positions:
    """Vectors added to the looked-up tokens for their positions: a learned table, or nothing."""

    hidden_size: int
    length: int | None = None
    """Number of learned positions; None: there are none."""
    offset: int = 0
    """Row of the first position (OPT: 2)."""

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the layer with that global name."""
        if self.length is not None:
            yield TensorSpec(f"{name}.weight", (self.length + self.offset, self.hidden_size), Init.normal)

    def forward_flops(self, length: float) -> float:
        """Return 0: a lookup is no matrix multiplication."""
        return 0.0


@dataclass(frozen=True)
class Head:
    """The output head, from hidden to a logit for each token id."""

    hidden_size: int
    vocab_size: int
    tied: bool
    """True if it multiplies with the embedding's weight."""
    bias: bool = False
    scale: float = 1.0
    """Factor of the logits (Cohere)."""
    softcap: float | None = None
    """Limit of the logits: cap tanh(logits / cap), after the scale (Gemma 2). None: no limit."""

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the head's own tensors with that global name."""
        cut = Cut(0, (self.vocab_size,), is_vocabulary=True)
        if not self.tied:
            yield TensorSpec(f"{name}.weight", (self.vocab_size, self.hidden_size), Init.normal, cut)
        if self.bias:
            yield TensorSpec(f"{name}.bias", (self.vocab_size,), Init.zeros, cut, decays=False)

    def forward_flops(self, length: float) -> float:
        """Return the FLOPs of one token."""
        return float(2 * self.hidden_size * self.vocab_size)
