"""torchrun is killed while its ranks start, and started again at the same port at once."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.fork_fixtures import WORDS
from tests.helpers.command import Running, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

COMMAND = [
    *(str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", "--max-restarts", "2"),
    *("--master-port", "29879", "-m", "trainer", "train", *WORDS, "layout=pp2", "train.steps=5", "run_dir=run"),
]
END_S = 180.0


@pytest.mark.parametrize("after_s", [0.0, 0.2, 1.0, 2.0, 3.0])
def test_ranks_that_a_killed_torchrun_left_do_not_hold_up_the_next(after_s: float, tmp_path: Path) -> None:
    with Running(COMMAND, tmp_path) as first:
        agent = psutil.Process(first.process.pid)
        wait_until(lambda: len(agent.children()) == 2, END_S, "the start of the ranks")
        left = agent.children()
        time.sleep(after_s)
        agent.kill()
        with Running(COMMAND, tmp_path) as second:
            ended = second.end(END_S)
        assert ended.code == 0, ended.err
        assert not psutil.wait_procs(left, timeout=30)[1]
