"""A plan in words and as a record, shown and written to plan.json before a run starts. No torch."""

from __future__ import annotations

import textwrap

from trainer.config.ds_json import deepspeed_json
from trainer.config.model_title import model_title
from trainer.config.models import sizes
from trainer.config.plan import RunPlan
from trainer.errors import fault_line
from trainer.pipeline.partition import stages
from trainer.planner.foresee import foresee, line_of, record_of
from trainer.planner.post_mortem import Foreseen
from trainer.planner.record import PREDICTION
from trainer.planner.zero_choice import cheaper_choice

_WIDTH = 80


def plan_record(plan: RunPlan, foreseen: Foreseen | None = None) -> dict[str, object]:
    """Return every derived number, the stages, the DeepSpeed JSON that will be used, and what is predicted.

    Args:
        plan: numbers of the run.
        foreseen: the prediction, if it was made already.
    """
    model = plan.model
    resolved = sizes(plan.config.model)
    return {
        "model": {
            "parameters": model.parameter_count,
            "trained_parameters": plan.trained_parameters,
            "vocab_size": model.vocab_size,
            "padded_vocab_size": plan.execution.padded(model.vocab_size),
            "head_dim": resolved.head_dim,
            "num_key_value_heads": resolved.num_key_value_heads,
            "ffn_hidden_size": resolved.ffn_hidden_size,
            "flops_per_token": plan.flops_per_token,
        },
        "layout": {
            "world_size": plan.world_size,
            "pipeline_parallel_size": plan.pipeline_parallel_size,
            "tensor_parallel_size": plan.tensor_parallel_size,
            "data_parallel_size": plan.data_parallel_size,
        },
        "batch": {
            "global_batch_size": plan.global_batch_size,
            "micro_batch_size": plan.micro_batch_size,
            "num_micro_batches": plan.num_micro_batches,
            "tokens_per_step": plan.tokens_per_step,
        },
        "stages": [
            {
                "stage": stage.index,
                "pipeline_rank": stage.rank_index,
                "layers": [layer.name for layer in stage.layers],
                "parameters": stage.parameters,
                "cost_share": round(stage.cost_share, 4),
            }
            for stage in stages(plan)
        ],
        "pipeline_bubble_fraction_in_theory": plan.bubble_in_theory,
        "deepspeed": deepspeed_json(plan),
        PREDICTION: record_of(foreseen or foresee(plan)),
    }


def describe(plan: RunPlan, foreseen: Foreseen | None = None) -> str:
    """Return a few lines: model, layout, batch, one line a stage, and what is predicted.

    Args:
        plan: numbers of the run.
        foreseen: the prediction, if it was made already.
    """
    config = plan.config
    sequence = " + sequence parallel" if config.layout.sequence_parallel else ""
    unsharded = " (one replica: nothing to shard)" if plan.zero_stage != config.zero.stage else ""
    offload = f" + {config.zero.offload.value} offload" if config.zero.offload.value != "none" else ""
    lines = [
        f"model   {model_title(config.model)}: {plan.model.parameter_count:,} parameters, "
        f"{len(plan.model.blocks)} blocks of {plan.model.hidden_size}, vocabulary {plan.model.vocab_size:,}",
        f"layout  {plan.world_size} rank{'s' * (plan.world_size > 1)} = pipeline {plan.pipeline_parallel_size} "
        f"x tensor {plan.tensor_parallel_size} x data {plan.data_parallel_size}{sequence}, "
        f"ZeRO-{config.zero.stage}{unsharded}{offload}, {config.precision.dtype.value}",
        f"batch   {config.batch.global_batch_size} sequences of {plan.execution.seq_length} tokens a step "
        f"= {plan.tokens_per_step:,} tokens; {plan.num_micro_batches} "
        f"micro-batch{'es' * (plan.num_micro_batches > 1)} of {config.batch.micro_batch_size} a rank",
    ]
    if plan.batch_sizes.warmup:
        parts = ", ".join(f"{size} to step {last}" for last, size in plan.batch_sizes.warmup)
        lines.append(f"        before that a warm-up of the batch: {parts}")
    trained, count = plan.trained_parameters, plan.model.parameter_count
    if trained < count:
        parts = ", ".join(["the model's own beside LoRA"] * plan.model.has_adapters + list(config.train.frozen))
        told = f"frozen  {count - trained:,} parameters ({parts}); {trained:,} are trained, {trained / count:.1%}"
        lines.insert(1, told)
    lines += _cheaper(plan)
    if plan.uses_pipeline_engine:
        for stage in stages(plan):
            first, last = stage.layers[0].name, stage.layers[-1].name
            names = f"{first} .. {last}" if len(stage.layers) > 1 else first
            lines.append(
                f"stage {stage.index} on pipeline rank {stage.rank_index}: {names} "
                f"({stage.parameters:,} parameters, {stage.cost_share:.0%} of the work)"
            )
        lines.append(
            f"bubble  {plan.bubble_in_theory:.1%} of a step in theory, schedule {config.layout.pipeline_schedule.value}"
        )
    lines.append(line_of(foreseen or foresee(plan)))
    return "\n".join(_wrapped(line) for line in lines)


def _cheaper(plan: RunPlan) -> list[str]:
    try:
        found = cheaper_choice(plan)
    except Exception as error:
        # A fault of the planner is no reason not to train.
        return [f"memory  less ZeRO is not compared: {fault_line(error)}"]
    return [] if found is None else [f"memory  {found}"]


def _wrapped(line: str) -> str:
    return textwrap.fill(line, _WIDTH, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)
