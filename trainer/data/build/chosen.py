"""The results of all units in order, and the documents of them that stay: the first ones, and no copies. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.build.duplicates import Duplicates
from trainer.data.build.unit_result import BEGINS, CONTINUES, OPEN, UnitResult
from trainer.data.build.work_folder import WorkFolder

Places = Sequence[tuple[int, int]]
"""(unit, block) of the results, in order."""


class DamagedUnit(Exception):
    """The results of a unit are not whole, and were removed: it must be done again."""


@dataclass(frozen=True)
class Chosen:
    """The results of a unit, and what of them stays."""

    result: UnitResult
    keep: npt.NDArray[np.bool_]
    """True for each piece that stays."""
    documents: int
    """Documents that begin here and are needed, copies among them."""
    duplicates: int
    """Copies among them."""


def chosen(work: WorkFolder, places: Places, limit: int | None, seen: Duplicates | None) -> Iterator[Chosen]:
    """Yield the results of all units, with what of them stays.

    Args:
        work: the folder of the results.
        places: the results.
        limit: number of documents from the start that are needed; None: all.
        seen: knows the copies; None: they stay.

    Raises:
        DamagedUnit: a result is not whole.
    """
    before, was_open = 0, False
    for number, block in places:
        result = opened(work, number, block)
        flags = result.flags()
        begins = _begins(flags, was_open)
        # A piece's document, counted from 1 over all units; one that goes on from the unit before has the number of that.
        document = before + np.cumsum(begins)
        keep = np.ones(len(flags), np.bool_)
        begun = document[begins]
        if limit is not None:
            keep &= document <= limit
            begun = begun[begun <= limit]
        copies = 0
        if seen is not None:
            keep &= ~seen.are_copies(document)
            copies = int(seen.are_copies(begun).sum())
        yield Chosen(result, keep, len(begun), copies)
        before, was_open = int(document[-1]) if len(document) else before, _goes_on(flags)
        if limit is not None and before >= limit and not was_open:
            return


def opened(work: WorkFolder, number: int, block: int) -> UnitResult:
    """Return the results of a unit.

    Raises:
        DamagedUnit: they are not whole.
    """
    result = work.open_result(number, block)
    if result is None:
        raise DamagedUnit
    return result


def find_duplicates(work: WorkFolder, places: Places, folder: Path) -> Duplicates:
    """Return which documents are copies of earlier ones.

    Args:
        work: the folder of the results.
        places: the results.
        folder: an existing folder for what does not fit into memory.

    Raises:
        DamagedUnit: a result is not whole.
        OSError: the disk is full.
    """
    found = Duplicates(folder)
    before, was_open = 0, False
    for number, block in places:
        result = opened(work, number, block)
        flags, hashes = result.flags(), result.hashes()
        document = before + np.cumsum(_begins(flags, was_open))
        before, was_open = int(document[-1]) if len(document) else before, _goes_on(flags)
        found.add(document[(flags & (BEGINS | CONTINUES)) > 0], hashes, was_open)
    found.finish()
    return found


def _begins(flags: npt.NDArray[np.uint8], was_open: bool) -> npt.NDArray[np.bool_]:
    """Return which pieces begin a document; one that goes on with something that was skipped is one of its own."""
    begins = (flags & BEGINS) > 0
    if len(flags) and not was_open:
        begins[0] = True
    return begins


def _goes_on(flags: npt.NDArray[np.uint8]) -> bool:
    return bool(len(flags)) and bool(flags[-1] & OPEN)
