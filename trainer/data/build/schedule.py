"""The order in which a node does units, until there is nothing left to do. No torch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.corpus.units import InputFile, Kind, Unit
from trainer.data.build.job import Task
from trainer.data.build.unit_result import Facts
from trainer.data.build.work_folder import WorkFolder


@dataclass(frozen=True)
class Share:
    """The share of one node among those that build the same shards at the same time."""

    node: int = 0
    nodes: int = 1

    @property
    def others(self) -> tuple[int, ...]:
        """The other nodes."""
        return tuple(node for node in range(self.nodes) if node != self.node)


ALONE = Share()


class Schedule:
    """The units of a build, and what is finished of them, by whomever.

    Args:
        units: all of them, in order.
        files: the input files.
        work: the folder of the results.
        share: this node's.
        limit: number of documents from the start that are needed; None: all.
    """

    def __init__(
        self, units: Sequence[Unit], files: Sequence[InputFile], work: WorkFolder, share: Share, limit: int | None
    ) -> None:
        self.units = units
        self._files = files
        self._work = work
        self._share = share
        self._limit = limit
        self._facts: dict[tuple[int, int], Facts] = {}
        self._prefix = (0, 0)
        self._in_prefix = 0
        self._is_open = False
        fed = [unit.number for unit in units if unit.is_fed]
        # With fewer such files than nodes, each node reads them all and encodes its share of their blocks.
        self._shares_blocks = len(fed) < share.nodes
        self._owners = {number: place % share.nodes for place, number in enumerate(fed)}
        self._spans = Counter(span.file for unit in units for span in unit.spans)
        self._open = {unit.number: unit for unit in units}
        self.look()
        self._own = deque(unit for unit in self._open.values() if self._is_own(unit))
        # From the end: whoever has them as its share does them from the start.
        self._rest = deque(unit for unit in reversed(self._open.values()) if not (self._is_own(unit) or unit.is_fed))
        self._taken: set[int] = set()

    def look(self) -> None:
        """Look what is finished on the disk."""
        self.done, self.blocks = self._work.finished()
        for unit in list(self._open.values()):
            self._settle(unit)

    def note(self, unit: Unit, block: int, facts: Facts) -> None:
        """Note that a unit, or a block of one, is finished."""
        self.done.add((unit.number, block))
        if self._limit is not None:
            self._facts[unit.number, block] = facts
        self._settle(unit)

    def note_blocks(self, unit: Unit, blocks: int) -> None:
        """Note how many blocks a unit has."""
        self.blocks[unit.number] = blocks
        self._taken.discard(unit.number)
        self._settle(unit)

    @property
    def left(self) -> int:
        """Number of units that are not finished."""
        return len(self._open)

    def is_finished(self, unit: Unit) -> bool:
        """Return whether a unit is done."""
        return unit.number not in self._open

    def is_over(self) -> bool:
        """Return whether all that is needed is finished."""
        return not self._open or self._has_enough()

    def next(self) -> Unit | None:
        """Return a unit that this node shall do now, and count it as taken; None if there is none at present."""
        for queue in (self._own, self._rest):
            while queue:
                unit = queue.popleft()
                if unit.number in self._open:
                    self._taken.add(unit.number)
                    return unit
        return None

    def give_back(self, unit: Unit) -> None:
        """Let a unit be the next one again: it is not done."""
        self._taken.discard(unit.number)
        self._own.appendleft(unit)

    def take_over(self) -> None:
        """Put the units into the queue that nodes which are lost have left."""
        if self._own or self._rest:
            return
        alive = {node for node in self._share.others if self._work.lives(node, self._share.node)}
        for number, unit in self._open.items():
            if number not in self._taken and not (unit.is_fed and self._waits_for(unit, alive)):
                self._own.append(unit)

    def blocks_of_others(self, unit: Unit) -> tuple[int, int] | None:
        """Return (nodes, this node) if nodes that live share a unit's blocks; None: all are this one's."""
        if not self._shares_blocks or not self._share.others:
            return None
        alive = any(self._work.lives(node, self._share.node) for node in self._share.others)
        return (self._share.nodes, self._share.node) if alive else None

    def finished_blocks(self, unit: Unit) -> frozenset[int]:
        """Return the blocks of a unit that are done."""
        return frozenset(block for number, block in self.done if number == unit.number)

    def task(self, unit: Unit) -> Task:
        """Return what a worker needs to do a unit."""
        return Task.of(unit, self._files)

    def size(self, unit: Unit) -> int | None:
        """Return the bytes of a unit as they are stored, about; None if they are not known."""
        total = 0
        for span in unit.spans:
            file = self._files[span.file]
            if file.size is None:
                return None
            if file.kind is Kind.parquet:
                total += file.size // self._spans[span.file]
            else:
                total += (file.size if span.end is None else span.end) - span.first
        return total

    def places(self) -> list[tuple[int, int]]:
        """Return the (unit, block) that are needed, in order, once it is over."""
        found: list[tuple[int, int]] = []
        for unit in self.units:
            block = 0
            while (unit.number, block) in self.done:
                found.append((unit.number, block))
                block += 1
            if unit.number in self._open:
                return found
        return found

    def _is_own(self, unit: Unit) -> bool:
        if not unit.is_fed:
            return unit.number % self._share.nodes == self._share.node
        return self._shares_blocks or self._owners[unit.number] == self._share.node

    def _waits_for(self, unit: Unit, alive: set[int]) -> bool:
        return bool(alive) if self._shares_blocks else self._owners[unit.number] in alive

    def _settle(self, unit: Unit) -> None:
        if unit.is_fed:
            count = self.blocks.get(unit.number)
            is_finished = count is not None and all((unit.number, block) in self.done for block in range(count))
        else:
            is_finished = (unit.number, 0) in self.done
        if is_finished:
            self._open.pop(unit.number, None)

    def _has_enough(self) -> bool:
        """Return whether the finished units from the start on have as many documents as are needed."""
        if self._limit is None:
            return False
        while self._in_prefix < self._limit or self._is_open:
            place, block = self._prefix
            if place == len(self.units):
                return False
            unit = self.units[place]
            if (unit.number, block) in self.done:
                facts = self._facts_of(unit.number, block)
                if facts is None:
                    return False
                self._in_prefix += facts.documents
                self._is_open = facts.is_open
                self._prefix = (place, block + 1) if unit.is_fed else (place + 1, 0)
            elif unit.is_fed and self.blocks.get(unit.number) == block:
                self._prefix = (place + 1, 0)
            else:
                return False
        return True

    def _facts_of(self, number: int, block: int) -> Facts | None:
        known = self._facts.get((number, block))
        if known is None:
            found = self._work.open_result(number, block)
            known = None if found is None else found.facts
        return known
