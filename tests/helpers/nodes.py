"""Machines without a cluster: network namespaces on one switch, each with its own host name, processes and address.

A node's first process is the node's power: when it is killed, the kernel ends every process of that node at once.
Where namespaces may not be made, nodes are addresses of the loopback device and share this machine's name.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from tests.helpers.command import Running

_READY_S = 20.0
_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""What a test starts ends with it, even when the test is killed."""


@dataclass
class _Holder:
    """A process that keeps namespaces alive."""

    outside: subprocess.Popen[bytes]
    pid: int
    """Of the first process inside, as seen from here."""

    def end(self) -> None:
        """End it and everything inside."""
        for pid in {self.pid, self.outside.pid}:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self.outside.wait()


def can_make_namespaces() -> bool:
    """Return whether this user may make network namespaces with devices between them."""
    if os.geteuid() != 0:
        return False
    trial = [*_WITH_PARENT, "unshare", "--net", "--uts", "--mount", "--pid", "--fork", "sh", "-c"]
    try:
        done = subprocess.run(
            [*trial, "ip link add name br0 type bridge && ip link add va type veth peer name vb && hostname trial"],
            capture_output=True,
            timeout=_READY_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _hold(options: Sequence[str], setup: str) -> _Holder:
    """Start `unshare` with these options, run `setup` inside, and keep what it made."""
    script = f"set -e; {setup}\necho ready; exec sleep infinity"
    outside = subprocess.Popen(
        [*_WITH_PARENT, "unshare", *options, "sh", "-c", script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert outside.stdout is not None
    if outside.stdout.readline() != b"ready\n":
        outside.kill()
        raise AssertionError(f"namespaces must be made, but `unshare {' '.join(options)}` ended early")
    children = psutil.Process(outside.pid).children()
    return _Holder(outside, children[0].pid if "--fork" in options else outside.pid)


def _ip(holder: _Holder, *words: str) -> None:
    subprocess.run(["nsenter", "-t", str(holder.pid), "-n", "ip", *words], check=True, timeout=_READY_S)


class Nodes(Protocol):
    """Two or more machines on one network. Leaving the `with` block ends everything in them."""

    are_machines: bool
    """Whether each has its own name, processes and network."""

    def __enter__(self) -> Nodes: ...

    def __exit__(self, *_: object) -> None: ...

    def name(self, index: int) -> str:
        """Return what the others call a node."""

    def on(self, index: int, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` on a node."""

    def power_off(self, index: int, running: Running) -> None:
        """End every process of a node at once, `running` among them."""

    def power_on(self, index: int) -> None:
        """Start a node that is off, or the machine that takes its place."""


class LoopbackNodes:
    """Nodes that are groups of processes of this machine, where no namespaces can be made."""

    are_machines = False

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> LoopbackNodes:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def name(self, index: int) -> str:
        """Return an address of the loopback device."""
        return f"127.0.0.{index + 1}"

    def on(self, index: int, command: Sequence[str]) -> list[str]:
        """Return the command as it is."""
        return list(command)

    def power_off(self, index: int, running: Running) -> None:
        """Kill what was started on the node."""
        running.process.kill()
        for process in running.left_behind():
            process.kill()

    def power_on(self, index: int) -> None:
        """Do nothing: this machine is on."""


class NamespaceNodes:
    """Machines `node-0`, `node-1`, ... in namespaces.

    Args:
        folder: for the machines' host lists.
        count: how many.
    """

    are_machines = True

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._switch: _Holder | None = None
        self._running: dict[int, _Holder] = {}

    def __enter__(self) -> NamespaceNodes:
        self._switch = _hold(["--net"], "ip link add name br0 type bridge; ip link set br0 up")
        for index in range(self._count):
            self.power_on(index)
        return self

    def __exit__(self, *_: object) -> None:
        for index in list(self._running):
            self._end(index)
        if self._switch is not None:
            self._switch.end()

    @staticmethod
    def name(index: int) -> str:
        """Return the host name of a node."""
        return f"node-{index}"

    def power_on(self, index: int) -> None:
        """Start a machine, or the one that takes its place."""
        assert self._switch is not None
        hosts = self._folder / f"hosts.{index}"
        # As Debian writes it: a machine's own name leads to the loopback device.
        names = [f"{_address(other)} node-{other}" for other in range(self._count) if other != index]
        hosts.write_text("\n".join(["127.0.0.1 localhost", f"127.0.1.1 node-{index}", *names, ""]))
        node = _hold(
            ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"],
            f"hostname node-{index}; mount --bind '{hosts}' /etc/hosts; ip link set lo up",
        )
        self._running[index] = node
        port, mac = f"port{index}", f"02:00:00:00:00:{index + 1:02x}"
        ends = ["type", "veth", "peer", "name", "eth0", "address", mac, "netns", str(node.pid)]
        _ip(self._switch, "link", "add", "name", port, *ends)
        _ip(self._switch, "link", "set", port, "master", "br0", "up")
        _ip(node, "address", "add", f"{_address(index)}/24", "dev", "eth0")
        _ip(node, "link", "set", "eth0", "up")

    def power_off(self, index: int, running: Running) -> None:
        """Kill the machine's first process, and with it all."""
        self._end(index)
        running.process.wait(_READY_S)

    def _end(self, index: int) -> None:
        node = self._running.pop(index)
        inside = [process for process in psutil.process_iter() if _is_in(process, node.pid)]
        node.end()
        psutil.wait_procs(inside, timeout=_READY_S)
        # Its end of the cable goes with the namespace, a moment later; a new one needs the name of the port.
        end = time.monotonic() + _READY_S
        while self._has_port(index):
            assert time.monotonic() < end, f"the network of node {index} must go with it"
            time.sleep(0.05)

    def _has_port(self, index: int) -> bool:
        assert self._switch is not None
        command = ["nsenter", "-t", str(self._switch.pid), "-n", "ip", "link", "show", f"port{index}"]
        return subprocess.run(command, capture_output=True, timeout=_READY_S, check=False).returncode == 0

    def on(self, index: int, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` on a machine."""
        return ["nsenter", "-t", str(self._running[index].pid), "-a", f"--wdns={os.getcwd()}", *command]


def _address(index: int) -> str:
    return f"10.77.0.{index + 1}"


def _is_in(process: psutil.Process, pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{process.pid}/ns/pid") == os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return False
