"""Builds the metrics hook and the sinks that the config asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

import torch

from trainer.config.keys import flatten
from trainer.config.plan import RunPlan
from trainer.config.schema import ConsoleKind, LoggingConfig, WandbMode
from trainer.config.wandb_variables import sweep_in, told
from trainer.files import storage_faults
from trainer.log import say, terminal, warn
from trainer.loop.state import TrainState
from trainer.metrics.across import AcrossMeter
from trainer.metrics.comparison import Comparison
from trainer.metrics.console import ConsoleSink, QuietSink
from trainer.metrics.csv_sink import CsvSink
from trainer.metrics.event_sink import EventSink
from trainer.metrics.journal_sink import JournalSink
from trainer.metrics.jsonl import JsonlSink
from trainer.metrics.live import LiveSink
from trainer.metrics.memory import MemoryMeter
from trainer.metrics.metrics_hook import MetricsHook
from trainer.metrics.node import NodeMeter
from trainer.metrics.peaks import peak_flops_per_second
from trainer.metrics.screen import TrainingConsole
from trainer.metrics.sink import Sink
from trainer.metrics.skipped import SkippedBatchesSink
from trainer.metrics.straggler import StragglerWatch
from trainer.metrics.summary import Lineage, SummarySink
from trainer.metrics.tensorboard_sink import TENSORBOARD_FOLDER, TensorBoardSink
from trainer.metrics.texts import TextSink
from trainer.metrics.throughput import ThroughputMeter
from trainer.metrics.wandb_mode import WandbChoice, choose_mode
from trainer.metrics.wandb_sink import Checkpoints, Tell, WandbSink
from trainer.planner.record import Expected, read_expected
from trainer.run_paths import CSV, EVENTS, JOURNAL, METRICS, SAMPLES, TIMELINE, RunPaths
from trainer.topology.groups import ParallelGroups
from trainer.versions import source_commit, versions


@dataclass(frozen=True)
class RunFacts:
    """Answers for sinks about the run's folder while it trains."""

    newest_checkpoint: Checkpoints
    """Asked by `logging.wandb_artifacts`."""
    lineage: Lineage
    """Asked by the summary."""


def forget_rows(run_dir: Path) -> None:
    """Remove the rows of a run whose other files are gone.

    Raises:
        StorageError: the folder cannot be written.
    """
    with storage_faults(run_dir):
        for name in (METRICS, SAMPLES, CSV, JOURNAL, EVENTS, TIMELINE):
            (run_dir / name).unlink(missing_ok=True)


def build_metrics(
    plan: RunPlan,
    run_dir: Path,
    state: TrainState,
    groups: ParallelGroups,
    hosts: Sequence[str],
    facts: RunFacts | None = None,
    memory: MemoryMeter | None = None,
) -> MetricsHook:
    """Build the hook with the sinks that the config asks for.

    Local; on the reporting rank it may probe the network for wandb, for two seconds at most.

    Args:
        plan: numbers of the run.
        run_dir: the run's folder; must exist or be creatable.
        state: the loop's own state; the summary reads it at the end.
        groups: this rank's place.
        hosts: machine of every rank, in order of ranks.
        facts: about the run's checkpoints.
        memory: this rank's meter, made before its engine; None for one that begins to look now.
    """
    device_name = torch.cuda.get_device_name(groups.device) if groups.device.type == "cuda" else None
    throughput = ThroughputMeter(
        tokens_per_step=plan.tokens_per_step,
        flops_per_token=plan.flops_per_token,
        world_size=plan.world_size,
        peak_flops=peak_flops_per_second(device_name, plan.dtype),
    )
    config = plan.config
    reads_node = config.logging.system_metrics and os.environ.get("LOCAL_RANK", "0") == "0"
    stages = groups.mesh.stages
    across = AcrossMeter(
        memory=memory or MemoryMeter(groups.device),
        node=NodeMeter(with_gpus=groups.device.type == "cuda") if reads_node else None,
        stages=stages,
        control=groups.control,
    )
    factor = config.runtime.straggler_factor
    if factor is None:
        factor = 1.5 if groups.device.type == "cuda" else 0.0
    stragglers = StragglerWatch(stages, hosts, factor)
    if not groups.is_reporting_rank:
        return MetricsHook(throughput, across, stragglers, [])
    # Not predicted anew: a run is held against what was said when it began.
    expected = read_expected(RunPaths(run_dir).plan)
    comparison = Comparison(expected, config.logging.plan_alarm_factor) if expected is not None else None
    sinks = _sinks(plan, config.logging, run_dir, state, device_name or "CPU", facts, comparison)
    return MetricsHook(throughput, across, stragglers, sinks, comparison)


def _sinks(
    plan: RunPlan,
    logging: LoggingConfig,
    run_dir: Path,
    state: TrainState,
    device_name: str,
    facts: RunFacts | None,
    comparison: Comparison | None,
) -> list[Sink]:
    """Return the sinks in the order in which they are written: the record first."""
    parameters = plan.model.parameter_count
    source = source_commit()
    choice, paths = choose_mode(logging.wandb), RunPaths(run_dir)
    # The summary comes before jsonl: at the start it reads the rows that jsonl is about to drop.
    sinks: list[Sink] = [
        SummarySink(
            run_dir,
            plan,
            parameters,
            state,
            source,
            facts.lineage if facts else dict,
            comparison.summary if comparison is not None else None,
        ),
        JsonlSink(paths.metrics),
        TextSink(paths.samples),
        SkippedBatchesSink(paths.skipped_batches),
        JournalSink(paths.journal, plan, state),
        EventSink(run_dir, plan.mesh),
    ]
    if logging.csv:
        sinks.append(CsvSink(paths.csv))
    if logging.tensorboard:
        sinks.append(TensorBoardSink(run_dir / TENSORBOARD_FOLDER, warn))
    notes: list[str] = []
    sinks.append(
        _wandb_sink(
            plan,
            run_dir,
            parameters,
            source,
            choice,
            facts.newest_checkpoint if facts else None,
            notes,
            comparison.expected if comparison is not None else None,
        )
    )
    # Last, so that its last line is the last one printed.
    sinks.append(_console_sink(plan, logging, run_dir, device_name, choice, notes))
    return sinks


def _console_sink(
    plan: RunPlan,
    logging: LoggingConfig,
    run_dir: Path,
    device_name: str,
    choice: WandbChoice,
    notes: Sequence[str],
) -> Sink:
    if logging.console is ConsoleKind.quiet:
        return QuietSink(run_dir, notes)
    outputs = {"wandb": f"{choice.mode.value} ({choice.reason})" if choice.reason else choice.mode.value}
    if choice.mode is not WandbMode.disabled:
        outputs |= _from_environment(plan)
    also = [CSV] * logging.csv + [TENSORBOARD_FOLDER] * logging.tensorboard
    if also:
        outputs["also"] = ", ".join(also)
    console = TrainingConsole(terminal())
    kind = LiveSink if logging.console is ConsoleKind.auto and console.can_redraw else ConsoleSink
    return kind(plan, run_dir, device_name, outputs, console, notes)


def _from_environment(plan: RunPlan) -> dict[str, str]:
    """Return the banner's text about wandb's own variables."""
    variables = told(os.environ, flatten(plan.config))
    lines = {"": f"from the environment: {', '.join(variables)}"} if variables else {}
    if (sweep := sweep_in(os.environ)) is not None:
        lines["sweep"] = f"{sweep} of wandb; each of its runs has a folder of its own, named after its id"
    return lines


def _wandb_sink(
    plan: RunPlan,
    run_dir: Path,
    parameters: int,
    source: dict[str, object],
    choice: WandbChoice,
    checkpoints: Checkpoints | None,
    notes: list[str],
    expected: Expected | None,
) -> WandbSink:
    config = plan.config
    plan_numbers: dict[str, object] = {
        "parameters": parameters,
        "layout": plan.mesh.name,
        "pipeline_parallel_size": plan.pipeline_parallel_size,
        "tensor_parallel_size": plan.tensor_parallel_size,
        "data_parallel_size": plan.data_parallel_size,
        "world_size": plan.world_size,
        "num_micro_batches": plan.num_micro_batches,
        "tokens_per_step": plan.tokens_per_step,
    }
    if expected is not None:
        plan_numbers["predicted"] = asdict(expected)
    return WandbSink(
        run_dir=run_dir,
        logging=config.logging,
        choice=choice,
        group=config.logging.wandb_group or config.name,
        tags=(plan.mesh.name,),
        config={**_plain_mapping(asdict(config)), "plan": plan_numbers, "versions": versions(), "source": source},
        tell=Tell(say, notes.append, warn),
        checkpoints=checkpoints,
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
