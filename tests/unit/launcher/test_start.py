from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.unit.launcher.conftest import wait_until
from trainer.errors import ConfigError
from trainer.launcher import start
from trainer.launcher.roster import Roster
from trainer.launcher.start import Outcome, check_port, free_port, launch_command, run_ranks

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 30.0

LAUNCHER = """
import os, subprocess, sys
folder, count = sys.argv[1], int(sys.argv[2])
open(f"{folder}/launcher.mark", "w").write(str(os.getpid()))
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[3], folder, str(rank)]) for rank in range(count)]
failed = [code for code in (rank.wait() for rank in ranks) if code]
sys.exit(failed[0] if failed else 0)
"""
"""Stands in for the deepspeed launcher: starts the ranks, waits, and exits with the first failure."""

RANK = """
import os, signal, sys, time
from pathlib import Path
from trainer.launcher.roster import Roster
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
roster = Roster(folder)
(folder / f"{rank}.mark").write_text(str(os.getpid()))
def asked(number, frame):
    (folder / f"{rank}.asked").touch()
    roster.leave(rank)
    os._exit(75)
signal.signal(signal.SIGTERM, asked)
signal.signal(signal.SIGINT, asked)
roster.enter(rank)
def wait_for_all():
    while len(list(folder.glob("rank_*.pid"))) < 2:
        time.sleep(0.02)
"""

DRIVER = """
import json, signal, sys
from dataclasses import asdict
from pathlib import Path
from trainer.launcher import start
signal.signal(signal.SIGHUP, signal.SIG_DFL)
command = json.loads(sys.argv[2])
start.launch_command = lambda world_size, port, arguments: command
start.REPEAT_S = float(sys.argv[3])
print(json.dumps(asdict(start.run_ranks(2, [], Path(sys.argv[1]), grace_s=20))))
"""
"""run_ranks in a process of its own, which can be signalled."""


def command(folder: Path, rank: str, count: int = 2) -> list[str]:
    return [sys.executable, "-c", LAUNCHER, str(folder), str(count), rank]


def run(folder: Path, rank: str, monkeypatch: pytest.MonkeyPatch, grace_s: float = 0.5) -> Outcome:
    monkeypatch.setattr(start, "launch_command", lambda world_size, port, arguments: command(folder, rank))
    return run_ranks(2, [], folder, grace_s=grace_s)


def nobody_left(folder: Path) -> bool:
    pids = [int(path.read_text()) for path in folder.glob("*.mark")]
    assert pids
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


@pytest.fixture(autouse=True)
def no_process_left(tmp_path: Path) -> Iterator[None]:
    yield
    left = [int(path.read_text()) for path in tmp_path.glob("*.mark")]
    for pid in left:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def test_ranks_that_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, RANK + "roster.leave(rank)", monkeypatch) == Outcome(0, (), False)
    assert nobody_left(tmp_path)


def test_the_exit_code_of_a_rank_is_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, RANK + "roster.leave(rank); sys.exit(3)", monkeypatch) == Outcome(3, (), False)


def test_output_of_the_launcher_goes_to_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "launcher.log").write_text("earlier\n")
    # One write a rank: print() writes its newline by itself where output is unbuffered (PYTHONUNBUFFERED).
    run(tmp_path, "import os; os.write(1, b'noise\\n')", monkeypatch)
    assert (tmp_path / "launcher.log").read_text() == "earlier\nnoise\nnoise\n"


def test_a_killed_rank_is_named_and_the_others_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = RANK + "wait_for_all()\nif rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)"
    begin = time.monotonic()
    assert run(tmp_path, rank, monkeypatch) == Outcome(7, (1,), False)
    assert time.monotonic() - begin < TIMEOUT_S
    wait_until(lambda: nobody_left(tmp_path))


def test_the_others_get_the_grace_to_end_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = RANK + (
        "wait_for_all()\nif rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "while not roster.lost(): time.sleep(0.02)\n"
        "time.sleep(0.5)\nroster.leave(rank)\n(folder / 'said goodbye').touch()\nsys.exit(7)"
    )
    assert run(tmp_path, rank, monkeypatch, grace_s=TIMEOUT_S) == Outcome(7, (1,), False)
    assert (tmp_path / "said goodbye").exists()


def test_a_failure_that_was_told_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = RANK + (
        "wait_for_all()\nif rank == 0:\n    roster.claim_failure(5)\n    roster.leave(0)\n    sys.exit(5)\n"
        "time.sleep(60)"
    )
    assert run(tmp_path, rank, monkeypatch) == Outcome(5, (), False)
    wait_until(lambda: nobody_left(tmp_path))


def test_a_killed_launcher_leaves_no_rank_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = RANK + "wait_for_all()\nif rank == 0: os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)"
    assert run(tmp_path, rank, monkeypatch) == Outcome(7, (), False)
    wait_until(lambda: nobody_left(tmp_path))


def test_ranks_whose_launcher_just_ends_are_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What deepspeed's outer process does when its inner one is killed: exit 0.
    code = LAUNCHER.replace(
        "failed = ",
        "import glob, time\nwhile len(glob.glob(f'{folder}/rank_*.pid')) < 2: time.sleep(0.02)\nsys.exit(0)\nfailed = ",
    )
    rank = [sys.executable, "-c", code, str(tmp_path), "2", RANK + "time.sleep(60)"]
    monkeypatch.setattr(start, "launch_command", lambda world_size, port, arguments: rank)
    assert run_ranks(2, [], tmp_path) == Outcome(7, (), False)
    wait_until(lambda: nobody_left(tmp_path))


def test_what_an_earlier_attempt_left_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rank_9.pid").write_text("{}")
    Roster(tmp_path).claim_failure(6)
    assert run(tmp_path, RANK + "roster.leave(rank)", monkeypatch) == Outcome(0, (), False)


def drive(folder: Path, rank: str, repeat_s: float) -> subprocess.Popen[str]:
    arguments = [str(folder), json.dumps(command(folder, rank)), str(repeat_s)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


def end_of(process: subprocess.Popen[str]) -> dict[str, object]:
    try:
        text, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    outcome: dict[str, object] = json.loads(text)
    return outcome


def both_entered(folder: Path) -> bool:
    return len(Roster(folder).present()) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_handed_to_every_rank(number: signal.Signals, tmp_path: Path) -> None:
    process = drive(tmp_path, RANK + "time.sleep(60)", repeat_s=60)
    wait_until(lambda: both_entered(tmp_path))
    process.send_signal(number)
    assert end_of(process) == {"exit_code": 75, "lost_ranks": [], "stop_requested": True}
    assert all((tmp_path / f"{rank}.asked").exists() for rank in range(2))
    assert nobody_left(tmp_path)


STUBBORN = RANK.replace("    roster.leave(rank)\n    os._exit(75)\n", "")


def test_a_second_signal_kills(tmp_path: Path) -> None:
    process = drive(tmp_path, STUBBORN + "while True: time.sleep(1)", repeat_s=0.01)
    wait_until(lambda: both_entered(tmp_path))
    process.send_signal(signal.SIGINT)
    wait_until(lambda: len(list(tmp_path.glob("*.asked"))) == 2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end_of(process) == {"exit_code": 130, "lost_ranks": [], "stop_requested": True}
    wait_until(lambda: nobody_left(tmp_path))


def test_one_wish_that_arrives_twice_does_not_kill(tmp_path: Path) -> None:
    slow = RANK.replace("    roster.leave(rank)", "    time.sleep(1.0)\n    roster.leave(rank)") + "time.sleep(60)"
    process = drive(tmp_path, slow, repeat_s=30)
    wait_until(lambda: both_entered(tmp_path))
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.05)
    assert end_of(process) == {"exit_code": 75, "lost_ranks": [], "stop_requested": True}


@pytest.mark.parametrize(
    ("number", "insists"),
    [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGHUP, False), (signal.SIGUSR1, False)],
)
def test_who_insists(number: signal.Signals, insists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "REPEAT_S", 0.1)
    # The tests may run under nohup.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        _insist(number, insists)
    finally:
        signal.signal(signal.SIGHUP, before)


def _insist(number: signal.Signals, insists: bool) -> None:
    with start._StopSignals() as signals:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert (signals.requested, signals.insisted) == (True, False)
        time.sleep(0.15)
        os.kill(os.getpid(), number)
        assert signals.insisted == insists


def test_before_a_rank_works_a_signal_ends_all_at_once(tmp_path: Path) -> None:
    process = drive(tmp_path, "import time; time.sleep(60)", repeat_s=60)
    wait_until(lambda: (tmp_path / "launcher.mark").exists() and (tmp_path / "launcher.mark").read_text())
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == {"exit_code": 75, "lost_ranks": [], "stop_requested": True}
    wait_until(lambda: nobody_left(tmp_path))


def test_handlers_are_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in start._STOP_SIGNALS]
    run(tmp_path, "", monkeypatch)
    assert [signal.getsignal(number) for number in start._STOP_SIGNALS] == before


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with start._StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.requested
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signals.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_command_is_what_the_deepspeed_launcher_starts_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.launcher import runner

    theirs: list[list[str]] = []

    class Started:
        returncode = 0

        def __init__(self, words: list[str], **_: object) -> None:
            theirs.append(words)

        def wait(self) -> None:
            pass

    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=Started))
    script = ["--module", "trainer", "train", "run_dir='a b'"]
    options = ["--hostfile", os.devnull, "--no_local_rank", "--num_gpus", "4", "--master_port", "29511"]
    runner.main([*options, *script])
    # Unbuffered output, and what it tells, are of no use to ranks that write their own logs; None is its default.
    of_output = ("-u", "--log_level=", "--enable_each_rank_log=None")
    expected = [word for word in theirs[0] if not word.startswith(of_output)]
    ours = launch_command(4, 29511, script[2:])
    assert sorted(ours) == sorted(expected)
    assert ours[:3] == [sys.executable, "-m", "deepspeed.launcher.launch"]
    assert ours[ours.index("--module") :] == script


def test_a_free_port_is_free_and_none_that_connections_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low = tmp_path / "range"
    monkeypatch.setattr("trainer.launcher.start._PORT_RANGE", low)
    low.write_text("15010\t60999\n")
    found = {free_port() for _ in range(100)}
    assert found <= set(range(15000, 15010))
    assert len(found) > 3
    with socket.socket() as other:
        other.bind(("", min(found)))
        other.listen()
        assert min(found) not in {free_port() for _ in range(100)}
    # There is none.
    for text in ("1024 65535", "none", ""):
        low.write_text(text)
        assert 1024 <= free_port() <= 65535
    low.unlink()
    assert 1024 <= free_port() <= 65535


def test_a_port_in_use_is_refused() -> None:
    check_port(free_port())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"{port} cannot \(Address already in use\); use another one, or null"):
            check_port(port)


def test_ranks_are_told_about_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    found = start._environment()
    assert found["TRIDENT_CONSOLE_PID"] == str(os.getpid())
    assert found["TRIDENT_SUPERVISED"] == "1"
    assert found["TRIDENT_VISIBLE_DEVICES"] == "2,3"
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert found["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "TRIDENT_VISIBLE_DEVICES" not in start._environment()


def test_a_trainer_py_of_the_user_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text("raise SystemExit('the wrong trainer')")
    command = [sys.executable, "-m", "trainer", "--version"]
    environment = {key: value for key, value in start._environment().items() if not key.startswith("TRIDENT")}
    wrong = subprocess.run(
        command,
        cwd=tmp_path,
        env={**environment, "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "the wrong trainer" in wrong.stderr, "the test shows nothing"
    right = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (right.returncode, right.stderr) == (0, "")
