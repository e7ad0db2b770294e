"""The parent of a run that starts its own ranks. What a user can get wrong is found before a rank starts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.data.prepare import prepare
from trainer.description import describe, plan_record
from trainer.engine.kernels import check_compiler
from trainer.errors import PeerLostError
from trainer.launcher.guard import RankGuard, lost_message
from trainer.launcher.output import share_output, tail
from trainer.launcher.start import run_ranks
from trainer.log import report_error, say
from trainer.run_folder import RunFolder


def start_and_watch(config: TridentConfig, arguments: Sequence[str]) -> int:
    """Check, prepare the data, show the plan, start the ranks, and return the run's exit code.

    Raises:
        ConfigError: the run folder or the machine cannot be used.
        DataError: the data cannot be used.
    """
    folder = RunFolder(Path(config.run_dir).absolute())
    folder.check(config)
    prepared = prepare(config, say)
    plan = make_plan(config, prepared.vocab_size)
    check_compiler(plan)
    say(describe(plan))
    folder.write(config, plan_record(plan))
    RankGuard.prepare(folder.logs)
    share_output()
    outcome = run_ranks(
        plan.world_size,
        ["train", *arguments, f"run_dir={folder.path}"],
        folder.logs,
        port=config.launch.master_port,
        grace_s=config.launch.grace_s,
    )
    if outcome.lost_ranks:
        first = outcome.lost_ranks[0]
        say("\n".join(f"rank {first} | {line}" for line in tail(folder.log(first))))
        report_error(
            PeerLostError(
                lost_message(outcome.lost_ranks),
                hints=[
                    f"its log is {folder.log(first)}",
                    "start the same command again: it resumes from the last checkpoint",
                ],
            )
        )
    return outcome.exit_code
