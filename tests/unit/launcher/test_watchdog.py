from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.errors import PeerLostError
from trainer.launcher.watchdog import Watchdog, Whereabouts, hang_error
from trainer.progress import Progress

TIMEOUT_S = 1.0
END_S = 20.0
"""Bound on what takes the time-out, three seconds of waiting for answers, and a busy machine."""

RANK = """
import json, os, re, signal, sys, time
from pathlib import Path
from trainer.launcher.roster import Roster
from trainer.launcher.watchdog import Watchdog
from trainer.progress import Progress

logs, rank, size, fault = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


def wait_for_peers():
    time.sleep(600)


def spin():
    while True:
        pass


progress = Progress()
Roster(logs).enter(rank)
with Watchdog(logs, rank, rank, size, progress, TIMEOUT, 600.0):
    for step in range(1, 4):
        progress.begin_step(step)
        if step == 3 and rank == 1:
            if fault == "sleep":
                time.sleep(600)
            elif fault == "loop":
                spin()
            elif fault == "lock":
                re.match("(a+)+$", "a" * 60 + "b")
            elif fault == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
        progress.enter("pipeline")
        progress.execute("RecvActivation")
        if step == 3:
            exec(compile("import time\\ntime.sleep(600)", "/x/torch/distributed/gloo.py", "exec"))
""".replace("TIMEOUT", str(TIMEOUT_S))


def run_ranks(folder: Path, fault: str, size: int = 2) -> tuple[list[int], str, str]:
    """Start ranks of which rank 1 has the fault; return exit codes, what was told, and what went wrong."""
    logs = folder / "logs"
    logs.mkdir()
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        ranks = [
            subprocess.Popen([sys.executable, "-c", RANK, logs, str(rank), str(size), fault], stdout=out, stderr=err)
            for rank in range(size)
        ]
        try:
            codes = [process.wait(END_S) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    return codes, (folder / "out").read_text(), (folder / "err").read_text()


@pytest.mark.parametrize(
    ("fault", "code"), [("sleep", r"<string>:\d+ \(<module>\)"), ("loop", r"<string>:\d+ \(spin\)")]
)
def test_the_rank_that_is_behind_is_named_with_what_it_does(fault: str, code: str, tmp_path: Path) -> None:
    codes, out, err = run_ranks(tmp_path, fault)
    assert codes == [7, 7]
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "but the run stands still at step 3: behind is rank 1: stage 1, step 3, data, is in " in errors[0]
    assert re.search(code, errors[0])
    assert "rank 0: stage 0, step 3, pipeline, micro-batch 1, RecvActivation, waits in torch/distributed/gloo.py" in out
    assert (tmp_path / "logs" / "hang.txt").read_text() == out
    for rank in range(2):
        stacks = (tmp_path / "logs" / "stacks" / f"rank_{rank}.txt").read_text()
        assert "most recent call first" in stacks
        assert ("spin" in stacks) == (rank == 1 and fault == "loop")
    assert not list((tmp_path / "logs").glob("rank_*.pid"))


@pytest.mark.parametrize("fault", ["stop", "lock"])
def test_a_rank_that_does_not_answer_is_named_and_killed(fault: str, tmp_path: Path) -> None:
    codes, out, err = run_ranks(tmp_path, fault, size=3)
    assert codes == [7, -signal.SIGKILL, 7]
    assert "rank 1 does not answer (stopped, or stuck outside Python)" in err
    assert "rank 1: no answer" in out
    assert "rank 2: stage 2, step 3" in out
    # A stopped process can say nothing; one that holds the interpreter writes from a signal handler.
    stacks = (tmp_path / "logs" / "stacks" / "rank_1.txt").read_text()
    assert ("in match" in stacks) == (fault == "lock")


def test_progress_is_no_hang_and_leaves_nothing(tmp_path: Path) -> None:
    progress = Progress()
    with Watchdog(tmp_path, 0, 0, 1, progress, 0.5, 0.5):
        for step in range(1, 12):
            progress.begin_step(step)
            time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_saving_has_its_own_time(tmp_path: Path) -> None:
    progress = Progress()
    with Watchdog(tmp_path, 0, 0, 1, progress, 0.2, 600.0):
        progress.enter("hooks")
        time.sleep(1.0)
    assert not list(tmp_path.glob("hang*"))


def test_zero_is_off(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, 0, 1, Progress(), 0, 0):
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_attempt_left_ends_nobody(tmp_path: Path) -> None:
    (tmp_path / "hang_rank_0.json").write_text(json.dumps({}))
    Watchdog.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


HERE = Whereabouts(0, 0, "a", 7, "forward", 2, None, False, "x.py:1 (f)")


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 6, "phase": "optimizer", "micro_batch": None},
        {"phase": "data", "micro_batch": None},
        {"micro_batch": 1},
        {"phase": "backward", "others_wait": True},
    ],
)
def test_who_is_behind(changes: dict[str, object]) -> None:
    changes = dict(changes)
    other = replace(HERE, waits=bool(changes.pop("others_wait", False)))
    behind = replace(HERE, rank=1, **changes)  # type: ignore[arg-type]
    error = hang_error(
        {0: other, 1: behind, 2: replace(other, rank=2)}, [], (5.0, "runtime.hang_timeout_s"), Path("logs")
    )
    assert f"behind is {behind}" in str(error)
    assert error.exit_code == PeerLostError.exit_code
    assert "within 5 s (runtime.hang_timeout_s)" in str(error)


def test_many_silent_ranks_are_a_short_line() -> None:
    error = hang_error({0: HERE}, list(range(1, 200)), (5.0, "runtime.hang_timeout_s"), Path("logs"))
    assert "ranks 1, 2, 3" in str(error)
    assert "and more do not answer" in str(error)
    assert len(str(error)) < 400


def test_the_n_th_call_of_an_instruction_is_on_micro_batch_n() -> None:
    progress = Progress()
    progress.enter("pipeline")
    for name in ("ForwardPass", "ForwardPass", "BackwardPass"):
        progress.execute(name)
    assert (progress.instruction, progress.micro_batch) == ("BackwardPass", 1)
    progress.execute("ForwardPass")
    assert (progress.instruction, progress.micro_batch) == ("ForwardPass", 3)
    progress.begin_step(9)
    assert (progress.step, progress.phase, progress.instruction, progress.micro_batch) == (9, "data", None, None)
