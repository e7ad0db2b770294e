"""The scores of an evaluation that is no part of a run, in TensorBoard and wandb."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from trainer.config.schema import LoggingConfig
from trainer.files import storage_faults
from trainer.log import say, warn
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.sink import Row, Sink
from trainer.metrics.tensorboard_sink import TENSORBOARD_FOLDER, TensorBoardSink
from trainer.metrics.wandb_mode import choose_mode
from trainer.metrics.wandb_sink import Tell, WandbSink

_JOB_TYPE = "evaluate"


def log_scores(
    numbers: Mapping[str, float],
    step: int,
    folder: Path,
    logging: LoggingConfig,
    config: Mapping[str, object],
    with_wandb: bool,
) -> None:
    """Hand scores to the sinks that are asked for, as one row. Nothing that they fail to do is an error.

    Args:
        numbers: name of the metrics row -> value.
        step: that of the checkpoint.
        folder: the folder of their files; one evaluation after the other there is one run of wandb.
        logging: what is asked for.
        config: what wandb shows beside the scores.
        with_wandb: true if wandb gets them too.

    Raises:
        StorageError: the folder cannot be made.
    """
    started = time.monotonic()
    with storage_faults(folder, "output"):
        folder.mkdir(exist_ok=True)
    sinks: list[Sink] = [TensorBoardSink(folder / TENSORBOARD_FOLDER, warn)] if logging.tensorboard else []
    if with_wandb:
        job_type = _JOB_TYPE if logging.wandb_job_type == LoggingConfig().wandb_job_type else logging.wandb_job_type
        settings = replace(logging, stall_alert_s=0, wandb_artifacts=False, wandb_job_type=job_type)
        tell = Tell(say, say, warn)
        group = logging.wandb_group or folder.parent.name
        sinks.append(WandbSink(folder, settings, choose_mode(logging.wandb), group, (), config, tell))
    row: Row = {"step": step, **numbers}
    report = _report(step, numbers.get("eval/loss"))
    for sink in sinks:
        sink.start(step)
        sink.write(row, report)
        sink.end(RunEnd("finished", step, time.monotonic() - started))


def _report(step: int, loss: float | None) -> StepReport:
    unknown = math.nan
    return StepReport(step, unknown, unknown, unknown, 0, 1, unknown, unknown, None, 0, None, eval_loss=loss)
