"""The end of the ranks in words, where they could not say it themselves. No torch."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import ConfigError, OutOfMemoryError, Preempted, TridentError
from trainer.interruption import INTERRUPTED
from trainer.launcher.guard import GOES_ON, Account, lost_error
from trainer.launcher.output import tail
from trainer.launcher.roster import Roster
from trainer.launcher.start import LAUNCHER_LOG, Outcome
from trainer.log import report_failure
from trainer.machine import OomKills


def explain(
    outcome: Outcome,
    logs: Path,
    launcher_lines: list[str],
    oom_kills: OomKills,
    again: str = GOES_ON,
    account: Account | None = None,
) -> int:
    """Print why the ranks ended, if they could not do it themselves, and return the exit code of the command.

    Args:
        outcome: their end.
        logs: the folder of their logs.
        launcher_lines: what the launcher printed.
        oom_kills: the kernel's kills for memory since they were started.
        again: what to do when a rank was lost.
        account: tells of a rank that was killed for its memory; None if nobody can.
    """
    if outcome.lost_ranks:
        first = outcome.lost_ranks[0]
        log = logs / f"rank_{first}.log"
        error = lost_error(outcome.lost_ranks, oom_kills, log, again, account)
        report_failure(error, f"rank {first}", tail(log))
        return OutOfMemoryError.exit_code if isinstance(error, OutOfMemoryError) else outcome.exit_code
    is_expected = outcome.exit_code in (0, Preempted.exit_code, INTERRUPTED)
    if not is_expected and Roster(logs).told_failure() is None:
        _report_early_end(outcome.exit_code, logs, launcher_lines, oom_kills)
    return outcome.exit_code


def _report_early_end(exit_code: int, logs: Path, lines: list[str], oom_kills: OomKills) -> None:
    """Print the error that a rank wrote before it had the terminal, or one that points at the launcher's log."""
    problems = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if problems:
        hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
        report_failure(ConfigError(problems, hints))
        return
    error = TridentError(
        f"the deepspeed launcher must start every rank, but ended with exit code {exit_code}",
        hints=[*filter(None, [oom_kills.hint()]), f"its log is {logs / LAUNCHER_LOG}"],
    )
    report_failure(error, "launcher", lines)
