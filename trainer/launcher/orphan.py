"""A rank that outlives its launcher is asked to stop, because nobody else could ask it any more. No torch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import psutil

from trainer.launcher.start import CONSOLE_VARIABLE

WATCH = "launcher-watch"
"""Name of the thread that watches."""
NODE_SCRIPT_VARIABLE = "TRIDENT_NODE_SCRIPT"
"""Environment variable that launch/node.sh sets for its ranks."""
_SET_BY_LAUNCHERS = (
    *(CONSOLE_VARIABLE, NODE_SCRIPT_VARIABLE, "TORCHELASTIC_RUN_ID", "CROSS_SIZE"),
    *("SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
)
"""Variables of our command, our script, torchrun, the deepspeed launcher, srun, Open MPI, and MPICH, in this order."""
_INIT = 1
"""Process 1: in a container the rank may be its child from the start."""


def ask_to_stop() -> None:
    """Do to this process what a launcher that is asked to stop would have done."""
    os.kill(os.getpid(), signal.SIGTERM)


def watch_launcher(on_gone: Callable[[], None], poll_s: float = 1.0, launcher: int | None = None) -> threading.Event:
    """Start a daemon thread that calls `on_gone` once when a process that this rank belongs to is gone.

    Such processes are the one that started it, and the command above the launcher if the command starts its own ranks.
    torchrun and the deepspeed launcher die at once from a signal that they do not know, such as SIGUSR1, and from
    SIGKILL; and the launcher does not notice when the command is killed. Their ranks would train on without anybody to
    read their output. A rank that a person or a script started in the background has nobody who waits for it, and is
    not watched. Set the returned event to stop watching.

    Args:
        on_gone: called in the thread.
        poll_s: seconds between two looks.
        launcher: process that started this one; None: this process's parent.
    """
    stop = threading.Event()
    launcher = os.getppid() if launcher is None else launcher
    command = _command()

    def watch() -> None:
        while True:
            if (has_launcher and os.getppid() != launcher) or (command is not None and not _runs(command)):
                on_gone()
                return
            if stop.wait(poll_s):
                return

    has_launcher = launcher != _INIT and any(os.environ.get(name) for name in _SET_BY_LAUNCHERS)
    if has_launcher or command is not None:
        threading.Thread(target=watch, name=WATCH, daemon=True).start()
    return stop


_GONE = object()


def _command() -> object | None:
    """Return the command that started this run, if there is one: a process together with its start time."""
    pid = os.environ.get(CONSOLE_VARIABLE, "")
    try:
        return psutil.Process(int(pid)) if pid.isdecimal() else None
    except psutil.NoSuchProcess:
        return _GONE


def _runs(command: object) -> bool:
    try:
        # A killed process that nobody has waited for (a zombie) does not run.
        return isinstance(command, psutil.Process) and command.is_running() and command.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
