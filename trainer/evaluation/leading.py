"""Ranks of which one knows what is to be done, and all do it: nobody else needs data, tasks or their libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from trainer.errors import TridentError, first_line
from trainer.topology.agreement import gather
from trainer.topology.groups import Group

T = TypeVar("T")
_ASKS, _ENDS, _FAILS = "asks", "ends", "fails"


class Lead:
    """Rank 0 leads the ranks of a group, the others follow.

    Args:
        control: the ranks, on the host.
        work: does a job; called on every rank with the same job. Collective over whatever it needs.
    """

    def __init__(self, control: Group, work: Callable[[Any], Any]) -> None:
        self._control, self._work = control, work
        self.is_at_work = False
        """True while a job is under way, and after one that failed."""

    def run(self, action: Callable[[], T]) -> T | None:
        """Run `action` on rank 0, which may `ask`; the others do what it asks for, and return None. Collective.

        Raises:
            TridentError: the action failed; the same on every rank.
        """
        if self._control.rank != 0:
            self._follow()
            return None
        try:
            result = action()
        except Exception as error:
            # In the middle of a job the others wait elsewhere; they end with this rank.
            if not self.is_at_work:
                gather(self._control, (_FAILS, _portable(error)))
            raise
        gather(self._control, (_ENDS, None))
        return result

    def ask(self, job: object) -> Any:
        """Let all ranks do a job, and return this rank's result. On rank 0, inside `run`."""
        gather(self._control, (_ASKS, job))
        self.is_at_work = True
        result = self._work(job)
        self.is_at_work = False
        return result

    def _follow(self) -> None:
        while True:
            nothing: tuple[str, object] = ("", None)
            order, value = gather(self._control, nothing)[0]
            if order == _ENDS:
                return
            if order == _FAILS and isinstance(value, TridentError):
                raise value
            self._work(value)


def _portable(error: Exception) -> TridentError:
    if isinstance(error, TridentError):
        return error
    return TridentError(f"rank 0 failed: {type(error).__name__}: {first_line(error)}")
