"""The units of a build done by several processes of a node, or by this one. No torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.config.schema import TridentConfig
from trainer.corpus.units import Unit
from trainer.data.build.job import encoder_of, items_of
from trainer.data.build.meter import Meter
from trainer.data.build.processes import Process, end_all, ready
from trainer.data.build.schedule import Schedule, Share
from trainer.data.build.spool import blocks
from trainer.data.build.unit_result import Facts
from trainer.data.build.work_folder import BEAT_S, WorkFolder
from trainer.data.build.worker import Done, Encode, Failed, Fed, Feed, Spooled, take
from trainer.machine import OomKills
from trainer.progress import current

_POLL_S = 0.5
_AHEAD = 2
"""Blocks that wait on the disk besides one for each worker."""


@dataclass(frozen=True)
class Build:
    """A build: what is made of which units, and where."""

    config: TridentConfig
    work: WorkFolder
    schedule: Schedule
    share: Share
    meter: Meter
    block_bytes: int


@dataclass(frozen=True)
class _Encoding:
    """The work of a process that encodes."""

    unit: Unit
    block: int = 0
    spool: Path | None = None


def build_here(build: Build, most_blocks: int | None = None) -> None:
    """Do units in this process until there is nothing left.

    Args:
        build: the build.
        most_blocks: number of blocks of a unit that cannot be divided that are done; None: all.

    Raises:
        DataError: the input cannot be read.
        OSError: the disk is full.
    """
    encoder = encoder_of(build.config, build.work, lambda _place: _beat(build))
    schedule, work = build.schedule, build.work
    while not schedule.is_over() and (unit := schedule.next()) is not None:
        task = schedule.task(unit)
        if not unit.is_fed:
            _note(build, unit, 0, encoder.encode(items_of(build.config, task), work.result(unit.number)))
            build.meter.note_size(unit.number, schedule.size(unit))
            continue
        count, done = 0, schedule.finished_blocks(unit)
        for block in blocks(items_of(build.config, task), build.block_bytes):
            if count == most_blocks:
                schedule.give_back(unit)
                return
            count += 1
            if block.number in done:
                take(block)
            else:
                _note(build, unit, block.number, encoder.encode(block, work.result(unit.number, block.number)))
            if schedule.is_over():
                return
        work.note_blocks(unit.number, count)
        schedule.note_blocks(unit, count)
        build.meter.note_size(unit.number, schedule.size(unit))


def _note(build: Build, unit: Unit, block: int, facts: Facts) -> None:
    build.schedule.note(unit, block, facts)
    build.meter.note(facts)
    schedule = build.schedule
    # What a signal, or a standstill, is told with.
    current().instruction = f"{len(schedule.units) - schedule.left} of {len(schedule.units)} units are done and stay"
    _beat(build)


def _beat(build: Build) -> None:
    current().beat()
    build.work.beat(build.share.node)
    build.meter.tell()


@dataclass
class _Feeder:
    """A process that reads the blocks of a unit."""

    process: Process
    unit: Unit | None = None


class Crew:
    """The processes of this node.

    Args:
        build: the build.
        workers: number of processes that encode. Others may read for them.
        is_done: returns whether somebody else has finished the shards meanwhile.
    """

    def __init__(self, build: Build, workers: int, is_done: Callable[[], bool]) -> None:
        self._build = build
        self._schedule = build.schedule
        self._workers = workers
        self._is_done = is_done
        self._encoders: list[Process] = []
        self._feeders: list[_Feeder] = []
        self._waiting: deque[_Encoding] = deque()
        self._next: Unit | None = None
        self._kills = OomKills()
        self._looked_at = time.monotonic()

    def run(self) -> None:
        """Do units until there is nothing left, also what other nodes have left, or the shards are there.

        Raises:
            DataError: the input cannot be read, or a process died.
            OutOfMemoryError: a process was ended for its memory.
            PeerLostError: a process stands still.
            OSError: the disk is full.
        """
        try:
            while not self._schedule.is_over():
                self._hand_out()
                self._listen()
                if self._build.share.others and self._is_over_elsewhere():
                    return
        finally:
            end_all([*self._encoders, *(feeder.process for feeder in self._feeders)])

    def _hand_out(self) -> None:
        for feeder in self._feeders:
            if feeder.unit is not None and feeder.process.work is None and len(self._waiting) < self._workers + _AHEAD:
                feeder.process.give(Feed(None), feeder.unit, feeder.process.place)
        while (place := self._free_place()) is not None:
            work = self._work()
            if work is None:
                return
            worker = place if isinstance(place, Process) else self._started()
            if worker not in self._encoders:
                self._encoders.append(worker)
            task = self._schedule.task(work.unit)
            worker.give(Encode(task, work.block, work.spool), work, task.told)

    def _free_place(self) -> Process | bool | None:
        """Return a process that waits, True if one may be started, or None."""
        waiting = next((one for one in self._encoders if one.work is None), None)
        return waiting or (True if len(self._encoders) < self._workers else None)

    def _work(self) -> _Encoding | None:
        """Return something to encode, or None; let units be read that cannot be divided."""
        while not self._waiting:
            unit = self._next or self._schedule.next()
            self._next = unit
            if unit is None or (unit.is_fed and not self._feed(unit)):
                return None
            self._next = None
            if not unit.is_fed:
                return _Encoding(unit)
        return self._waiting.popleft()

    def _feed(self, unit: Unit) -> bool:
        """Let a process read a unit; return False if no more may."""
        feeder = next((one for one in self._feeders if one.unit is None), None)
        if feeder is None:
            if len(self._feeders) == self._workers:
                return False
            feeder = _Feeder(self._started())
            self._feeders.append(feeder)
        task, schedule = self._schedule.task(unit), self._schedule
        feeder.unit = unit
        done, shared = schedule.finished_blocks(unit), schedule.blocks_of_others(unit)
        order = Feed(task, self._build.block_bytes, done, shared)
        feeder.process.give(order, unit, task.told)
        return True

    def _started(self) -> Process:
        return Process(self._build.config, self._build.work)

    def _listen(self) -> None:
        processes = [*self._encoders, *(feeder.process for feeder in self._feeders)]
        busy = [process for process in processes if process.work is not None]
        if not busy:
            time.sleep(_POLL_S)
        for process in ready(busy, _POLL_S) if busy else ():
            work = process.work
            message = process.answer(self._kills)
            if isinstance(message, Failed):
                raise message.error
            if isinstance(message, Done):
                self._encoded(work, message.facts)
            elif message is not None:
                self._fed(next(one for one in self._feeders if one.process is process), message)
            _beat(self._build)
        for process in busy:
            process.check(self._build.config.runtime.timeout_s)

    def _encoded(self, work: _Encoding, facts: Facts) -> None:
        _note(self._build, work.unit, work.block, facts)
        if work.spool is not None:
            with suppress(OSError):
                work.spool.unlink()
        else:
            self._build.meter.note_size(work.unit.number, self._schedule.size(work.unit))

    def _fed(self, feeder: _Feeder, message: object) -> None:
        unit = feeder.unit
        assert unit is not None, "it answers for the unit that it reads"
        if isinstance(message, Spooled):
            self._waiting.append(_Encoding(unit, message.block, message.path))
            self._build.meter.note_read(unit.number, message.read)
        elif isinstance(message, Fed):
            self._build.work.note_blocks(unit.number, message.blocks)
            self._schedule.note_blocks(unit, message.blocks)
            self._build.meter.note_size(unit.number, self._schedule.size(unit))
            feeder.unit = None

    def _is_over_elsewhere(self) -> bool:
        """Look, now and then, what other nodes have done; return whether the shards are there."""
        is_idle = not self._waiting and all(process.work is None for process in self._encoders)
        if time.monotonic() - self._looked_at < (_POLL_S if is_idle else BEAT_S):
            return False
        self._looked_at = time.monotonic()
        _beat(self._build)
        self._schedule.look()
        if is_idle:
            # While another node lives, it is not this one that stands still.
            current().beat()
            self._schedule.take_over()
        return self._is_done()
