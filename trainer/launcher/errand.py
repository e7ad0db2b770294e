"""Ranks of a verb that keeps no run folder: started by its process, or by a launcher. No torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trainer import interruption
from trainer.launcher.ending import explain
from trainer.launcher.output import shared_output, tail
from trainer.launcher.start import LAUNCHER_LOG, run_ranks
from trainer.machine import OomKills
from trainer.progress import STARTING_RANKS, current

LOGS_VARIABLE = "TRIDENT_RANK_LOGS"
"""Variable with the folder in which ranks of such a verb keep their logs."""
AGAIN = "start the same command again"
"""Advice after the loss of a rank."""


def run_errand(world_size: int, arguments: Sequence[str]) -> int:
    """Start `trident <arguments>` on so many ranks of this machine, wait for them, and return their exit code.

    Their logs are removed, unless they failed.
    """
    logs = Path(tempfile.mkdtemp(prefix="trident_ranks_"))
    os.environ[LOGS_VARIABLE] = str(logs)
    try:
        with shared_output():
            oom_kills = OomKills()
            current().enter(STARTING_RANKS)
            outcome = run_ranks(world_size, arguments, logs)
            code = explain(outcome, logs, tail(logs / LAUNCHER_LOG), oom_kills, AGAIN)
        interruption.settle(code)
        if code in (0, *interruption.ASKED):
            shutil.rmtree(logs, ignore_errors=True)
        return code
    finally:
        del os.environ[LOGS_VARIABLE]
