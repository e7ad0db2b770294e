"""The hosts of a hostfile: logged in to without a password, with the same Trident, the same clock. No torch."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from trainer.doctor.asking import Answer, ask
from trainer.doctor.finding import Check, Finding, fail, ok, skip, warn
from trainer.doctor.surroundings import Surroundings
from trainer.errors import ConfigError
from trainer.versions import source_digest

if TYPE_CHECKING:
    from trainer.launcher.hostfile import Node

_CONNECT_S = 8
_ANSWER_S = 25.0
_AT_ONCE = 128
_CLOCK_S = 2.0
"""Seconds that clocks may differ: logs and ages of files of several machines are compared."""
_PYTHON = (
    "import platform, trainer; from trainer.versions import source_digest; "
    "print(trainer.__version__, source_digest(), platform.python_version())"
)


def look_at_peers(around: Surroundings) -> Iterator[Finding]:
    """Log in to every host at once, as the launcher would."""
    if around.hostfile is None:
        yield skip("hosts", "no --hostfile: the run is on one machine")
        return
    from trainer.launcher.hostfile import master_address, read_hostfile

    nodes = read_hostfile(around.hostfile)
    master = master_address(nodes, around.hostfile)
    if shutil.which("ssh", path=around.environ.get("PATH")) is None:
        yield fail("hosts", "ssh is not on PATH, so no other host can be reached", "`apt-get install openssh-client`")
        return
    if shutil.which("pdsh", path=around.environ.get("PATH")) is None:
        yield warn(
            "pdsh",
            "is not on PATH; launch/ssh.sh starts the ranks of all hosts with it",
            "`apt-get install pdsh`, or run `launch/ssh.sh --no-ssh` on every host",
        )
    with _Listener(nodes, around) as port, ThreadPoolExecutor(min(len(nodes), _AT_ONCE)) as threads:
        found = threads.map(lambda node: list(_looked_at(node, master, port, around)), nodes)
        for one in found:
            yield from one


class _Listener:
    """Listens where the ranks of other hosts will look for rank 0, if that is this machine."""

    def __init__(self, nodes: Sequence[Node], around: Surroundings) -> None:
        self._socket: socket.socket | None = None
        from trainer.launcher.hostfile import own_place

        with suppress(ConfigError):
            if own_place(nodes, around.hostfile or "") == 0:
                self._socket = socket.socket()
        self._asked = around.config.launch.master_port or 0

    def __enter__(self) -> int | None:
        """Return the port, or None if this machine is not the first host, or the port is in use."""
        if self._socket is None:
            return None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("", self._asked))
            self._socket.listen(_AT_ONCE)
        except OSError:
            return None
        threading.Thread(target=self._answer, daemon=True).start()
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _answer(self) -> None:
        with suppress(OSError, AttributeError):
            while self._socket is not None:
                self._socket.accept()[0].close()


def _looked_at(node: Node, master: str, port: int | None, around: Surroundings) -> Iterator[Finding]:
    name = f"host {node.host}"
    began = time.time()
    answer = ask(_command(node, master, port, around), _ANSWER_S, around.environ)
    ended = time.time()
    told = dict(line.partition("=")[::2] for line in answer.out.splitlines() if line.startswith("doctor_"))
    if "doctor_now" not in told:
        found, fix = _unreached(node, answer, around)
        yield fail(name, found, fix)
        return
    problems = list(_problems(name, told, (began, ended), around, f"{master}:{port}" if port else ""))
    yield from problems
    if not problems:
        back = f", reaches {master}:{port}" if port else ""
        yield ok(name, f"answers in {ended - began:.1f} s, has the same Trident{back}")


def _command(node: Node, master: str, port: int | None, around: Surroundings) -> list[str]:
    """Return the command that lets a host tell its clock, its Trident and whether it reaches rank 0."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    python = f"env PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(os.path.dirname(root))} {shlex.quote(around.python)}"
    lines = [
        "echo doctor_now=$(date +%s.%N)",
        f"cd {shlex.quote(os.getcwd())} 2>/dev/null && echo doctor_folder=yes",
        f'echo doctor_trident="$({python} -c {shlex.quote(_PYTHON)} 2>&1 | tail -n 1)"',
    ]
    if port is not None:
        reach = f"exec 3<>/dev/tcp/{master}/{port}"
        lines.append(f"timeout {_CONNECT_S} bash -c {shlex.quote(reach)} 2>/dev/null && echo doctor_back=yes")
    words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}", "-o", "LogLevel=ERROR"]
    words += ["-p", str(around.ssh_port)] if around.ssh_port is not None else []
    return [*words, node.host, "; ".join(lines) + "; true"]


def _unreached(node: Node, answer: Answer, around: Surroundings) -> tuple[str, str]:
    """Return why a host could not be logged in to, and what mends it."""
    text, port = answer.err, f"-p {around.ssh_port} " if around.ssh_port is not None else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = answer.problem or (lines[-1] if lines else answer.told)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text:
        return (
            "its host key is not the one that was known: another machine has its address, or it was installed anew",
            f"if that is so, `ssh-keygen -R {node.address}`, then accept the new key: `ssh {port}{node.host} true`",
        )
    fixes = {
        "Host key verification failed": f"look at its host key and accept it: `ssh {port}{node.host} true`",
        "Permission denied": f"let it know your key: `ssh-copy-id {port}{node.host}` (without one: `ssh-keygen` first)",
        "Could not resolve hostname": f"add it to /etc/hosts, or write its address into {around.hostfile}",
        "Connection refused": "start its ssh server (`systemctl start ssh`), or give the right --ssh-port",
        "command not found": "let its user have a login shell such as bash",
    }
    hint = next((fix for words, fix in fixes.items() if words in text), None)
    if hint is None:
        hint = f"see that it runs and that no firewall is between: `ssh {port}{node.host} true`; or take its line out"
    return f"cannot be logged in to: {told}", hint


def _problems(
    name: str, told: dict[str, str], span: tuple[float, float], around: Surroundings, back: str
) -> Iterator[Finding]:
    from trainer import __version__

    own = f"{__version__} {source_digest()}"
    there = told.get("doctor_trident", "")
    version = there.rpartition(" ")[0]
    if len(there.split()) != 3:
        yield fail(
            name,
            f"has no Trident at {around.python}: {there or 'it did not answer'}",
            "install it there in the same place, or use a folder that all hosts share",
        )
    elif version != own:
        yield fail(name, f"has Trident {version}, but this host has {own}", "install the same one on all hosts")
    if "doctor_folder" not in told:
        yield fail(
            name,
            f"has no folder {os.getcwd()}, where its ranks would be started",
            f"`mkdir -p {shlex.quote(os.getcwd())}` there, or start in a folder that all hosts share",
        )
    if back and "doctor_back" not in told:
        yield fail(
            name,
            f"cannot reach {back}, where ranks would meet",
            "open the port in the firewall, or name the first host by an address that the others reach",
        )
    with suppress(ValueError):
        now, (began, ended) = float(told["doctor_now"]), span
        apart = now - ended if now > ended else min(now - began, 0.0)
        if abs(apart) > _CLOCK_S:
            yield warn(name, f"its clock is {apart:+.0f} s from this one's", "`timedatectl set-ntp true` on all hosts")


CHECKS = (Check("hosts", "network", look_at_peers, 300.0),)
"""Checks of this file."""
