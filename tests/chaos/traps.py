"""What goes wrong in a rank, and where: a kill, or a refusal of the operating system, at one event on the disk.

Events are what the interpreter tells an audit hook (open, mkdir, rename, remove, ...), and `os.fsync` and safetensors'
writing, which tell nothing and are wrapped. The product knows nothing of it. A trap is set in a forked rank only: an
audit hook cannot be taken out again.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import resource
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILL = 0
"""Instead of an error number."""
_AUDITED = {
    "open": "open",
    "os.mkdir": "mkdir",
    "os.rename": "rename",
    "os.remove": "remove",
    "os.rmdir": "rmdir",
    "os.truncate": "truncate",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STEP, _PROCESS = re.compile(r"step_[0-9]+"), re.compile(r"\.[0-9]+\.tmp\b")
TENSORS = ".safetensors"


@dataclass(frozen=True, order=True)
class Event:
    """What a rank is about to do to a path, which is given relative to the run's folder.

    Steps and process ids in the name are left out: `checkpoints/.step_N.partial/.manifest.json.P.tmp`.
    """

    rank: int
    what: str
    """read | write | fsync | mkdir | rename | remove | rmdir | truncate."""
    name: str

    def __str__(self) -> str:
        return f"rank {self.rank} {self.what} {self.name}"


@dataclass(frozen=True)
class Trap:
    """At the `number`-th time that its rank comes to an event, `action` happens: KILL, or an errno is raised.

    With a share, a write is done up to that share of its `size_bytes` first; KILL and EFBIG then also hold for every
    other file that grows as large.
    """

    event: Event
    number: int = 1
    share: float | None = None
    size_bytes: int = 0
    action: int = KILL
    in_place: bool = False
    """A file of tensors grows under its own name, as older versions of safetensors write it."""

    def __str__(self) -> str:
        what = "killed" if self.action == KILL else errno.errorcode[self.action]
        where = "before" if self.share is None else f"after {self.limit} of {self.size_bytes} bytes of"
        return f"{what} {where} number {self.number} of [{self.event}]{' in place' * self.in_place}"

    @property
    def limit(self) -> int:
        """Return how many bytes are written; always less than all of them."""
        return int((self.share or 0.0) * max(0, self.size_bytes - 1))


def event_name(root: str, path: str) -> str | None:
    """Return a path's name in events, or None outside of the root."""
    if not path.startswith(f"{root}/"):
        return None
    return _PROCESS.sub(".P.tmp", _STEP.sub("step_N", path[len(root) + 1 :]))


class Traps:
    """The traps of this rank, and the record of its events. Made in a forked rank, once.

    Args:
        rank: this rank.
        run_dir: events elsewhere are not looked at.
        traps: of all ranks.
        record: a file outside of the run's folder to which events go, a line `what size name` each.
        sprung: a file outside of it that is made when a trap goes off, holding its text.
    """

    def __init__(self, rank: int, run_dir: Path, traps: Sequence[Trap], record: Path, sprung: Path) -> None:
        self._rank = rank
        self._root = str(run_dir)
        self._traps = [trap for trap in traps if trap.event.rank == rank]
        self._sprung = sprung
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._seen: Counter[Event] = Counter()
        self._inside = threading.local()
        if any(trap.action == KILL for trap in self._traps):
            # The kernel's signal to a process whose file has reached its limit, which Python ignores: the kill.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._audit)
        self._wrap_fsync()
        self._wrap_safetensors()

    def _audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        what = _AUDITED.get(name)
        if what is None or getattr(self._inside, "yes", False):
            return
        path, more = arguments[0], arguments[1:]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        self._inside.yes = True
        try:
            if what == "open":
                what = "write" if more[1] & _WRITES else "read"
            if what in ("mkdir", "remove", "rmdir") and more[-1] != -1:
                path = os.path.join(os.readlink(f"/proc/self/fd/{more[-1]}"), os.fsdecode(path))
            self._meet(what, os.path.abspath(os.fsdecode(path)))
        finally:
            self._inside.yes = False

    def _wrap_fsync(self) -> None:
        fsync = os.fsync

        def wrapped(handle: Any) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            self._meet("fsync", os.readlink(f"/proc/self/fd/{number}"))
            fsync(handle)

        setattr(os, "fsync", wrapped)  # noqa: B010 - to the type checker it is a function, not a variable

    def _wrap_safetensors(self) -> None:
        library: Any = importlib.import_module("safetensors.torch")
        serialize = library.serialize_file

        def wrapped(tensors: Any, filename: Any, metadata: Any = None) -> None:
            trap = self._meet("write", os.path.abspath(filename))
            if trap is not None:
                with tempfile.TemporaryDirectory() as elsewhere:
                    serialize(tensors, f"{elsewhere}/whole", metadata=metadata)
                    whole = Path(elsewhere, "whole").read_bytes()
                self._write_a_part(Path(filename), whole, trap)
            serialize(tensors, filename, metadata=metadata)

        library.serialize_file = wrapped

    def _meet(self, what: str, path: str) -> Trap | None:
        """Come to an event. Returns a trap whose write of tensors the caller must break off."""
        name = event_name(self._root, path)
        if name is None:
            return None
        event = Event(self._rank, what, name)
        try:
            size = os.stat(path).st_size
        except OSError:
            size = 0
        # The limit of a trap that went off holds for the record as well.
        with suppress(OSError):
            os.write(self._record, f"{what} {size} {name}\n".encode())
        self._seen[event] += 1
        for trap in self._traps:
            if trap.event != event or trap.number != self._seen[event]:
                continue
            if trap.share is None:
                self._spring(trap)
            elif name.endswith(TENSORS) and trap.action != errno.EFBIG:
                return trap
            else:
                # The kernel does the rest, when the file comes to that size: a signal, which is fatal or ignored.
                self._tell(trap)
                resource.setrlimit(resource.RLIMIT_FSIZE, (trap.limit, resource.RLIM_INFINITY))
        return None

    def _write_a_part(self, path: Path, whole: bytes, trap: Trap) -> None:
        """Leave what safetensors leaves when it is killed after some bytes, and be killed."""
        limit = int((trap.share or 0.0) * (len(whole) - 1))
        self._inside.yes = True
        if trap.in_place or trap.action != KILL:
            path.write_bytes(whole[:limit])
        else:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp", delete=False) as file:
                file.truncate(len(whole))
                file.write(whole[:limit])
        self._inside.yes = False
        self._spring(trap, in_tensors=True)

    def _tell(self, trap: Trap) -> None:
        handle = os.open(self._sprung, os.O_WRONLY | os.O_CREAT)
        os.write(handle, str(trap).encode())
        os.close(handle)

    def _spring(self, trap: Trap, in_tensors: bool = False) -> None:
        self._inside.yes = True
        self._tell(trap)
        if trap.action == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        self._inside.yes = False
        if in_tensors:
            from safetensors import SafetensorError

            raise SafetensorError(
                f"Error while serializing: I/O error: {os.strerror(trap.action)} (os error {trap.action})"
            )
        raise OSError(trap.action, os.strerror(trap.action))


def read_record(record: Path, rank: int) -> list[tuple[Event, int]]:
    """Return a rank's events in order, each with the size that the path had then (0: not there)."""
    lines = [line.split(" ", 2) for line in record.read_text().splitlines()]
    return [(Event(rank, what, name), int(size)) for what, size, name in lines]
