"""The parent of a run that starts its own ranks. What a user can get wrong is found before a rank starts. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.data.capacity import check_capacity
from trainer.data.prepare import PreparedData, prepare
from trainer.description import describe, plan_record
from trainer.engine.kernels import check_compiler
from trainer.errors import ConfigError, PeerLostError, Preempted, TridentError
from trainer.launcher.guard import RankGuard, lost_message
from trainer.launcher.output import shared_output, tail
from trainer.launcher.roster import Roster
from trainer.launcher.start import INTERRUPTED, LAUNCHER_LOG, Outcome, run_ranks
from trainer.log import report_error, say
from trainer.run_folder import RunFolder

_TAIL_LINES = 20


def check_before_start(config: TridentConfig) -> PreparedData:
    """Check everything that a user can get wrong, and prepare the data. Writes nothing into the run's folder.

    Raises:
        ConfigError: the run folder or the machine cannot be used.
        CheckpointError: `checkpoint.resume` names none.
        DataError: the data cannot be used, or are too few.
    """
    RunFolder.of(config).check(config)
    check_compiler(make_plan(config, vocab_size=config.model.vocab_size or 1))
    prepared = prepare(config, say)
    check_capacity(prepared, config)
    return prepared


def start_and_watch(config: TridentConfig, arguments: Sequence[str]) -> int:
    """Check, prepare the data, show the plan, start the ranks, and return the run's exit code.

    Raises:
        TridentError: as `check_before_start`.
    """
    prepared = check_before_start(config)
    folder = RunFolder.of(config)
    plan = make_plan(config, prepared.vocab_size)
    say(describe(plan))
    folder.write(config, plan_record(plan))
    RankGuard.prepare(folder.logs)
    launcher_log = folder.logs / LAUNCHER_LOG
    log_start = launcher_log.stat().st_size if launcher_log.exists() else 0
    with shared_output():
        outcome = run_ranks(
            plan.world_size,
            ["train", *arguments, f"run_dir={_quoted(folder.path)}"],
            folder.logs,
            port=config.launch.master_port,
            grace_s=config.launch.grace_s,
        )
        _explain(outcome, folder, tail(launcher_log, start=log_start))
    return outcome.exit_code


def _quoted(path: Path) -> str:
    """Return a path as Hydra's grammar reads it back; backslashes count as such only before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), str(path))
    return f"'{escaped}'"


def _explain(outcome: Outcome, folder: RunFolder, launcher_lines: list[str]) -> None:
    """Say why the ranks ended, where they could not say it themselves."""
    if outcome.lost_ranks:
        first = outcome.lost_ranks[0]
        _say_log(f"rank {first}", tail(folder.log(first), _TAIL_LINES))
        report_error(
            PeerLostError(
                lost_message(outcome.lost_ranks),
                hints=[
                    f"its log is {folder.log(first)}",
                    "start the same command again: it resumes from the last checkpoint",
                ],
            )
        )
        return
    is_expected = outcome.exit_code in (0, Preempted.exit_code, INTERRUPTED)
    if not is_expected and Roster(folder.logs).told_failure() is None:
        report_error(_early_end(outcome.exit_code, folder, launcher_lines))


def _early_end(exit_code: int, folder: RunFolder, lines: list[str]) -> TridentError:
    """Return the error that a rank wrote before it had the terminal, or one that points at the launcher's log."""
    problems = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if problems:
        hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
        return ConfigError(problems, hints)
    _say_log("launcher", lines)
    return TridentError(
        f"the deepspeed launcher must start every rank, but ended with exit code {exit_code}",
        hints=[f"its log is {folder.logs / LAUNCHER_LOG}"],
    )


def _say_log(source: str, lines: list[str]) -> None:
    if lines:
        say("\n".join(f"{source} | {line}" for line in lines))
