"""Run a function on several ranks, forked from this warm process: torch and deepspeed are imported once."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trainer.errors import TridentError
from trainer.launcher.start import free_port

POLL_S = 0.02
STACK_S = 1.0
"""Time that stuck ranks get to write their stacks."""
_SHOWN_CHARACTERS = 4000


class RanksFailed(TridentError):
    """Forked ranks did not end with a result.

    Args:
        message: what happened, in one line.
        details: traceback of the rank that failed first, or every rank's stack.
    """

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


def run_forked(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """Return `[fn(rank, world_size, *args) for every rank]`, each computed in a rank of its own on gloo.

    `trainer.engine.warm_start` should have run in this process.

    Raises:
        RanksFailed: a rank failed, or did not end within `timeout_s` seconds.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ranks_") as name:
        folder = Path(name)
        pids: dict[int, int] = {}
        try:
            for rank in range(world_size):
                pids[rank] = forked(partial(_result, fn, rank, world_size, args, port, folder))
            _wait(pids, folder, timeout_s)
        finally:
            for pid in pids.values():
                _kill(pid)
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def show_in(path: Path) -> None:
    """Point this process's output at the end of a file."""
    show_on(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))


def show_on(descriptor: int) -> None:
    """Point this process's output at a descriptor."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def take_place(rank: int, world_size: int, port: int) -> None:
    """Put into the environment what a launcher on this machine tells a rank."""
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({key: str(value) for key, value in facts.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def forked(run: Callable[[], int]) -> int:
    """Run a function in a process forked from this one, and return the process's id.

    The process ends with the exit code that the function returns, or with 1 where it raises, which it should not.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = run()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _result(fn: Callable[..., Any], rank: int, world_size: int, args: tuple[Any, ...], port: int, folder: Path) -> int:
    """Write what a rank returns, or what it raises, into the folder; return its exit code."""
    try:
        show_in(folder / f"{rank}.log")
        faulthandler.enable(sys.stderr)
        faulthandler.register(signal.SIGUSR1, sys.stderr, all_threads=True)
        take_place(rank, world_size, port)
        import torch.distributed as dist

        dist.init_process_group("gloo")
        # A rank that is done at once must not hang up on one that is still connecting.
        dist.barrier()
        (folder / f"{rank}.result").write_bytes(pickle.dumps(fn(rank, world_size, *args)))
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        return 1
    return 0


def _wait(pids: dict[int, int], folder: Path, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while pids:
        for rank, pid in list(pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del pids[rank]
            if status:
                # A lost peer breaks the others; give the one that failed first the time to say so.
                time.sleep(0.3)
                raise _failure(rank, status, folder)
        if time.monotonic() > end:
            raise _hang(pids, folder, timeout_s)
        time.sleep(POLL_S)


def _failure(rank: int, status: int, folder: Path) -> RanksFailed:
    errors = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime)
    if not errors:
        return RanksFailed(f"rank {rank} ended with status {os.waitstatus_to_exitcode(status)}", _log(folder, rank))
    failed, text = int(errors[0].stem), errors[0].read_text()
    last = text.strip().splitlines()[-1]
    return RanksFailed(f"rank {failed} failed: {last}", f"{text}\n{_log(folder, failed)}")


def _hang(pids: dict[int, int], folder: Path, timeout_s: float) -> RanksFailed:
    for pid in pids.values():
        os.kill(pid, signal.SIGUSR1)
    time.sleep(STACK_S)
    stacks = "\n".join(f"--- rank {rank}\n{_log(folder, rank)}" for rank in pids)
    return RanksFailed(f"ranks {sorted(pids)} did not end within {timeout_s:g} s", stacks)


def _log(folder: Path, rank: int) -> str:
    path = folder / f"{rank}.log"
    return path.read_text(errors="replace")[-_SHOWN_CHARACTERS:] if path.exists() else ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return
