"""The config of a run scaled down: its model, and everything else that decides what a step computes. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from trainer.config.models import make_model
from trainer.config.schema import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    DeviceKind,
    OffloadKind,
    OptimizerConfig,
    PrecisionConfig,
    RuntimeConfig,
    StepRule,
    TrainConfig,
    TridentConfig,
    ZeroConfig,
)
from trainer.proving.scaled_model import VOCABULARY, Extent, scaled_model, told_scale

RATE, SIGN_RATE = 1e-3, 1e-5
"""Learning rates: of AdamW and Muon, and of Lion, whose step is as large for a rounding error as for anything else."""
_SCALE_POWER = 8
"""precision.initial_scale_power: gradients of a small model do not overflow with it, so that no step is skipped."""
_BUCKETS = 8
"""Buckets that gradients are reduced in, as in a model of a usual size; the largest tensors do not fit into one."""
_LAYER = re.compile(r"^(layers|blocks)\.(\d+)(?:-(\d+))?(?=\.|$|:)")


@dataclass(frozen=True)
class ScaledRun:
    """A run scaled down."""

    config: TridentConfig
    """The small config, on one rank, in fp32, with one micro-batch, without ZeRO."""
    scale: str
    """Line that says what was scaled."""
    left_out: tuple[str, ...]
    """Lines about parts of the run that are not proved."""


def scaled_run(config: TridentConfig, vocab_size: int | None, extent: Extent, sequences: int) -> ScaledRun:
    """Return a run scaled down.

    Args:
        config: accepted by `validate`.
        vocab_size: number of token ids; None if it is not known yet.
        extent: what the layouts ask of the model.
        sequences: its global batch.
    """
    model = scaled_model(config.model, vocab_size, extent)
    layers = (config.model.num_layers, model.num_layers)
    optimizer = config.optimizer
    width = optimizer.mup_base_width
    if width is not None:
        width = max(1, round(width * model.hidden_size / config.model.hidden_size))
    elements = sum(tensor.numel for tensor in make_model(model, model.vocab_size or VOCABULARY).tensors.values())
    zero = ZeroConfig(stage=0, reduce_bucket_size=elements // _BUCKETS // 2 * 2, overlap_comm=config.zero.overlap_comm)
    small = TridentConfig(
        model=model,
        data=DataConfig(
            mask_documents=config.data.mask_documents,
            records=config.data.records,
            packing=config.data.packing,
            boundary_label=config.data.boundary_label,
        ),
        zero=zero,
        precision=PrecisionConfig(initial_scale_power=_SCALE_POWER),
        batch=BatchConfig(global_batch_size=sequences, micro_batch_size=sequences),
        optimizer=replace(
            optimizer,
            lr=SIGN_RATE if optimizer.kind is StepRule.lion else RATE,
            mup_base_width=width,
            rates=tuple(_of_fewer_layers(entry, *layers) for entry in optimizer.rates),
        ),
        train=TrainConfig(
            seed=config.train.seed, frozen=tuple(_of_fewer_layers(one, *layers) for one in config.train.frozen)
        ),
        checkpoint=CheckpointConfig(init_from=config.checkpoint.init_from),
        # Idle threads of a second core would spin while other ranks need it.
        runtime=RuntimeConfig(device=DeviceKind.cpu, threads_per_rank=1, cpu_matmul=config.runtime.cpu_matmul),
    )
    return ScaledRun(small, told_scale(config.model, model), tuple(_left_out(config)))


def _of_fewer_layers(word: str, layers: int, fewer: int) -> str:
    """Return a word for a part of the model with its layers' numbers brought to a model of fewer layers."""

    def scaled(match: re.Match[str]) -> str:
        first, last = (min(int(one) * fewer // layers, fewer - 1) for one in (match[2], match[3] or match[2]))
        return f"{match[1]}.{first}" if first == last else f"{match[1]}.{first}-{last}"

    return _LAYER.sub(scaled, word)


def _left_out(config: TridentConfig) -> list[str]:
    model, runtime, found = config.model, config.runtime, []
    if model.dropout or model.attention_dropout:
        found.append("dropout, which is 0 here: the oracle has none")
    if config.batch.rampup_sizes:
        found.append("the warm-up of the batch: every step has the same number of micro-batches")
    if config.zero.offload is OffloadKind.nvme:
        found.append("zero.offload=nvme, which is cpu here")
    if runtime.liger:
        found.append("runtime.liger, which needs a GPU")
    return [*found, "the data, the tokenizer and the learning-rate schedule: tokens are random, the rate is constant"]


def stepped_by(optimizer: OptimizerConfig, grad_norm: float, elements: int) -> OptimizerConfig:
    """Return an optimizer whose steps can be compared: clipping is active, and rounding is not magnified.

    Adam divides by the root of the second moment, which makes as much of the rounding error of a small gradient as of
    a large one; an epsilon of some hundredths of a typical gradient bounds that.

    Args:
        optimizer: of the run.
        grad_norm: norm of the scaled model's first gradient.
        elements: number of its trained elements.
    """
    clip = float(f"{0.7 * grad_norm:.1g}") if optimizer.grad_clip else 0.0
    typical = (clip or grad_norm) / max(1, elements) ** 0.5
    plain = OptimizerConfig.eps
    eps = optimizer.eps if optimizer.kind is StepRule.lion else max(optimizer.eps, float(f"{typical / 40:.1g}"), plain)
    return replace(optimizer, grad_clip=clip, eps=eps)
