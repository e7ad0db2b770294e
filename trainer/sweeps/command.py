"""`trident train --multirun`: every combination of values, one after the other, or a search. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence

from trainer.config.multirun import points
from trainer.config.wandb_variables import sweep_in
from trainer.config.words import for_a_shell
from trainer.errors import ConfigError
from trainer.launcher.environment import find_world, gpu_count
from trainer.log import say
from trainer.sweeps.process import train, was_asked_to_stop
from trainer.sweeps.results import Outcome, Results, check_metric, never_logged
from trainer.sweeps.runs import SweptRun, checked, claimed
from trainer.sweeps.settings import SweepSettings, sweep_settings

_MANY = 200
"""Number of runs from which on their check takes so long that it is announced."""


def multirun(words: Sequence[str], is_dry: bool = False, fail_fast: bool = False) -> int:
    """Check every point, then train one after the other; return the first exit code that is not 0.

    A search instead chooses each point by the results of those before. A finished point is not run again.

    Args:
        words: settings, some with several values, and those of the sweep itself.
        is_dry: print the commands instead.
        fail_fast: stop when a run fails.

    Raises:
        ConfigError: the sweep, or a point of it, cannot run. Nothing has been started then.
    """
    _check_alone()
    settings, of_runs = sweep_settings(words)
    gpus = None if is_dry else gpu_count(os.environ)
    if settings.is_search:
        from trainer.sweeps.search import search

        return search(of_runs, settings, words, gpus, is_dry, fail_fast)
    found = points(of_runs)
    if len(found) > _MANY:
        say(f"# checking {len(found):,} runs first")
    runs = checked(found, gpus)
    for run in runs:
        if settings.metric is not None:
            check_metric(run, settings.metric)
    if is_dry:
        _print_commands(runs)
        return 0
    with claimed(runs[0].folder.parent):
        return _in_turn(runs, settings, words, fail_fast)


def _check_alone() -> None:
    if find_world(os.environ) is not None:
        raise ConfigError(
            "--multirun starts runs itself, so it cannot be one of the ranks that a launcher started; leave the "
            "launcher out, or see launch/slurm_sweep.sh for an array of Slurm jobs"
        )
    if (sweep := sweep_in(os.environ)) is not None:
        raise ConfigError(
            f"--multirun must not be in the command of a wandb sweep ({sweep}), each point of which is one run; leave "
            "it out, or unset WANDB_SWEEP_ID"
        )


def _print_commands(runs: Sequence[SweptRun]) -> None:
    for number, run in enumerate(runs, 1):
        command = " ".join(map(for_a_shell, ["trident", "train", *run.words]))
        title = f"# {number}/{len(runs)} {run.point.name}"
        # Commented out, so that a shell which runs these lines leaves it out.
        say(f"{title}: has finished before\n# {command}" if run.has_finished() else f"{title}\n{command}")


def _in_turn(runs: Sequence[SweptRun], settings: SweepSettings, words: Sequence[str], fail_fast: bool) -> int:
    outcomes: list[Outcome] = []
    results = Results(runs[0].folder.parent, settings, words)
    for number, run in enumerate(runs, 1):
        say(f"run {number} of {len(runs)}: {run.point.name} (in {run.folder})")
        if run.has_finished():
            say("has finished before")
            code = 0
        else:
            code = train(run)
        outcomes.append(Outcome(run, code))
        results.write(outcomes, runs[number:])
        if code == 0 and settings.metric is not None and run.last(settings.metric) is None:
            raise never_logged(run, settings.metric)
        if was_asked_to_stop(code) or (fail_fast and code):
            break
    results.show(outcomes, runs[len(outcomes) :])
    if was_asked_to_stop(outcomes[-1].code):
        say("stopped as asked; the same command goes on from there")
    return next((outcome.code for outcome in outcomes if outcome.code), 0)
