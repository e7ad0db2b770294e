"""Build the engine that a plan asks for. The only place that constructs DeepSpeed engines."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.config import DeepSpeedConfig

from trainer.config.ds_json import deepspeed_json
from trainer.config.plan import RunPlan
from trainer.engine.deepspeed_engines import PIPELINE_ENGINES, RepairedEngine
from trainer.engine.face import Engine
from trainer.engine.host_memory import (
    LARGEST_KEPT,
    LARGEST_KEPT_OF_BUILDING,
    give_back_freed_memory,
    keep_freed_memory,
)
from trainer.engine.layer_kernels import choose_kernels, say_what_is_compiled
from trainer.engine.mpu import ModelParallelUnit
from trainer.engine.muon import MatrixSteps
from trainer.engine.optimizer import attach_matrices, build_optimizer, never_decay, something_to_step
from trainer.engine.pipelined import PipelinedEngine
from trainer.engine.plain import PlainEngine
from trainer.engine.sharding_of import sharding_of
from trainer.engine.zero_memory import Partitioning
from trainer.kernels.attention_backend import DTYPES
from trainer.model.gpt import GPT, ModelContext
from trainer.pipeline.module import Builder, build_pipeline
from trainer.progress import Progress
from trainer.tensor_parallel.gradients import set_sink
from trainer.tensor_parallel.init import Drawn, Source, fill
from trainer.topology.groups import ParallelGroups


def build_engine(
    plan: RunPlan, groups: ParallelGroups, progress: Progress | None = None, source: Source | None = None
) -> Engine:
    """Build model, optimizer and DeepSpeed engine for this rank. Collective over the world.

    Args:
        plan: numbers of the run.
        groups: this rank's place.
        progress: takes the engine's notes of its activity; None if nobody reads them.
        source: source of the weights; None for a new model's, by the run's seed. `Reserved` for an engine that is
            restored before anything else.
    """
    progress = progress or Progress()
    if groups.device.type == "cpu":
        keep_freed_memory(LARGEST_KEPT_OF_BUILDING)
    source = source or Drawn(plan.seed, groups.tensor)
    context = ModelContext(
        tensor=groups.tensor,
        sequence_parallel=plan.sequence_parallel,
        execution=plan.execution,
        spec=plan.model,
    )
    if plan.uses_pipeline_engine:
        return PipelinedEngine(_pipeline_engine(plan, groups, context, source, progress), plan, groups)
    return PlainEngine(_plain_engine(plan, groups, context, source, progress), plan, groups)


def _construct(
    engine_class: Any, plan: RunPlan, groups: ParallelGroups, model: torch.nn.Module, mpu: object, progress: Progress
) -> Any:
    config = plan.config
    choose_kernels(model, plan, groups.device)
    if config.runtime.compile:
        say_what_is_compiled()
    # deepspeed.initialize chooses the class by itself; a repaired one must be constructed directly.
    settings = deepspeed_json(plan)
    with something_to_step(model.parameters()):
        engine = engine_class(
            args=None,
            model=model,
            optimizer=build_optimizer(model.parameters(), plan.stepping, config.optimizer, config.zero),
            mpu=mpu,
            dist_init_required=False,
            config=settings,
            config_class=DeepSpeedConfig(settings, mpu),
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        never_decay(engine.basic_optimizer)
    sharding = sharding_of(engine, plan)
    sharding.hold_once()
    for parameter in model.parameters():
        set_sink(parameter, sharding.sink(parameter))
    if isinstance(engine.basic_optimizer, MatrixSteps):
        attach_matrices(engine.basic_optimizer, sharding, groups)
    sharding.begin_averages()
    give_back_freed_memory()
    if groups.device.type == "cpu":
        keep_freed_memory(LARGEST_KEPT.get(plan.zero_stage))
    engine.attach(sharding, groups, config.optimizer, progress)
    return engine


def _pipeline_engine(
    plan: RunPlan, groups: ParallelGroups, context: ModelContext, source: Source, progress: Progress
) -> Any:
    dtype = DTYPES[plan.dtype]
    module = build_pipeline(plan, Builder(context, lambda layer: fill(layer, source, groups.device, dtype)))
    engine_class = PIPELINE_ENGINES[plan.schedule.kind]
    return _construct(engine_class, plan, groups, module, module.mpu(), progress)


def _plain_engine(
    plan: RunPlan, groups: ParallelGroups, context: ModelContext, source: Source, progress: Progress
) -> Any:
    model, mpu, dtype = GPT(context), ModelParallelUnit(groups), DTYPES[plan.dtype]
    # With ZeRO-3 a parameter is sharded before the next one is made: no rank ever holds the whole model.
    then = Partitioning(deepspeed_json(plan), mpu, dtype) if plan.zero_stage == 3 else None
    fill(model, source, groups.device, dtype, then)
    return _construct(RepairedEngine, plan, groups, model, mpu, progress)
