"""RunPlan: every number derived from the config. Derived numbers live only here. No torch.

`make_plan` expects a config that `validate.py` has accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.config.pipeline_schedules import SCHEDULES, Schedule
from trainer.config.schema import (
    ActivationKind,
    Dtype,
    ModelConfig,
    NormKind,
    OffloadKind,
    PositionKind,
    RecomputeKind,
    ScheduleKind,
    TridentConfig,
)


@dataclass(frozen=True)
class ModelSpec:
    """A model with nothing left open: what `trainer.model` builds. Sizes are global, never of a rank."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    ffn_hidden_size: int
    seq_length: int
    vocab_size: int
    """Token ids that exist; rows above are padding, never predicted and never trained."""
    padded_vocab_size: int
    position: PositionKind
    rope_theta: float
    norm: NormKind
    norm_eps: float
    activation: ActivationKind
    bias: bool
    tied_embeddings: bool
    sliding_window: int | None
    dropout: float
    attention_dropout: float
    init_std: float
    recompute: RecomputeKind
    fused_loss: bool = True
    """Head and loss in one, without the whole logits."""

    @property
    def block_matrix_parameters(self) -> int:
        """Elements of the matrices of one block: what each token is multiplied with."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        matrices = 3 if self.activation is ActivationKind.swiglu else 2
        return self.hidden_size * (2 * (queries + keys) + matrices * self.ffn_hidden_size)


@dataclass(frozen=True)
class RunPlan:
    """What one run does, in numbers. Built once by the entry point, handed down, never changed."""

    config: TridentConfig
    model: ModelSpec
    world_size: int
    pipeline_parallel_size: int
    tensor_parallel_size: int
    data_parallel_size: int
    num_micro_batches: int
    """Micro-batches that a rank runs in one optimizer step (gradient accumulation)."""
    tokens_per_step: int
    """Tokens in one optimizer step over all ranks."""
    decay_steps: int
    """Resolved `schedule.decay_steps`."""

    @property
    def uses_pipeline_engine(self) -> bool:
        """PP > 1 runs DeepSpeed's PipelineEngine; PP = 1 the plain engine with ZeRO 0-3."""
        return self.pipeline_parallel_size > 1

    @property
    def schedule(self) -> Schedule:
        """Order of micro-batches over the stages."""
        return SCHEDULES[self.config.layout.pipeline_schedule]

    @property
    def bubble_in_theory(self) -> float:
        """Share of a step in which a pipeline rank computes nothing, were all stages equal: 0 to 1."""
        return self.schedule.bubble(self.pipeline_parallel_size, self.num_micro_batches)

    @property
    def hang_timeout_s(self) -> int:
        """Resolved `runtime.hang_timeout_s`."""
        runtime = self.config.runtime
        return runtime.timeout_s // 3 if runtime.hang_timeout_s is None else runtime.hang_timeout_s

    @property
    def zero_stage(self) -> int:
        """Stage that DeepSpeed runs.

        One replica has nothing to shard: in fp32 on the device, stages 1 and 2 would only copy every gradient and
        weight to flat buffers and back, so it runs stage 0. Half precision needs their fp32 master weights.
        """
        zero = self.config.zero
        alone = self.data_parallel_size == 1 and zero.offload is OffloadKind.none
        if alone and zero.stage in (1, 2) and self.config.precision.dtype is Dtype.fp32:
            return 0
        return zero.stage

    @property
    def layout_name(self) -> str:
        """Short name of the layout, e.g. `pp2_tp2_dp2`."""
        return f"pp{self.pipeline_parallel_size}_tp{self.tensor_parallel_size}_dp{self.data_parallel_size}"


def padded_vocab_size(vocab_size: int, pad_multiple: int, tensor_parallel_size: int) -> int:
    """Return the smallest multiple of pad_multiple * tensor_parallel_size that holds `vocab_size` rows."""
    unit = pad_multiple * tensor_parallel_size
    return -(-vocab_size // unit) * unit


def make_model_spec(model: ModelConfig, vocab_size: int, tensor_parallel_size: int) -> ModelSpec:
    """Resolve every null of `model`; `vocab_size` comes from the config or the tokenizer."""
    return ModelSpec(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads or model.num_attention_heads,
        head_dim=model.head_dim or model.hidden_size // model.num_attention_heads,
        ffn_hidden_size=model.ffn_hidden_size or 4 * model.hidden_size,
        seq_length=model.seq_length,
        vocab_size=vocab_size,
        padded_vocab_size=padded_vocab_size(vocab_size, model.vocab_pad_multiple, tensor_parallel_size),
        position=model.position,
        rope_theta=model.rope_theta,
        norm=model.norm,
        norm_eps=model.norm_eps,
        activation=model.activation,
        bias=model.bias,
        tied_embeddings=model.tied_embeddings,
        sliding_window=model.sliding_window,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        init_std=model.init_std,
        recompute=model.recompute,
        fused_loss=model.fused_loss,
    )


def data_parallel_size(config: TridentConfig, world_size: int | None) -> int:
    """Return dp: as configured, or what the launched world leaves for it, or 1."""
    layout = config.layout
    if isinstance(layout.data_parallel_size, int):
        return layout.data_parallel_size
    model_parallel = layout.pipeline_parallel_size * layout.tensor_parallel_size
    return 1 if world_size is None else max(1, world_size // model_parallel)


def make_plan(config: TridentConfig, vocab_size: int, world_size: int | None = None) -> RunPlan:
    """Derive all numbers of a validated config.

    Args:
        config: accepted by `validate`.
        vocab_size: number of token ids (`model.vocab_size`, or the tokenizer's).
        world_size: ranks that a launcher started, or None when this process will start them.
    """
    layout, batch = config.layout, config.batch
    dp = data_parallel_size(config, world_size)
    return RunPlan(
        config=config,
        model=make_model_spec(config.model, vocab_size, layout.tensor_parallel_size),
        world_size=layout.pipeline_parallel_size * layout.tensor_parallel_size * dp,
        pipeline_parallel_size=layout.pipeline_parallel_size,
        tensor_parallel_size=layout.tensor_parallel_size,
        data_parallel_size=dp,
        num_micro_batches=batch.global_batch_size // (batch.micro_batch_size * dp),
        tokens_per_step=batch.global_batch_size * config.model.seq_length,
        decay_steps=resolved_decay_steps(config),
    )


def resolved_decay_steps(config: TridentConfig) -> int:
    """Return `schedule.decay_steps`, or its default for the kind of schedule."""
    if config.schedule.decay_steps is not None:
        return config.schedule.decay_steps
    if config.schedule.kind is ScheduleKind.wsd:
        return max(1, config.train.steps // 10)
    return config.train.steps


def with_vocabulary(plan: RunPlan, vocab_size: int) -> RunPlan:
    """Return the plan for a vocabulary that became known when the tokenizer was built."""
    return replace(plan, model=make_model_spec(plan.config.model, vocab_size, plan.tensor_parallel_size))
