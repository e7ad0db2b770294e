"""Start the ranks of a run through the deepspeed launcher, and supervise them to the end. No torch.

The parent stays outside the ranks' session, so that Ctrl-C reaches it alone: it asks the ranks to save and stop.
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import trainer
from trainer.errors import ConfigError, PeerLostError
from trainer.interruption import ASKED, GRACE_S, INTERRUPTED, exit_code_of, tell_end
from trainer.launcher.environment import VISIBLE_DEVICES_VARIABLE
from trainer.launcher.roster import Roster

CONSOLE_VARIABLE = "TRIDENT_CONSOLE_PID"
"""Variable with the process whose standard output rank 0 writes to; the launcher's own output goes to a log."""
SUPERVISED_VARIABLE = "TRIDENT_SUPERVISED"
"""Variable of ranks whose parent reports faults."""
LAUNCHER_LOG = "launcher.log"
POLL_S = 0.2
REPEAT_S = 1.0
"""Seconds in which terminals and process managers may deliver one request twice; a person who insists takes longer."""
_OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT, _TRIES = 15000, 50
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True)
class Outcome:
    """The end of the ranks."""

    exit_code: int
    lost_ranks: tuple[int, ...]
    stop_requested: bool


def free_port() -> int:
    """Return a TCP port that nobody listens on right now.

    If there is one, it is none of those that the system gives to connections by itself: it stays free until ranks meet.
    """
    ports = range(_LOWEST_PORT, _lowest_port_of_connections())
    for port in random.SystemRandom().sample(ports, min(_TRIES, len(ports))):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _lowest_port_of_connections() -> int:
    """Return the lowest port that connections get by themselves; 0 if nothing tells."""
    try:
        return int(_PORT_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def check_port(port: int) -> None:
    """Check that ranks can meet at a port of this machine.

    Raises:
        ConfigError: it is in use, or may not be opened.
    """
    with socket.socket() as probe:
        # Like torch, ignore connections that are closed and only wait to time out.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"launch.master_port must be a port that can be listened on, but {port} cannot ({error.strerror}); use "
                "another one, or null for a free one"
            ) from error


def launch_command(world_size: int, port: int, arguments: Sequence[str]) -> list[str]:
    """Return the deepspeed launcher's command line for `world_size` local ranks of `trident <arguments>`."""
    return [
        # What `deepspeed` starts on each machine. Its own part, to find machines, has nothing to do here, and takes as
        # long again to import torch; and a cluster's /job/hostfile would lead it to others.
        *(sys.executable, "-m", "deepspeed.launcher.launch"),
        *(f"--world_info={_world_info(world_size)}", "--master_addr=127.0.0.1", f"--master_port={port}"),
        *("--no_local_rank", "--module", "trainer", *arguments),
    ]


def _world_info(world_size: int) -> str:
    return base64.urlsafe_b64encode(json.dumps({"localhost": list(range(world_size))}).encode()).decode()


def run_ranks(
    world_size: int, arguments: Sequence[str], log_folder: Path, port: int | None = None, grace_s: float = 10.0
) -> Outcome:
    """Start the ranks, wait for them, and leave no process behind.

    SIGINT is handed to every rank; SIGTERM, SIGHUP and SIGUSR1 are handed on as SIGTERM. Ranks save at the end of their
    step and exit 75, or end at once if they have trained nothing. A second SIGINT or SIGTERM kills them. When a rank is
    lost, the others get `grace_s` seconds to end.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    roster = Roster(log_folder)
    roster.clear()
    # The handlers come first: a signal that arrives while the ranks are started must not leave them behind.
    with _StopSignals() as signals, (log_folder / LAUNCHER_LOG).open("ab") as log:
        process = subprocess.Popen(
            launch_command(world_size, port or free_port(), arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )
        return _Supervisor(process, roster, signals, grace_s).wait()


def _environment() -> dict[str, str]:
    environment = python_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    # The ranks have a launcher of their own; the variables of another one around this process would mislead them.
    for name in list(environment):
        if name in _OF_A_LAUNCHER or name.startswith("TORCHELASTIC_"):
            del environment[name]
    environment[CONSOLE_VARIABLE] = str(os.getpid())
    environment[SUPERVISED_VARIABLE] = "1"
    if "CUDA_VISIBLE_DEVICES" in environment:
        environment[VISIBLE_DEVICES_VARIABLE] = environment["CUDA_VISIBLE_DEVICES"]
    return environment


def python_environment() -> dict[str, str]:
    """Return the environment in which `python -m trainer` is this very package, wherever it is started."""
    environment = dict(os.environ)
    # `python -m trainer` would take a trainer.py of the user's folder before this package.
    environment["PYTHONSAFEPATH"] = "1"
    root = str(Path(trainer.__file__).resolve().parent.parent)
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        others = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{others}" if others else root
    return environment


class _StopSignals:
    """Signals that ask for an end are noted, while inside, instead of ending this process."""

    def __init__(self) -> None:
        self._first: dict[int, float] = {}
        self._before: dict[signal.Signals, object] = {}
        self.insisted = False
        """True if SIGINT or SIGTERM came a second time."""

    @property
    def requested(self) -> bool:
        """True if any of them came."""
        return bool(self._first)

    @property
    def first(self) -> int | None:
        """The signal that came first."""
        return next(iter(self._first), None)

    def __enter__(self) -> _StopSignals:
        for number in _STOP_SIGNALS:
            # Signals that nohup or a shell without job control ignores stay ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self._first.setdefault(number, now)
        if number in (signal.SIGINT, signal.SIGTERM) and now - first >= REPEAT_S:
            self.insisted = True


class _Supervisor:
    """Waits for the launcher and watches its ranks."""

    def __init__(self, process: subprocess.Popen[bytes], roster: Roster, signals: _StopSignals, grace_s: float) -> None:
        self._process = process
        self._roster = roster
        self._signals = signals
        self._grace_s = grace_s
        self._is_asked = False
        self._ended_by_user: int | None = None
        """Exit code, if the ranks were killed because the user insisted."""

    def wait(self) -> Outcome:
        """Return when the launcher and all ranks are gone."""
        try:
            lost = self._watch() or self._roster.lost()
            # A launcher that is killed leaves its ranks behind.
            broken = bool(lost or self._roster.present() or self._process.returncode < 0)
        finally:
            self._kill()
        if self._ended_by_user is not None:
            return Outcome(self._ended_by_user, (), True)
        told = self._roster.told_failure()
        if told is not None:
            if told in ASKED and self._signals.first is not None:
                tell_end(signal.Signals(self._signals.first).name)
            # Ranks that the launcher had to kill after that are not the cause.
            return Outcome(told, (), self._signals.requested)
        code = PeerLostError.exit_code if broken else self._process.returncode
        return Outcome(code, tuple(lost), self._signals.requested)

    def _watch(self) -> list[int]:
        """Return the ranks that were lost, when the launcher has ended or was killed."""
        lost: list[int] = []
        broken_at: float | None = None
        while self._process.poll() is None:
            time.sleep(POLL_S)
            self._obey()
            lost = lost or self._roster.lost()
            if broken_at is None and (lost or self._roster.told_failure() is not None):
                broken_at = time.monotonic()
            is_asked = self._is_asked and self._roster.told_failure() in ASKED
            grace_s = min(self._grace_s, GRACE_S) if is_asked else self._grace_s
            if broken_at is not None and time.monotonic() - broken_at > grace_s:
                self._kill()
        return lost

    def _obey(self) -> None:
        number = self._signals.first
        if self._signals.insisted:
            self._ended_by_user = INTERRUPTED
            self._kill()
        elif number is not None and not self._is_asked:
            self._is_asked = True
            ranks = self._roster.present()
            for pid in ranks.values():
                # The exit code of a rank that has trained nothing yet depends on who asks.
                _signal(pid, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            if not ranks:
                # Nothing is trained yet, so there is nothing to save.
                self._ended_by_user = exit_code_of(number)
                tell_end(signal.Signals(number).name)
                self._kill()

    def _kill(self) -> None:
        """SIGKILL the launcher's whole session."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
