"""Builds the metrics hook and the sinks that the config asks for."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path

import torch

from trainer.config.plan import RunPlan
from trainer.log import say, warn
from trainer.loop.state import TrainState
from trainer.metrics.console import ConsoleSink
from trainer.metrics.hook import MetricsHook
from trainer.metrics.jsonl import METRICS_FILE, JsonlSink
from trainer.metrics.memory import MemoryMeter
from trainer.metrics.peaks import peak_flops_per_second
from trainer.metrics.sink import Sink
from trainer.metrics.summary import SummarySink
from trainer.metrics.throughput import ThroughputMeter
from trainer.metrics.wandb_mode import WandbChoice, choose_mode
from trainer.metrics.wandb_sink import WandbSink
from trainer.model.accounting import flops_per_token, parameter_count
from trainer.topology.groups import Group, ParallelGroups


def build_metrics(
    plan: RunPlan, run_dir: Path, state: TrainState, groups: ParallelGroups, control: Group
) -> MetricsHook:
    """Build the hook with the sinks that the config asks for.

    Local; on the reporting rank it may probe the network for wandb, for two seconds at most.

    Args:
        plan: numbers of the run.
        run_dir: the run's folder; must exist or be creatable.
        state: the loop's own state; the summary reads it at the end.
        groups: this rank's place.
        control: a group on CPU over the whole world.
    """
    device_name = torch.cuda.get_device_name(groups.device) if groups.device.type == "cuda" else None
    throughput = ThroughputMeter(
        tokens_per_step=plan.tokens_per_step,
        flops_per_token=flops_per_token(plan.model),
        world_size=plan.world_size,
        peak_flops=peak_flops_per_second(device_name, plan.config.precision.dtype),
    )
    sinks = _sinks(plan, run_dir, state, device_name or "CPU") if groups.is_reporting_rank else []
    return MetricsHook(throughput, MemoryMeter(groups.device, control), sinks)


def _sinks(plan: RunPlan, run_dir: Path, state: TrainState, device_name: str) -> list[Sink]:
    """Return the sinks in the order in which they are written: the record first."""
    config = plan.config
    parameters = parameter_count(plan.model)
    choice = choose_mode(config.logging.wandb)
    # The summary before jsonl: at the start it reads the rows that jsonl is about to cut.
    sinks: list[Sink] = [SummarySink(run_dir, plan, parameters, state), JsonlSink(run_dir / METRICS_FILE)]
    if config.logging.console:
        sinks.append(ConsoleSink(plan, run_dir, parameters, device_name, wandb_note=_wandb_note(choice)))
    sinks.append(_wandb_sink(plan, run_dir, parameters, choice))
    return sinks


def _wandb_note(choice: WandbChoice) -> str:
    return f"{choice.mode.value} ({choice.reason})" if choice.reason else choice.mode.value


def _wandb_sink(plan: RunPlan, run_dir: Path, parameters: int, choice: WandbChoice) -> WandbSink:
    plan_numbers = {
        "parameters": parameters,
        "layout": plan.layout_name,
        "world_size": plan.world_size,
        "num_micro_batches": plan.num_micro_batches,
        "tokens_per_step": plan.tokens_per_step,
    }
    return WandbSink(
        run_dir=run_dir,
        logging=plan.config.logging,
        choice=choice,
        group=plan.config.name,
        tags=(plan.layout_name,),
        config={**_plain_mapping(asdict(plan.config)), "plan": plan_numbers},
        say=say,
        warn=warn,
    )


def _plain_mapping(values: dict[str, object]) -> dict[str, object]:
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return _plain_mapping(value)
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
