"""The processes that tokenise, as their parent sees them. No torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from trainer.config.schema import TridentConfig
from trainer.data.build.work_folder import WorkFolder
from trainer.data.build.worker import At, Hello
from trainer.errors import DataError, OutOfMemoryError, PeerLostError, TridentError
from trainer.machine import OomKills, memory_limit

_PROGRAM = "import sys; sys.path[:] = {path!r}; from trainer.data.build.worker import main; main({handle}, {parent})"
_END_S = 10.0


class Process:
    """A worker.

    Args:
        config: the config that it works by.
        work: the folder that it works in.
    """

    def __init__(self, config: TridentConfig, work: WorkFolder) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            program = _PROGRAM.format(path=[os.path.abspath(p) for p in sys.path], handle=theirs.fileno(), parent=os.getpid())
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C reaches a whole group: this process alone ends its workers.
                process_group=0,
                # Each worker is one of several: they share the cores themselves.
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
            )
        self.connection = Connection(ours.detach())
        self.work: Any = None
        """Its work, as its owner calls it; None if it waits."""
        self.place = "its first unit"
        """The place that it was reading when it last said so."""
        self.moved_at = time.monotonic()
        self._send(Hello(config, work.path))

    def give(self, order: object, work: object, place: str) -> None:
        """Let it do something.

        Args:
            order: the message.
            work: what to call it.
            place: what it will read.
        """
        self.work, self.place, self.moved_at = work, place, time.monotonic()
        self._send(order)

    def _send(self, message: object) -> None:
        # Whoever waits for the answer sees that the process is gone.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def answer(self, kills: OomKills) -> object | None:
        """Return its answer, or None if it has only moved. To be called when the connection is ready.

        Raises:
            TridentError: it is gone.
        """
        try:
            message: object = self.connection.recv()
        except (EOFError, ConnectionResetError, OSError):
            raise self._gone(kills) from None
        self.moved_at = time.monotonic()
        if isinstance(message, At):
            self.place = message.place
            return None
        self.work = None
        return message

    def check(self, limit_s: float) -> None:
        """Check that it moves.

        Raises:
            PeerLostError: it has stood still for `limit_s` seconds.
        """
        if self.work is not None and time.monotonic() - self.moved_at > limit_s:
            raise PeerLostError(
                f"a process that tokenises must go on within {limit_s:g} s (runtime.timeout_s), but stands still while "
                f"reading {self.place}",
                hints=["if it takes that long here, raise runtime.timeout_s", "finished units are kept: start it again"],
            )

    def _gone(self, kills: OomKills) -> TridentError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        code = self._process.returncode
        how = f"with exit code {code}" if code is None or code >= 0 else f"by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL and kills.hint() is not None:
            limit = memory_limit()
            size = "" if limit is None else f" ({limit.limit_gib:.3g} GiB)"
            return OutOfMemoryError(
                f"processes that tokenise must fit into memory{size}, but the kernel ended one for want of it while it "
                f"read {self.place}; set data.workers to fewer",
                hints=["finished units are kept: the same command goes on"],
            )
        return DataError(
            f"a process that tokenises must not end before its work, but one was ended {how} while it read "
            f"{self.place}; start the same command again, which goes on",
            hints=["if it happens there again, leave that file out of data.files"],
        )

    def kill(self) -> None:
        """End it at once: a half file has no name yet."""
        self._process.kill()

    def close(self) -> None:
        """Wait until it has ended, and close the connection."""
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)


def ready(processes: Sequence[Process], timeout_s: float) -> list[Process]:
    """Return the processes that have something to say, waiting for one at most this long, in seconds."""
    by_connection = {process.connection: process for process in processes}
    return [by_connection[found] for found in wait(list(by_connection), timeout_s) if isinstance(found, Connection)]


def end_all(processes: Sequence[Process]) -> None:
    """End processes, whatever they do."""
    for process in processes:
        process.kill()
    for process in processes:
        process.close()
