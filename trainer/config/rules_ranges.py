"""Rules about one number on its own: the range it must lie in."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainer.config.keys import flatten
from trainer.config.rules_common import Case, Rule

MINIMA: dict[str, int] = {
    "model.hidden_size": 1,
    "model.num_layers": 1,
    "model.num_attention_heads": 1,
    "model.num_key_value_heads": 1,
    "model.head_dim": 1,
    "model.ffn_hidden_size": 1,
    "model.seq_length": 1,
    "model.vocab_size": 1,
    "model.vocab_pad_multiple": 1,
    "model.position_offset": 0,
    "model.rope_dims": 2,
    "model.rope_scaling.original_length": 2,
    "model.sliding_window": 1,
    "model.lora.rank": 1,
    "data.eos_id": 0,
    "data.max_documents": 1,
    "data.max_samples": 1,
    "data.prefetch_steps": 0,
    "data.workers": 1,
    "data.synthetic_tokens": 1,
    "layout.pipeline_parallel_size": 1,
    "layout.tensor_parallel_size": 1,
    "layout.data_parallel_size": 1,
    "zero.reduce_bucket_size": 1,
    "precision.loss_scale_window": 1,
    "batch.global_batch_size": 1,
    "batch.micro_batch_size": 1,
    "optimizer.mup_base_width": 1,
    "schedule.warmup_steps": 0,
    "schedule.decay_steps": 1,
    "train.steps": 1,
    "train.seed": 0,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.eval_batches": 1,
    "train.max_skipped_in_row": 0,
    "train.spike_window": 2,
    "train.max_rewinds": 1,
    "eval.samples": 0,
    "eval.max_tokens": 1,
    "eval.seed": 0,
    "eval.tasks_every": 0,
    "eval.tasks_num_fewshot": 0,
    "eval.tasks_limit": 1,
    "eval.tasks_batch_size": 1,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "checkpoint.keep_every": 0,
    "logging.stall_alert_s": 0,
    "logging.timeline_step": 0,
    "runtime.threads_per_rank": 1,
    "runtime.timeout_s": 1,
    "runtime.hang_timeout_s": 0,
    "runtime.check_replicas_every": 0,
    "runtime.recheck_every": 0,
    "runtime.profile_first_step": 1,
    "runtime.profile_steps": 1,
    "launch.grace_s": 0,
    "launch.max_restarts": 0,
    "cluster.nodes": 1,
    "cluster.devices_per_node": 1,
    "cluster.virtual_stages": 1,
}
"""Smallest legal value of the integer keys; null is always legal."""

POSITIVE: tuple[str, ...] = (
    "model.rope_theta",
    "model.rope_scaling.factor",
    "model.rope_scaling.low_frequency_factor",
    "model.rope_scaling.high_frequency_factor",
    "model.rope_scaling.beta_fast",
    "model.rope_scaling.beta_slow",
    "model.rope_scaling.attention_factor",
    "model.rope_scaling.mscale",
    "model.rope_scaling.mscale_all_dim",
    "model.local_rope_theta",
    "model.norm_eps",
    "model.attention_scale",
    "model.clip_qkv",
    "model.embedding_scale",
    "model.residual_scale",
    "model.logit_scale",
    "model.final_softcap",
    "model.lora.alpha",
    "model.init_std",
    "optimizer.lr",
    "optimizer.eps",
    "train.spike_sigmas",
    "train.epochs",
    "data.max_epochs",
)
NOT_NEGATIVE: tuple[str, ...] = (
    "model.norm_offset",
    "optimizer.weight_decay",
    "optimizer.grad_clip",
    "launch.restart_backoff_s",
    "eval.temperature",
    "runtime.straggler_factor",
    "logging.plan_alarm_factor",
)
BELOW_ONE: tuple[str, ...] = (
    "model.dropout",
    "model.attention_dropout",
    "data.validation_fraction",
    "data.test_fraction",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.momentum",
    "optimizer.ema_decay",
)
CLOSED: dict[str, tuple[float, float]] = {
    "zero.stage": (0, 3),
    "precision.initial_scale_power": (0, 31),
    "schedule.min_lr_ratio": (0, 1),
    "launch.master_port": (1, 65535),
    "runtime.profile_steps": (1, 20),
    "train.seed": (0, 2**63 - 1),
    "eval.seed": (0, 2**63 - 1),
    "cluster.nodes": (1, 100_000),
    "cluster.devices_per_node": (1, 1024),
    "cluster.pue": (1, 5),
    # Less or more than these is a mistake about the unit.
    "cluster.intra_node_gbps": (0.001, 20_000),
    "cluster.inter_node_gbps": (0.001, 20_000),
    "cluster.host_gbps": (0.001, 20_000),
    "cluster.peak_tflops": (0.001, 100_000),
    "cluster.memory_gbps": (0.001, 100_000),
    "cluster.memory_gib": (0.001, 4096),
    "cluster.host_memory_gib": (0.001, 1 << 17),
    "cluster.usd_per_device_hour": (0.001, 1000),
    "cluster.watts": (0.001, 5000),
}
NOT_EMPTY: tuple[str, ...] = (
    "name",
    "run_dir",
    "checkpoint.resume",
    "checkpoint.init_from",
    "data.text_key",
    "data.messages_key",
    "data.prompt_key",
    "data.completion_key",
    "data.chat_template",
    "data.hub_split",
)


def minima(case: Case) -> Iterator[str]:
    """Sizes, counts and intervals are large enough."""
    values = flatten(case.config)
    for key, least in MINIMA.items():
        value = values[key]
        if isinstance(value, int) and value < least:
            yield f"{key} must be at least {least}, but is {value}"


def sizes_are_positive(case: Case) -> bool:
    """Return whether the sizes that other rules divide by are as large as `minima` demands."""
    values = flatten(case.config)
    sizes = [(values[key], least) for key, least in MINIMA.items() if key.startswith(("model.", "layout.", "batch."))]
    return all(value >= least for value, least in sizes if isinstance(value, int))


def real_ranges(case: Case) -> Iterator[str]:
    """Rates, probabilities and fractions lie in their ranges; nan and inf lie in none."""
    values = flatten(case.config)

    def number(key: str) -> float:
        value = values[key]
        assert isinstance(value, (int, float))
        return value

    for key in POSITIVE:
        if values[key] is not None and not (number(key) > 0 and math.isfinite(number(key))):
            yield f"{key} must be greater than 0, but is {values[key]}"
    for key in NOT_NEGATIVE:
        if values[key] is not None and not (number(key) >= 0 and math.isfinite(number(key))):
            yield f"{key} must be at least 0, but is {values[key]}"
    for key in BELOW_ONE:
        if values[key] is not None and not 0 <= number(key) < 1:
            yield f"{key} must be at least 0 and less than 1, but is {values[key]}"
    for key, (least, most) in CLOSED.items():
        value = values[key]
        if value is not None and not least <= number(key) <= most:
            if key in MINIMA and number(key) < least:
                continue  # reported by `minima`
            yield f"{key} must be {least} to {most}, but is {value}"


def texts(case: Case) -> Iterator[str]:
    """Names that become folders or fields are not empty."""
    values = flatten(case.config)
    for key in NOT_EMPTY:
        if not str(values[key]).strip():
            yield f"{key} must not be empty"
    if "/" in case.config.name or case.config.name in (".", ".."):
        yield f"name must be one folder name, but is '{case.config.name}'; set run_dir to choose the place"


RULES: tuple[Rule, ...] = (minima, real_ranges, texts)
