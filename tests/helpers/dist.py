"""Run a function on several ranks, forked from this warm process: torch and deepspeed are imported once.

A failing rank fails the test with its traceback; a rank that does not end in time fails it with every rank's stack.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from trainer.launcher.start import free_port

POLL_S = 0.02
STACK_S = 1.0
"""Time that stuck ranks get to write their stacks."""


@cache
def warm_up() -> None:
    """Do once, before the first fork, what every rank would do again."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    # A forked child cannot use the parent's thread pool.
    torch.set_num_threads(1)
    import cpuinfo
    import deepspeed

    # Every ZeRO optimizer looks at it, and its decorators of torch.compile take a quarter of a second.
    import deepspeed.runtime.zero.muon.muon_optimizer
    import torch._dynamo
    import torch._inductor.compile_fx
    from deepspeed.ops.op_builder import CPUAdamBuilder

    import trainer.engine.build  # noqa: F401

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Loading the compiled kernel asks the compiler for its version, and each optimizer starts a process to ask for
    # the processor's name.
    CPUAdamBuilder().load(verbose=False)
    processor = cpuinfo.get_cpu_info()
    cpuinfo.get_cpu_info = lambda: processor
    # What is imported stays; collecting garbage in a rank need not look at it.
    gc.freeze()
    # At the end it must: Triton lists what it thinks was leaked.
    atexit.register(gc.unfreeze)


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """Return `[fn(rank, world_size, *args) for every rank]`, each computed in a rank of its own on gloo.

    Raises:
        AssertionError: a rank failed, or did not end within `timeout_s` seconds.
    """
    warm_up()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ranks_") as name:
        folder = Path(name)
        pids: dict[int, int] = {}
        try:
            for rank in range(world_size):
                pids[rank] = _fork(fn, rank, world_size, args, port, folder)
            _wait(pids, folder, timeout_s)
        finally:
            for pid in pids.values():
                _kill(pid)
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def train_command(rank: int, world_size: int, words: Sequence[str]) -> int:
    """Run `trident train <words>` as a rank that a launcher started; return its exit code."""
    from trainer.cli import main

    return main(["train", *words])


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


def _fork(fn: Callable[..., Any], rank: int, world_size: int, args: tuple[Any, ...], port: int, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
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
        code = 0
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
                raise AssertionError(_failure(rank, status, folder))
        if time.monotonic() > end:
            raise AssertionError(_hang(pids, folder, timeout_s))
        time.sleep(POLL_S)


def _failure(rank: int, status: int, folder: Path) -> str:
    errors = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime)
    first = errors[0] if errors else None
    if first is None:
        return f"rank {rank} ended with status {os.waitstatus_to_exitcode(status)}\n{_log(folder, rank)}"
    failed = int(first.stem)
    return f"rank {failed} failed\n{first.read_text()}\n{_log(folder, failed)}"


def _hang(pids: dict[int, int], folder: Path, timeout_s: float) -> str:
    for pid in pids.values():
        os.kill(pid, signal.SIGUSR1)
    time.sleep(STACK_S)
    stacks = "\n".join(f"--- rank {rank}\n{_log(folder, rank)}" for rank in pids)
    return f"ranks {sorted(pids)} did not end within {timeout_s:g} s\n{stacks}"


def _log(folder: Path, rank: int) -> str:
    path = folder / f"{rank}.log"
    return path.read_text(errors="replace")[-4000:] if path.exists() else ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return
