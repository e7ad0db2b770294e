"""Plans of published runs of other software, made without Hydra: the planner is held against what they measured."""

from __future__ import annotations

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


def gpt_plan(
    *,
    hidden: int,
    heads: int,
    layers: int,
    vocab: int,
    length: int,
    pp: int,
    tp: int,
    dp: int,
    micro_batch: int,
    global_batch: int,
    recompute: str = "full",
    sequence_parallel: bool = False,
    zero_stage: int = 1,
    dtype: str = "fp16",
    dropout: float = 0.1,
    fused_loss: bool = False,
    tied: bool = True,
    stage_boundaries: tuple[int, ...] = (),
) -> RunPlan:
    """Return the plan of a GPT-3-like model: learned positions, LayerNorm, biases, MLP of 4 x hidden."""
    config = TridentConfig(
        model=ModelConfig(
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
        ),
        layout=LayoutConfig(
            pipeline_parallel_size=pp,
            tensor_parallel_size=tp,
            data_parallel_size=dp,
            sequence_parallel=sequence_parallel,
            stage_boundaries=stage_boundaries,
        ),
        zero=ZeroConfig(stage=zero_stage),
        precision=PrecisionConfig(dtype=Dtype(dtype)),
        batch=BatchConfig(global_batch_size=global_batch, micro_batch_size=micro_batch),
    )
    return make_plan(config, vocab)


def llama_plan(
    *,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    layers: int,
    vocab: int,
    length: int,
    pp: int,
    tp: int,
    dp: int,
    micro_batch: int,
    global_batch: int,
    recompute: str = "none",
    sequence_parallel: bool = False,
    zero_stage: int = 1,
    dtype: str = "bf16",
    fused_loss: bool = True,
) -> RunPlan:
    """Return the plan of a LLaMA-like model: RoPE, RMSNorm, SwiGLU, grouped queries, no biases, untied."""
    config = TridentConfig(
        model=ModelConfig(
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
        ),
        layout=LayoutConfig(
            pipeline_parallel_size=pp,
            tensor_parallel_size=tp,
            data_parallel_size=dp,
            sequence_parallel=sequence_parallel,
        ),
        zero=ZeroConfig(stage=zero_stage),
        precision=PrecisionConfig(dtype=Dtype(dtype)),
        batch=BatchConfig(global_batch_size=global_batch, micro_batch_size=micro_batch),
    )
    return make_plan(config, vocab)
