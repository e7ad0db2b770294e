"""The parent of a run that starts its own ranks. A user's mistakes are found before a rank starts. No torch."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from trainer import interruption
from trainer.beginning import Beginning
from trainer.config.arguments import SETTLED
from trainer.config.schema import TridentConfig
from trainer.config.words import quoted
from trainer.launcher.attempts import last_step
from trainer.launcher.ending import explain
from trainer.launcher.guard import RankGuard
from trainer.launcher.output import shared_output, tail
from trainer.launcher.start import LAUNCHER_LOG, Outcome, check_port, run_ranks
from trainer.log import say
from trainer.machine import OomKills
from trainer.metrics.jsonl import read_rows
from trainer.planner.foresee import Foresight, account_of_killed
from trainer.progress import STARTING_RANKS, current
from trainer.restarts import Restart, RestartPolicy, remember
from trainer.run_folder import RunFolder


def start_and_watch(config: TridentConfig, foresight: Foresight | None = None) -> int:
    """Begin the run, start its ranks, and return its exit code.

    Args:
        config: the run's config.
        foresight: what this process has predicted of the run already; None: nothing.

    Raises:
        TridentError: as `Beginning.by_parent`; a port that is in use.
    """
    if config.launch.master_port is not None:
        check_port(config.launch.master_port)
    beginning = Beginning(config, foresight)
    plan, folder = beginning.by_parent(), beginning.folder
    launcher_log = folder.logs / LAUNCHER_LOG
    log_start = launcher_log.stat().st_size if launcher_log.exists() else 0
    # The ranks are given the settled config: folders, variables and the time may give them another one.
    words = ["train", f"{SETTLED}={folder.config}", f"run_dir={quoted(str(folder.path))}"]
    policy = RestartPolicy(config.launch.max_restarts, config.launch.restart_backoff_s)
    with shared_output():
        while True:
            oom_kills = OomKills()
            # The ranks have watchdogs of their own.
            interruption.limit(0)
            current().enter(STARTING_RANKS)
            outcome = run_ranks(
                plan.world_size, words, folder.logs, port=config.launch.master_port, grace_s=config.launch.grace_s
            )
            code = explain(
                outcome,
                folder.logs,
                tail(launcher_log, start=log_start),
                oom_kills,
                account=partial(account_of_killed, plan),
            )
            outcome = replace(outcome, exit_code=code)
            if not _starts_again(outcome, folder, policy):
                interruption.settle(outcome.exit_code)
                return outcome.exit_code
            log_start = launcher_log.stat().st_size
            RankGuard.prepare(folder.logs)


def _starts_again(outcome: Outcome, folder: RunFolder, policy: RestartPolicy) -> bool:
    """Wait, and return whether there is another attempt."""
    if outcome.exit_code == 0:
        return False
    step = last_step(read_rows(folder.metrics))
    wait_s = None if outcome.stop_requested else policy.wait_s(outcome.exit_code, step)
    if wait_s is None:
        if policy.reason:
            say(f"not started again: {policy.reason}")
        return False
    remember(folder.path, Restart.now(outcome.exit_code, step, outcome.lost_ranks))
    say(f"starting again in {wait_s:g} s, from the newest checkpoint (last step logged: {step})")
    time.sleep(wait_s)
    return True
