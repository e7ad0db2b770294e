"""`trident plan --calibrate`: measure this machine into a device profile that later plans use. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from trainer.calibration.device_profile import Facts, fitted_on_steps, kernel_profile
from trainer.calibration.measurements import Measurements
from trainer.calibration.measuring import measured_by_ranks
from trainer.calibration.trials import Trial, trials_for
from trainer.config.schema import DeviceKind
from trainer.planner.cluster import Cluster
from trainer.planner.profile import Profile
from trainer.planner.profile_file import Calibration, circumstances, profile_path, write_calibration
from trainer.planner.step_time import TimeModel

Say = Callable[[str], None]
ROUNDS = 9
BUDGET_S = 0.1


def calibrate(cluster: Cluster, say: Say, rounds: int = ROUNDS, budget_s: float = BUDGET_S) -> Path:
    """Measure this machine and write its profile; return the file.

    It takes two to three minutes, in which nothing else should run here.

    Args:
        cluster: this machine, as `cluster.device=null` describes it.
        say: told what is done and found, in lines.
        rounds: timed steps of each small model.
        budget_s: seconds for one kernel.

    Raises:
        MeasuringFailed: ranks could not be started, or failed.
        StorageError: the profile cannot be written.
        ConfigError: a measured number is absurd.
    """
    kind = DeviceKind.cpu if cluster.is_cpu else DeviceKind.cuda
    trials = trials_for(cluster.is_cpu, cluster.devices_per_node)
    started = time.monotonic()
    measured = []
    for ranks in sorted({trial.ranks for trial in trials}):
        some = [trial for trial in trials if trial.ranks == ranks]

        def told(part: str, ranks: int = ranks) -> None:
            say(f"{time.monotonic() - started:5.0f} s  {ranks} {'rank' if ranks == 1 else 'ranks'}: {part}")

        measured.append(measured_by_ranks(some, kind, rounds, budget_s, told))
    versions, machine = circumstances(cluster.device)
    facts = Facts(cluster.device, datetime.now(UTC).date().isoformat(), f"torch {versions.get('torch')}")
    profile = profile_of(measured, trials, cluster, facts, say)
    path = profile_path(cluster.device)
    write_calibration(path, Calibration(cluster.device, facts.date, versions, machine, profile))
    say(f"wrote {path}")
    return path


def profile_of(
    measured: Sequence[Measurements], trials: Sequence[Trial], cluster: Cluster, facts: Facts, say: Say
) -> Profile:
    """Return the profile that measurements make, and say how well it fits each of them."""
    kind = DeviceKind.cpu if cluster.is_cpu else DeviceKind.cuda
    start = kernel_profile(measured, facts, cluster.is_cpu)
    by_name: Mapping[str, Trial] = {trial.name: trial for trial in trials}
    steps = [step for group in measured for step in group.steps]
    for group in measured:
        for name, reason in (group.failed or {}).items():
            say(f"left out {name}: {reason}")
    plans = [by_name[step.trial].plan(kind) for step in steps]
    here = replace(cluster, peak_flops=start.peak_flops)
    profile = fitted_on_steps(start, plans, [step.typical for step in steps], here, facts)
    model = TimeModel(here, profile)
    for step, plan in zip(steps, plans, strict=True):
        predicted = model.step(plan).time.total
        error = predicted / step.typical - 1
        say(f"{step.trial:<16} {1e3 * step.typical:8.1f} ms a step, fitted {1e3 * predicted:8.1f} ms ({error:+.0%})")
    return profile
