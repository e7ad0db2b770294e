"""A process that encodes units, or reads the blocks of one that cannot be divided, as its parent says. No torch.

It is started as a program of its own and not forked: its parent may have threads and a device.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from trainer.config.schema import TridentConfig
from trainer.corpus.document import BadDocument
from trainer.data.build.job import Encoder, Task, encoder_of, items_of
from trainer.data.build.spool import Block, blocks, read_block, write_block
from trainer.data.build.unit_result import Facts
from trainer.data.build.work_folder import WorkFolder
from trainer.errors import TridentError
from trainer.garbage import look_seldom

_ORPHANED = 1
_LOOK_S = 0.5
_TELL_S = 0.1
"""Seconds between two messages about the place that is read."""


@dataclass(frozen=True)
class Hello:
    """The first message to a worker."""

    config: TridentConfig
    work: Path


@dataclass(frozen=True)
class Encode:
    """A message to a worker: encode a unit, or a block of one that waits in `spool`."""

    task: Task
    block: int = 0
    spool: Path | None = None


@dataclass(frozen=True)
class Feed:
    """A message to a worker: read the next block of a unit that others will encode."""

    task: Task | None
    """The unit, at its first block; None to go on."""
    block_bytes: int = 0
    """Size of a block, about, in bytes of text."""
    done: frozenset[int] = frozenset()
    """Blocks that are encoded already."""
    shared: tuple[int, int] | None = None
    """Number of nodes that share the blocks, and this one's place; None: all blocks are this node's."""

    def asks_for(self, block: int) -> bool:
        """Return whether a block is to be encoded on this node."""
        return block not in self.done and (self.shared is None or block % self.shared[0] == self.shared[1])


@dataclass(frozen=True)
class At:
    """A message of a worker: a part of the work is done."""

    place: str


@dataclass(frozen=True)
class Done:
    """A message of a worker: a unit or block is encoded."""

    facts: Facts


@dataclass(frozen=True)
class Spooled:
    """A message of a worker: a block waits."""

    block: int
    path: Path
    read: int | None
    """Bytes of the file that were read so far, as they are stored; None if that is not known."""


@dataclass(frozen=True)
class Fed:
    """A message of a worker: the unit has no further block."""

    blocks: int


@dataclass(frozen=True)
class Failed:
    """A message of a worker: its work has ended with an error."""

    error: Exception


class Worker:
    """The work of the process.

    Args:
        parent: the connection to the parent.
    """

    def __init__(self, parent: Connection) -> None:
        self._parent = parent
        hello: Hello = parent.recv()
        self._config = hello.config
        self._work = WorkFolder(hello.work)
        self._encoder: Encoder | None = None
        self._blocks: Iterator[Block] = iter(())
        self._feed_order = Feed(None)
        self._count = 0
        self._told_at = 0.0

    def run(self) -> None:
        """Do what the parent says, until it closes the connection."""
        while True:
            try:
                order = self._parent.recv()
            except EOFError:
                return
            answer: Done | Spooled | Fed | Failed
            try:
                answer = self._encode(order) if isinstance(order, Encode) else self._feed(order)
            except (TridentError, OSError) as error:
                answer = Failed(error)
            except Exception:
                answer = Failed(RuntimeError(f"a process that tokenises failed\n{traceback.format_exc()}"))
            self._parent.send(answer)

    def _encode(self, order: Encode) -> Done:
        if self._encoder is None:
            self._encoder = encoder_of(self._config, self._work, self._tell)
        items = items_of(self._config, order.task) if order.spool is None else read_block(order.spool)
        return Done(self._encoder.encode(items, self._work.result(order.task.unit.number, order.block)))

    def _feed(self, order: Feed) -> Spooled | Fed:
        if order.task is not None:
            self._blocks, self._count = blocks(items_of(self._config, order.task), order.block_bytes), 0
            self._feed_order = order
        fed = self._feed_order.task
        assert fed is not None, "a unit is named first"
        for block in self._blocks:
            self._count = block.number + 1
            if self._feed_order.asks_for(block.number):
                path = self._work.spool(fed.unit.number, block.number)
                write_block(block, path)
                return Spooled(block.number, path, read_so_far(fed.files[0].path))
            take(block)
            self._tell(f"{fed.told} (block {self._count})")
        return Fed(self._count)

    def _tell(self, place: str) -> None:
        if time.monotonic() - self._told_at >= _TELL_S:
            self._told_at = time.monotonic()
            self._parent.send(At(place))


def read_so_far(path: str, own: Path = Path("/proc/self")) -> int | None:
    """Return the position in a file that this process has open; None if it has not, or the system does not tell.

    Args:
        path: the file.
        own: the folder in which the system tells about this process.
    """
    with suppress(OSError):
        for link in (own / "fd").iterdir():
            with suppress(OSError):
                if os.readlink(link) == path:
                    told = (own / "fdinfo" / link.name).read_text().split()
                    return int(told[told.index("pos:") + 1])
    return None


def take(block: Block) -> None:
    """Read a block to its end, since the next one comes behind it. Its faults are told by whoever encodes it."""
    for item in block:
        with suppress(BadDocument):
            for _ in getattr(item, "chunks", ()):
                pass


def main(handle: int, parent: int) -> None:
    """Run the process.

    Args:
        handle: file descriptor of the connection to the parent.
        parent: the parent's process id.
    """
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    look_seldom()
    try:
        Worker(Connection(handle)).run()
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(_ORPHANED)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, whatever it does."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(_ORPHANED)
