"""`trident plan`: what a run will need, and which layouts there are. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.cluster_size import devices_per_node
from trainer.config.compose import Composition, composition
from trainer.config.plan import RunPlan
from trainer.config.schema import DeviceKind
from trainer.config.validate import validate
from trainer.dry_run import plan_without_data, told_reads
from trainer.errors import ConfigError
from trainer.hardware import Here
from trainer.log import aside, say, write
from trainer.picture_file import check_picture
from trainer.planner.as_json import report_json, search_json
from trainer.planner.cluster import cluster_of, planned_ranks
from trainer.planner.layout_search import search
from trainer.planner.picture import Picture, Verdict, write_picture
from trainer.planner.plan_report import PlanReport, make_report
from trainer.planner.plan_screen import TIGHT, header, screen, search_screen, verdict
from trainer.planner.predict import Planner
from trainer.planner.schedule_time import MOST_EVENTS, is_simulated
from trainer.settling import alone, held, settled


@dataclass(frozen=True)
class Asked:
    """Wishes of a person who calls `trident plan`."""

    as_json: bool = False
    searches: bool = False
    picture: str | None = None


def plan_verb(arguments: Sequence[str], asked: Asked, here: Here) -> int:
    """Run `trident plan <arguments>` and return the exit code.

    Raises:
        ConfigError: the config is wrong or breaks a rule; each rule with its reason, and what works.
    """
    if asked.picture is not None:
        if asked.searches:
            raise ConfigError("--picture draws one run; it cannot be combined with --search")
        check_picture(Path(asked.picture))
    composed = composition(list(arguments))
    # Replicas that fill the cluster share the batch, too: rules judge as many ranks as are planned.
    ranks = planned_ranks(composed.config, here)
    if composed.config.layout.auto:
        # The machine that is planned for is filled, not this one.
        ranks = ranks or devices_per_node(composed.config.cluster)
    config, lines = settled(composed, ranks, None, here)
    plan = plan_without_data(config, planned_ranks(config, here))
    for line in told_reads(config, plan):
        aside(line)
    planner = Planner(cluster_of(config, plan.world_size, here))
    if planner.note is not None:
        aside(f"profile {planner.note}")
    if asked.picture is not None and not is_simulated(plan):
        raise ConfigError(
            f"--picture draws {MOST_EVENTS:,} passes of micro-batches through stages at most, but this plan has "
            f"{plan.num_micro_batches:,} micro-batches in {plan.pipeline_parallel_size} stages; use a larger "
            "batch.micro_batch_size, or a smaller batch.global_batch_size"
        )
    if asked.searches:
        return _search(composed, planner, plan, asked)
    report = make_report(planner, plan)
    if asked.picture is not None:
        write_picture(_picture(planner, report), Path(asked.picture))
    if asked.as_json:
        write(json.dumps(report_json(report), indent=2) + "\n")
    else:
        say("\n".join([*lines, screen(report)]))
    return 0


def calibrate_here(arguments: Sequence[str], here: Here) -> int:
    """Measure this machine into the profile that later plans use, and return the exit code.

    Raises:
        ConfigError: a word says something that is not measured, or a measured number is absurd.
        TridentError: ranks could not be started, or the profile cannot be written.
    """
    from trainer.calibration.calibrate import calibrate

    config = alone(composition(list(arguments)).config)
    if config.cluster.device is not None:
        raise ConfigError(
            f"--calibrate measures the devices of this machine, but cluster.device is {config.cluster.device}; leave "
            "it out"
        )
    validate(config)
    devices = len(here.gpus) if here.gpus and config.runtime.device is not DeviceKind.cpu else here.cores
    calibrate(cluster_of(config, devices, here), say)
    return 0


def _search(composed: Composition, planner: Planner, plan: RunPlan, asked: Asked) -> int:
    begun = time.monotonic()
    found = search(planner, plan, plan.world_size, held(composed))
    seconds = time.monotonic() - begun
    if asked.as_json:
        write(json.dumps({**search_json(found), "seconds": seconds}, indent=2) + "\n")
    else:
        say(search_screen(found, composed.config, seconds))
    return 0


def _picture(planner: Planner, report: PlanReport) -> Picture:
    found = report.prediction
    lines = header(report)
    share = found.peak / found.device_bytes
    return Picture(
        title=f"{lines[0].split(maxsplit=1)[1]}; {lines[1].split(maxsplit=1)[1]}",
        layout=" ".join(report.found.words),
        verdict=verdict(report)[0],
        kind=Verdict.refused if not found.may_fit else Verdict.fits if share <= TIGHT else Verdict.tight,
        stages=found.stages,
        device_bytes=found.device_bytes,
        timeline=planner.timeline(report.plan),
    )
