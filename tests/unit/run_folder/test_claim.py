"""Two runs never train in one folder: one gets it, a dead owner keeps nobody out, who leaves is waited for."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.config.compose import compose
from trainer.config.schema import TridentConfig
from trainer.errors import ConfigError, PeerLostError, StorageError
from trainer.launcher.roster import Roster
from trainer.run_folder import RunFolder
from trainer.run_paths import LOCK

TRIES, RIVALS = 20, 4


@pytest.fixture
def config(tmp_path: Path) -> TridentConfig:
    return within(tmp_path, 0)


def within(tmp_path: Path, grace_s: int) -> TridentConfig:
    return compose(["data=synthetic", f"run_dir={tmp_path / 'run'}", f"launch.grace_s={grace_s}"])


def _fork(action: Callable[[], int]) -> int:
    """Run something in another process; return its id."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = action()
        finally:
            os._exit(code)
    return pid


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _first_to_end(pids: list[int], count: int) -> list[int]:
    """Wait for so many of the processes, take them off the list, and return their exit codes."""
    codes: list[int] = []
    while len(codes) < count:
        for pid in list(pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                pids.remove(pid)
                codes.append(os.waitstatus_to_exitcode(status))
        time.sleep(0.002)
    return codes


def _rival(config: TridentConfig, start: int, done: int) -> int:
    """Wait for the start, claim, and hold what was claimed until all have tried."""
    os.read(start, 1)
    folder = RunFolder.of(config)
    try:
        folder.claim(config)
    except ConfigError as error:
        return error.exit_code
    os.read(done, 1)
    return 0


def test_of_runs_that_start_at_once_exactly_one_gets_the_folder(config: TridentConfig) -> None:
    for _ in range(TRIES):
        (start, started), (done, finish) = os.pipe(), os.pipe()

        def act(start: int = start, started: int = started, done: int = done, finish: int = finish) -> int:
            os.close(started)
            os.close(finish)
            return _rival(config, start, done)

        pids = [_fork(act) for _ in range(RIVALS)]
        os.close(started)
        losers = _first_to_end(pids, RIVALS - 1)
        os.close(finish)
        winners = _first_to_end(pids, 1)
        os.close(start)
        os.close(done)
        assert (winners, losers) == ([0], [2] * (RIVALS - 1))


def test_the_second_is_told_who_has_it(config: TridentConfig) -> None:
    first = RunFolder.of(config)
    first.claim(config)
    first.claim(config)
    with pytest.raises(ConfigError, match="run_dir must not be in use, but a run trains in ") as caught:
        RunFolder.of(config).claim(config)
    assert f"(process {os.getpid()} on {socket.gethostname()})" in str(caught.value)
    first.write(config, {})
    del first
    RunFolder.of(config).claim(config)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_owner_keeps_nobody_out(config: TridentConfig, number: signal.Signals) -> None:
    def die() -> int:
        folder = RunFolder.of(config)
        folder.claim(config)
        os.kill(os.getpid(), number)
        return 0

    assert _wait(_fork(die)) == -number
    assert (RunFolder.of(config).path / LOCK).read_text().startswith("process ")
    RunFolder.of(config).claim(config)


def _occupy(config: TridentConfig, seconds: float, has_lock: bool) -> int:
    """Be a rank, or the command of a run, for some time, in another process; return its id when it is."""
    is_there, tell = os.pipe()

    def stay() -> int:
        folder = RunFolder.of(config)
        folder.claim(config) if has_lock else Roster(folder.logs).enter(3)
        os.write(tell, b"x")
        time.sleep(seconds)
        return 0

    pid = _fork(stay)
    os.read(is_there, 1)
    return pid


@pytest.mark.parametrize("has_lock", [False, True])
@pytest.mark.parametrize("method", ["wait_until_free", "claim"])
def test_a_start_waits_for_what_is_leaving_and_says_so(
    method: str, has_lock: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = within(tmp_path, 30)
    pid = _occupy(config, 0.5, has_lock)
    # As a parent that waits for its child does: a process that is done is no process.
    reaper = threading.Thread(target=os.waitpid, args=(pid, 0))
    reaper.start()
    getattr(RunFolder.of(config), method)(config)
    reaper.join()
    told = capsys.readouterr().out
    assert told.startswith("waiting up to 30 s (launch.grace_s) for it to end: ")
    assert told.count("\n") == 1
    assert str(pid) in told


@pytest.mark.parametrize("method", ["wait_until_free", "claim"])
def test_ranks_that_do_not_leave_are_a_lost_peer_and_no_mistake_of_the_user(method: str, tmp_path: Path) -> None:
    config = within(tmp_path, 1)
    pid = _occupy(config, 60, has_lock=False)
    try:
        with pytest.raises(PeerLostError, match=rf"rank 3 still runs in .* \(process {pid}\)") as caught:
            getattr(RunFolder.of(config), method)(config)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert caught.value.exit_code == 7
    assert caught.value.hints[0] == f"end it: kill -9 {pid}"


@pytest.mark.parametrize("method", ["wait_until_free", "claim"])
def test_a_run_that_goes_on_is_refused(method: str, tmp_path: Path) -> None:
    config = within(tmp_path, 1)
    pid = _occupy(config, 60, has_lock=True)
    try:
        with pytest.raises(ConfigError, match=rf"but a run trains in .* now \(process {pid} on "):
            getattr(RunFolder.of(config), method)(config)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_looking_whether_it_is_free_writes_nothing(config: TridentConfig, tmp_path: Path) -> None:
    RunFolder.of(config).wait_until_free(config)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_half_written_is_removed(config: TridentConfig) -> None:
    folder = RunFolder.of(config)
    folder.checkpoints.folder.mkdir(parents=True)
    left = [folder.path / ".metrics.jsonl.123.tmp", folder.checkpoints.folder / ".latest.45.tmp"]
    kept = [folder.path / "notes.tmp", folder.path / ".hidden", folder.checkpoints.folder / "latest"]
    for path in (*left, *kept):
        path.write_text("x")
    folder.claim(config)
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in kept)


def test_what_changed_until_the_lock_was_ours_counts(config: TridentConfig, tmp_path: Path) -> None:
    never = compose(["data=synthetic", f"run_dir={tmp_path / 'run'}", "checkpoint=none"])
    RunFolder.of(never).check(never)
    RunFolder.of(config).write(config, {})
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match="must be a fresh folder"):
        RunFolder.of(never).claim(never)


def test_a_file_system_without_locks_is_told_of(
    config: TridentConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.delenv("RANK", raising=False)
    RunFolder.of(config).claim(config)
    assert "cannot lock (Operation not supported): do not start two runs there at once" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_a_fault_of_storage(
    config: TridentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"run must be writable, but writing is not allowed there"):
        RunFolder.of(config).claim(config)
