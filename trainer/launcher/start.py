"""Start the ranks of a run through the deepspeed launcher, and see them through to the end. No torch.

The parent stays outside the ranks' session, so that Ctrl-C reaches it alone: it asks the ranks to save and stop.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from trainer.errors import PeerLostError
from trainer.launcher.roster import Roster

CONSOLE_VARIABLE = "TRIDENT_CONSOLE_PID"
"""Process whose standard output rank 0 writes to; the launcher's own output goes to a log."""
SUPERVISED_VARIABLE = "TRIDENT_SUPERVISED"
"""Set for ranks whose parent reports what went wrong."""


@dataclass(frozen=True)
class Outcome:
    """How the ranks ended."""

    exit_code: int
    lost_ranks: tuple[int, ...]
    stop_requested: bool


def free_port() -> int:
    """Return a TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch_command(world_size: int, port: int, arguments: Sequence[str]) -> list[str]:
    """Return the deepspeed launcher's command line for `world_size` local ranks of `trident <arguments>`."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner"),
        *("--no_local_rank", "--num_gpus", str(world_size), "--master_port", str(port)),
        *("--module", "trainer", *arguments),
    ]


def run_ranks(
    world_size: int, arguments: Sequence[str], log_folder: Path, port: int | None = None, grace_s: float = 10.0
) -> Outcome:
    """Start the ranks, wait for them, and leave no process behind.

    SIGINT and SIGTERM are handed to every rank as SIGTERM: they save at the end of their step and exit 75. A second
    one kills them. When a rank is lost, the others get `grace_s` seconds to end.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    roster = Roster(log_folder)
    roster.clear()
    venv_bin = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{venv_bin}{os.pathsep}{os.environ.get('PATH', '')}",
        CONSOLE_VARIABLE: str(os.getpid()),
        SUPERVISED_VARIABLE: "1",
    }
    with (log_folder / "launcher.log").open("ab") as log:
        process = subprocess.Popen(
            launch_command(world_size, port or free_port(), arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        supervisor = _Supervisor(process, roster, grace_s)
        with _ForwardedSignals(supervisor):
            return supervisor.wait()


class _Supervisor:
    """Waits for the launcher and watches its ranks."""

    def __init__(self, process: subprocess.Popen[bytes], roster: Roster, grace_s: float) -> None:
        self._process = process
        self._roster = roster
        self._grace_s = grace_s
        self.stop_requests = 0

    def request_stop(self) -> None:
        """Ask every rank to save and stop; the second time, kill everything."""
        self.stop_requests += 1
        if self.stop_requests > 1:
            self.kill()
            return
        ranks = self._roster.present()
        for pid in ranks.values():
            _signal(pid, signal.SIGTERM)
        if not ranks:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the launcher's whole session."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def wait(self) -> Outcome:
        """Return when the launcher and all ranks are gone."""
        lost: list[int] = []
        lost_at = 0.0
        while self._process.poll() is None:
            time.sleep(0.2)
            if not lost:
                lost = self._roster.lost()
                lost_at = time.monotonic()
            elif time.monotonic() - lost_at > self._grace_s:
                self.kill()
        lost = lost or self._roster.lost()
        self.kill()
        code = self._process.returncode
        if lost or code < 0:
            code = PeerLostError.exit_code
        return Outcome(code, tuple(lost), self.stop_requests > 0)


class _ForwardedSignals:
    """While inside, SIGINT and SIGTERM go to the ranks instead of ending this process."""

    def __init__(self, supervisor: _Supervisor) -> None:
        self._supervisor = supervisor
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> None:
        def handle(signum: int, frame: FrameType | None) -> None:
            self._supervisor.request_stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, handle)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
