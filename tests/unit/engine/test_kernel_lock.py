from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.config.schema import OffloadKind, OptimizerConfig, RuntimeConfig, ZeroConfig
from trainer.engine import kernel_lock
from trainer.engine.adam import check_compiler
from trainer.engine.kernel_lock import QUIET_S, STALE_S, KernelLock, Owner, owner_of
from trainer.errors import ConfigError
from trainer.progress import COMPILING, current

ROOT = Path(__file__).resolve().parents[3]
OWNER = """
import sys, time
from trainer.engine.kernel_lock import KernelLock
lock = KernelLock(sys.argv[1])
assert lock.try_acquire()
print("compiles", flush=True)
time.sleep(float(sys.argv[2]))
open(sys.argv[1].replace("lock", "cpu_adam.so"), "w").close()
lock.release()
"""
"""Compiles for a while, in a process of its own."""
TORCHS_OWN = """
import os, sys, time
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)
print("compiles", flush=True)
time.sleep(float(sys.argv[2]))
open(sys.argv[1].replace("lock", "cpu_adam.so"), "w").close()
os.close(descriptor)
os.remove(sys.argv[1])
"""
"""What torch's FileBaton does, without torch."""


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    path = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    path.parent.mkdir(parents=True)
    return path


@contextmanager
def owner(lock: Path, seconds: float = 60.0, program: str = OWNER) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", program, lock, str(seconds)], cwd=ROOT, stdout=-1, text=True)
    try:
        assert process.stdout is not None
        assert "compiles\n" in iter(process.stdout.readline, "")
        yield process
    finally:
        process.kill()
        process.wait()


def check(offload: OffloadKind) -> None:
    check_compiler(OptimizerConfig(), ZeroConfig(stage=1, offload=offload), RuntimeConfig())


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def acquired(lock: Path) -> bool:
    """Whether a lock is had at once, and is given back."""
    found: list[bool] = []

    def take() -> None:
        mine = KernelLock(str(lock))
        found.append(mine.try_acquire())
        if found[0]:
            assert owner_of(lock) is Owner.alive
            assert (current().phase, current().instruction) == (COMPILING, "cpu_adam")
            mine.release()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(20)
    assert found, "hangs"
    assert not lock.exists()
    return found[0]


@pytest.mark.parametrize("program", [OWNER, TORCHS_OWN], ids=["ours", "torch's"])
def test_the_lock_of_a_killed_compilation_is_taken_over_at_once(program: str, lock: Path) -> None:
    with owner(lock, program=program) as process:
        assert owner_of(lock) is Owner.alive
        process.kill()
        process.wait()
        assert lock.exists(), "the test shows nothing"
        check(OffloadKind.cpu)
        assert acquired(lock)


def test_a_lock_without_a_process_is_taken_over(lock: Path) -> None:
    lock.touch()
    assert owner_of(lock) is Owner.gone
    assert acquired(lock)


@pytest.mark.parametrize("program", [OWNER, TORCHS_OWN], ids=["ours", "torch's"])
def test_who_compiles_is_waited_for_and_named(
    program: str, lock: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_lock, "FIRST_WORD_S", 0.2)
    with owner(lock, 2.0, program) as process:
        assert not acquired(lock), "the kernel is compiled already"
        who = f"process {process.pid} on " if program is OWNER else "another program"
        assert f"waiting for {who}" in capsys.readouterr().out


def test_a_waiting_process_compiles_when_the_one_before_is_killed(lock: Path) -> None:
    with owner(lock) as process:
        threading.Timer(1.0, process.kill).start()
        threading.Timer(1.5, process.wait).start()
        assert acquired(lock)


def test_of_many_that_find_a_dead_lock_one_compiles_at_a_time(lock: Path) -> None:
    lock.touch()
    inside, most, got = 0, 0, 0

    def take() -> None:
        nonlocal inside, most, got
        mine = KernelLock(str(lock))
        if mine.try_acquire():
            inside += 1
            got += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1
            mine.release()

    threads = [threading.Thread(target=take, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most, got) == (1, 8)


def elsewhere(lock: Path) -> None:
    """Write what a process of another machine would have written."""
    lock.write_text(json.dumps({"host": "node7", "machine": "another", "pid": 1, "started": 0.0}))


def test_an_owner_on_another_machine_lives_while_it_touches_its_lock(lock: Path) -> None:
    elsewhere(lock)
    assert owner_of(lock) is Owner.alive
    age(lock, STALE_S + 1)
    assert owner_of(lock) is Owner.gone
    assert acquired(lock)


def test_an_owner_touches_its_lock(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_lock, "BEAT_S", 0.05)
    mine = KernelLock(str(lock))
    assert mine.try_acquire()
    age(lock, 1000)
    time.sleep(0.5)
    assert time.time() - lock.stat().st_mtime < 100
    mine.release()


def test_what_was_taken_over_from_a_stopped_owner_is_not_removed_by_it(lock: Path) -> None:
    mine = KernelLock(str(lock))
    assert mine.try_acquire()
    elsewhere(lock)
    mine.release()
    assert lock.exists()


def test_a_lock_of_which_nobody_can_tell_is_refused_with_what_to_do(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network's file system another machine may have it, as long as something happens in the folder."""
    monkeypatch.setattr(kernel_lock, "_file_system", lambda folder: "nfs4")
    lock.touch()
    assert owner_of(lock) is Owner.unknown
    check(OffloadKind.cpu)
    age(lock, QUIET_S + 60)
    with pytest.raises(ConfigError, match=r"must not be locked, but .* is: it is there since 6 minutes") as caught:
        KernelLock(str(lock)).try_acquire()
    assert caught.value.hints[0] == f"if nothing compiles there, delete {lock}"
    with pytest.raises(ConfigError, match="is 6 minutes old, and nobody can tell whose"):
        check(OffloadKind.cpu)
    (lock.parent / "cpu_adam.o").touch()
    check(OffloadKind.cpu)
    check(OffloadKind.none)


def test_a_folder_that_cannot_be_written_must_hold_the_kernel(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(ConfigError, match=r"must be one that can be written, or hold them, but .*TORCH_EXTENSIONS_DIR"):
        check(OffloadKind.cpu)
    (lock.parent / "cpu_adam.so").touch()
    check(OffloadKind.cpu)
    lock.touch()
    assert not KernelLock(str(lock)).try_acquire()
