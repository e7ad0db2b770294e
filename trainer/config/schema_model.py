"""The part of the config schema that is the model: its sizes, and the options of its one kind of block."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trainer.spec.execution import RecomputeKind
from trainer.spec.model import Wiring
from trainer.spec.parts import NormKind
from trainer.spec.rope import RopeScaling


class PositionKind(Enum):
    """Position of a token, as the model sees it.

    `learned`: a table of vectors; `rope`: rotary embedding of queries and keys; `alibi`: attention scores that fall
    with the distance (BLOOM); `none`: only the causal mask tells it.
    """

    learned = "learned"
    rope = "rope"
    alibi = "alibi"
    none = "none"


class ActivationKind(Enum):
    """Non-linearity of the MLP.

    `gelu` is exact, `gelu_tanh` is GPT-2's approximation, `relu2` the squared ReLU, `swiglu` is silu with a gate.
    """

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    relu = "relu"
    relu2 = "relu2"
    silu = "silu"
    swiglu = "swiglu"


class QueryKeyNorm(Enum):
    """Norm of queries and keys before the rotation: of each head by itself (Qwen3), or over all heads (OLMo 2)."""

    none = "none"
    head = "head"
    full = "full"


class LayerAttention(Enum):
    """Attention of a layer: to all earlier tokens or to a sliding window of them, with or without rotation."""

    full = "full"
    window = "window"
    full_no_rope = "full_no_rope"
    window_no_rope = "window_no_rope"

    @property
    def is_windowed(self) -> bool:
        """True if the layer attends to the latest tokens only."""
        return self in (LayerAttention.window, LayerAttention.window_no_rope)

    @property
    def rotates(self) -> bool:
        """True if the layer rotates queries and keys where the model has rotary positions."""
        return self in (LayerAttention.full, LayerAttention.window)


class LoraTarget(Enum):
    """Outputs of the linear layers of a block that LoRA can add to.

    `qkv` and `gate_up` are one adapter for all of them, which share its first matrix, as PEFT has it where they are one
    layer (GPT-2, GPT-NeoX, Phi-3); `q`, `k`, `v`, `gate` and `up` have one each, as where they are several (LLaMA).
    """

    all = "all"
    q = "q"
    k = "k"
    v = "v"
    qkv = "qkv"
    output = "output"
    gate = "gate"
    up = "up"
    gate_up = "gate_up"
    down = "down"


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (arXiv 2106.09685): frozen weights W, to which a trained product of two narrow matrices is added."""

    rank: int | None = None
    """Rank of the adapters: W x + scale B A x with A `[rank, inputs]` and B `[outputs, rank]`. Only they are trained;
    the weights come from checkpoint.init_from. null: no LoRA."""
    alpha: float | None = None
    """Numerator of the scale, alpha / rank. null: the rank, so that the scale is 1."""
    targets: tuple[LoraTarget, ...] = (LoraTarget.all,)
    """Linear layers of a block that have an adapter: q, k, v or qkv for all of them in one; output (of attention);
    gate, up, or gate_up for both in one; down. all: q, k, v, output, gate (if there is one), up and down."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) instead, so that larger ranks do not learn more slowly (rsLoRA, arXiv 2312.03732)."""


@dataclass(frozen=True)
class ModelConfig:
    """One GPT. All sizes are of the whole model, never of a rank."""

    name: str = "custom"
    """Name of the model in logs; it has no effect on the model."""
    path: str | None = None
    """A folder or hub name of a Hugging Face model, with model=hf: the other keys of this group become
    those of its config.json, unless a word or a later file sets them, and this one null again. Its weights:
    checkpoint.init_from."""
    hidden_size: int = 64
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of transformer blocks."""
    num_attention_heads: int = 4
    """Number of query heads; layout.tensor_parallel_size must divide it."""
    num_key_value_heads: int | None = None
    """Number of key/value heads (grouped-query attention). With fewer of them than tensor-parallel ranks, several ranks
    hold the same one. null: as many as query heads."""
    head_dim: int | None = None
    """Size of one head. null: hidden_size / num_attention_heads."""
    ffn_hidden_size: int | None = None
    """Inner width of the MLP; with a gate, the width of the gate and of the up projection each. null: 4 x
    hidden_size."""
    seq_length: int = 128
    """Tokens in a training sequence; also the number of learned positions."""
    vocab_size: int | None = None
    """Number of token ids. null: as many as the tokenizer has."""
    vocab_pad_multiple: int = 8
    """The embedding is padded to a multiple of this times layout.tensor_parallel_size."""
    position: PositionKind = PositionKind.learned
    """learned | rope | alibi | none."""
    position_offset: int = 0
    """position=learned: row of the table that the first token reads (OPT: 2); the table has seq_length +
    position_offset rows."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies (position=rope)."""
    rope_dims: int | None = None
    """position=rope: number of elements at the start of each head that are rotated (GPT-NeoX, Phi). null: all."""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    """position=rope: scaling of the frequencies for longer texts."""
    local_rope_theta: float | None = None
    """Base of the rotary frequencies in layers with a window (Gemma 3). null: rope_theta."""
    wiring: Wiring = Wiring.pre
    """pre | post | output | sandwich | parallel | parallel_two_norms. pre: x + f(norm(x)) for attention and then for
    the MLP (GPT-2, LLaMA); post: norm(x + f(x)) (GPT-1); output: x + norm(f(x)) (OLMo 2); sandwich: x +
    norm(f(norm(x))) (Gemma 3); parallel: x + attention(n) + mlp(n) with n = norm(x) (GPT-J, Phi); parallel_two_norms:
    the same with a norm for each (GPT-NeoX). A parallel block adds both over
    tensor-parallel ranks in one message instead of two."""
    norm: NormKind = NormKind.layernorm
    """layernorm | rmsnorm."""
    norm_eps: float = 1e-5
    """Epsilon of a norm: added to the variance before the square root."""
    norm_weight: bool = True
    """Give norms a weight. false: they only normalise, without weight and bias (OLMo 1)."""
    norm_bias: bool | None = None
    """Give LayerNorms a bias. null: as model.bias says; RMSNorm never has one."""
    norm_offset: float = 0.0
    """Number added to a norm's weight before it scales (Gemma: 1). The weight then begins at 0 instead of 1."""
    final_norm: bool = True
    """Normalise the last block's output before the head (GPT-1: false)."""
    activation: ActivationKind = ActivationKind.gelu_tanh
    """Non-linearity of the MLP."""
    gated: bool | None = None
    """Multiply activation(gate) with the up projection (GLU, arXiv 2002.05202). null: true for swiglu, otherwise
    false."""
    bias: bool = True
    """Give linear layers and LayerNorms a bias, those excepted that have a key of their own."""
    qkv_bias: bool | None = None
    """Give the projections of queries, keys and values a bias (Qwen2). null: as model.bias says."""
    attention_output_bias: bool | None = None
    """Give the attention's output projection a bias (GPT-Neo). null: as model.bias says."""
    mlp_bias: bool | None = None
    """Give both matrices of the MLP a bias (GPT-J). null: as model.bias says."""
    head_bias: bool = False
    """Give the output head a bias (GPT-J, Phi)."""
    query_key_norm: QueryKeyNorm = QueryKeyNorm.none
    """none | head | full. It has the kind, the epsilon and the offset of model.norm, and no bias."""
    attention_scale: float | None = None
    """Factor of the attention scores (GPT-Neo: 1). null: 1 / sqrt(head_dim)."""
    clip_qkv: float | None = None
    """Limit of the elements of queries, keys and values, which are kept in [-clip_qkv, clip_qkv] (OLMo 1). null:
    none."""
    sliding_window: int | None = None
    """Number of latest tokens, itself included, that a token attends to in layers with a window (Mistral). null:
    all."""
    layer_pattern: tuple[LayerAttention, ...] = ()
    """Kinds of attention, repeated over the layers: [window,window,window,window,window,full] for Gemma 3. Empty:
    window in all layers if sliding_window is set, otherwise full."""
    embedding_scale: float = 1.0
    """Factor of the looked-up rows of the token embedding (Gemma: the square root of hidden_size)."""
    embedding_norm: bool = False
    """Normalise the looked-up rows of the token embedding (BLOOM)."""
    residual_scale: float = 1.0
    """Factor of what attention and MLP add to the residual stream (Granite)."""
    tied_embeddings: bool = True
    """Share one weight between the token embedding and the output head."""
    logit_scale: float = 1.0
    """Factor of the logits (Cohere; Granite divides: 1 / logits_scaling)."""
    final_softcap: float | None = None
    """Limit of the logits: cap x tanh(logits / cap), after logit_scale (Gemma 2). null: none."""
    dropout: float = 0.0
    """Probability of zeroing an element after the embedding, the attention output and the MLP output."""
    attention_dropout: float = 0.0
    """Probability of zeroing an attention weight."""
    init_std: float = 0.02
    """Standard deviation of the initial weights; residual outputs use init_std / sqrt(2 num_layers)."""
    recompute: RecomputeKind = RecomputeKind.none
    """none | selective | full. selective: only the core of attention; full: every block, from its input."""
    fused_loss: bool = True
    """Compute head and loss a few rows at a time, never the whole logits: less memory, same numbers."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters, which are trained instead of the model's weights."""
