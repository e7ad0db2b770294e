"""Plans of published runs of other software, made without Hydra: the planner is held against what they measured."""

from __future__ import annotations

from typing import Required, TypedDict, Unpack

from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    ActivationKind,
    BatchConfig,
    Dtype,
    LayoutConfig,
    ModelConfig,
    NormKind,
    PositionKind,
    PrecisionConfig,
    RecomputeKind,
    TridentConfig,
    ZeroConfig,
)


class Run(TypedDict, total=False):
    """The way in which a model was trained."""

    pp: Required[int]
    tp: Required[int]
    dp: Required[int]
    micro_batch: Required[int]
    global_batch: Required[int]
    sequence_parallel: bool
    zero_stage: int
    stage_boundaries: tuple[int, ...]


def gpt_plan(
    *,
    hidden: int,
    heads: int,
    layers: int,
    vocab: int,
    length: int,
    recompute: str = "full",
    dtype: str = "fp16",
    dropout: float = 0.1,
    fused_loss: bool = False,
    tied: bool = True,
    **run: Unpack[Run],
) -> RunPlan:
    """Return the plan of a GPT-3-like model: learned positions, LayerNorm, biases, MLP of 4 x hidden."""
    model = ModelConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_layers=layers,
        seq_length=length,
        vocab_size=vocab,
        dropout=dropout,
        attention_dropout=dropout,
        recompute=RecomputeKind(recompute),
        fused_loss=fused_loss,
        tied_embeddings=tied,
    )
    return _plan(model, vocab, dtype, run)


def llama_plan(
    *,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    layers: int,
    vocab: int,
    length: int,
    recompute: str = "none",
    dtype: str = "bf16",
    fused_loss: bool = True,
    **run: Unpack[Run],
) -> RunPlan:
    """Return the plan of a LLaMA-like model: RoPE, RMSNorm, SwiGLU, grouped queries, no biases, untied."""
    model = ModelConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        ffn_hidden_size=ffn,
        num_layers=layers,
        seq_length=length,
        vocab_size=vocab,
        position=PositionKind.rope,
        norm=NormKind.rmsnorm,
        activation=ActivationKind.swiglu,
        bias=False,
        tied_embeddings=False,
        recompute=RecomputeKind(recompute),
        fused_loss=fused_loss,
    )
    return _plan(model, vocab, dtype, run)


def _plan(model: ModelConfig, vocab: int, dtype: str, run: Run) -> RunPlan:
    layout = LayoutConfig(
        pipeline_parallel_size=run["pp"],
        tensor_parallel_size=run["tp"],
        data_parallel_size=run["dp"],
        sequence_parallel=run.get("sequence_parallel", False),
        stage_boundaries=run.get("stage_boundaries", ()),
    )
    config = TridentConfig(
        model=model,
        layout=layout,
        zero=ZeroConfig(stage=run.get("zero_stage", 1)),
        precision=PrecisionConfig(dtype=Dtype(dtype)),
        batch=BatchConfig(global_batch_size=run["global_batch"], micro_batch_size=run["micro_batch"]),
    )
    return make_plan(config, vocab)
