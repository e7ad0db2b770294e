from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from trainer.doctor.finding import Finding, Status
from trainer.doctor.progress_checks import look_at_progress
from trainer.doctor.surroundings import Surroundings

LIMIT = {"TRIDENT_HEALTH_SECONDS": "100"}


def health(root: Path, **environ: str) -> list[Finding]:
    return list(look_at_progress(Surroundings(environ={**LIMIT, **environ}, root=root)))


def writes(root: Path, pid: int, target: str) -> None:
    """Let a process write its output somewhere."""
    (root / "proc" / str(pid) / "fd").mkdir(parents=True)
    (root / "proc" / str(pid) / "fd" / "1").symlink_to(target)


def test_nothing_trains(tmp_path: Path) -> None:
    assert [one.found for one in health(tmp_path)] == ["no rank trains here"]
    writes(tmp_path, 1, "/dev/null")
    writes(tmp_path, 2, "logs/rank_0.log")
    assert [one.status for one in health(tmp_path)] == [Status.ok]


def test_health_is_progress(tmp_path: Path) -> None:
    run = tmp_path / "a rün"
    writes(tmp_path, 7, f"{run}/logs/rank_0.log (deleted)")
    writes(tmp_path, 8, f"{run}/logs/rank_1.log")
    files = [run / "logs" / "rank_0.log", run / "metrics.jsonl", run / "checkpoints" / "step_5" / "x"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert [one.found for one in health(tmp_path)] == [f"{run}: written to in the last 100 s"]
    past = time.time() - 200
    for path in (*files, *(file.parent for file in files), run / "checkpoints"):
        os.utime(path, (past, past))
    [found] = health(tmp_path)
    assert found.status is Status.fail
    assert re.fullmatch(rf"{run} has written nothing for 20\d s", found.found)
    longer = re.search(r"`export (\w+)=(\d+)`", found.fix)
    assert longer is not None
    assert [one.status for one in health(tmp_path, **{longer[1]: longer[2]})] == [Status.ok]
    for alive in (files[0], files[1], files[2].parent):
        os.utime(alive)
        assert health(tmp_path)[0].status is Status.ok
        os.utime(alive, (past, past))


def test_a_run_whose_folder_is_gone_hangs(tmp_path: Path) -> None:
    writes(tmp_path, 7, f"{tmp_path}/gone/logs/rank_0.log")
    [found] = health(tmp_path)
    assert (found.status, found.found) == (Status.fail, f"{tmp_path}/gone is gone, while a rank still trains in it")


@pytest.mark.parametrize("text", ["soon", "-1", "0", "1e3", "nan", "1.2.3"])
def test_a_limit_that_is_no_number_is_told(text: str, tmp_path: Path) -> None:
    [found] = health(tmp_path, TRIDENT_HEALTH_SECONDS=text)
    assert (found.status, found.fix) == (Status.fail, "`unset TRIDENT_HEALTH_SECONDS`")


def test_the_log_of_a_real_process_is_found(tmp_path: Path) -> None:
    log = tmp_path / "R" / "logs" / "rank_3.log"
    log.parent.mkdir(parents=True)
    with log.open("w") as output, subprocess.Popen(["sleep", "60"], stdout=output) as process:
        past = time.time() - 200
        os.utime(log, (past, past))
        found = list(look_at_progress(Surroundings(environ=LIMIT)))
        process.kill()
    assert any(one.status is Status.fail and str(tmp_path / "R") in one.found for one in found)
