"""The part of a rank by which a failure ends the whole run soon and is reported once. No torch."""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from trainer.errors import Interrupted, OutOfMemoryError, PeerLostError, TridentError
from trainer.files import storage_faults
from trainer.interruption import ASKED, INTERRUPTED, tell_end
from trainer.launcher.output import tail
from trainer.launcher.roster import Roster, watch_peers
from trainer.launcher.start import SUPERVISED_VARIABLE
from trainer.launcher.watchdog import Watchdog
from trainer.log import record, report_failure
from trainer.machine import OomKills

PEER_GRACE_S = 5.0
"""Seconds between the loss of a peer and the end of a rank that still waits for it."""
LOSS_WAIT_S = 3.0
"""Seconds within which a peer's death must show for a broken collective to be blamed on it."""
GOES_ON = "start the same command again: it resumes from the last checkpoint"
"""Advice after the loss of a rank that trains."""
Account = Callable[[int], tuple[Sequence[str], Sequence[str]]]
"""Returns what a rank that was killed for its memory was predicted to need, as lines, and hints what would fit."""
_BROKEN_CONNECTION = re.compile(
    "connection closed|connection reset|connection refused|broken pipe|timed out waiting|remote process exited|"
    "no route to host|network error",
    re.IGNORECASE,
)
"""Words by which gloo, NCCL and torch's store report that the other end is gone."""


class RankGuard:
    """Keeps this rank's roster entry, watches its peers, and reports how it ends.

    Args:
        logs: the run's `logs` folder.
        rank: global rank.
        again: what to do when a peer is lost.
        account: tells of a peer that was killed for its memory; None if nobody can.
    """

    def __init__(self, logs: Path, rank: int, again: str = GOES_ON, account: Account | None = None) -> None:
        self._again = again
        self._account = account
        self._logs = logs
        self._rank = rank
        self._roster = Roster(logs)
        self._oom_kills = OomKills()
        self._is_supervised = SUPERVISED_VARIABLE in os.environ

    @staticmethod
    def prepare(logs: Path) -> None:
        """Remove the files of an earlier attempt. One rank calls this before any rank enters."""
        with storage_faults(logs):
            logs.mkdir(parents=True, exist_ok=True)
            Roster(logs).clear()
            Watchdog.prepare(logs)

    def enter(self) -> None:
        """Enter the roster and start to watch the peers.

        Raises:
            StorageError: the folder cannot be written.
        """
        with storage_faults(self._logs):
            self._roster.enter(self._rank)
        self._stop_watching = watch_peers(self._roster, self._on_loss, PEER_GRACE_S, self._on_asked)

    def leave(self) -> None:
        """Leave the roster: this rank ends in a way that it controls."""
        self._stop_watching.set()
        self._roster.leave(self._rank)

    def interrupted(self, code: int) -> None:
        """Leave because a signal ends this rank before it has anything to save. The other ranks find the exit code.

        A launcher that loses a rank sends the same signal to the others: then the lost one is reported.
        """
        if lost := self._roster.lost():
            self._report_lost(lost)
        with suppress(OSError):
            self._roster.claim_failure(code)
        self.leave()

    def fail(self, error: BaseException) -> int:
        """Report the failure that ends this rank, leave the roster, and return the exit code.

        A broken collective is blamed on the peer that was lost, if there is one. Only the first rank to fail reports,
        and if a parent watches the ranks, the parent names the lost ones.
        """
        if isinstance(error, KeyboardInterrupt):
            if not isinstance(error, Interrupted):
                self.leave()
                return INTERRUPTED
            if lost := self._roster.lost():
                code = self._report_lost(lost)
                self.leave()
                return code
            tell_end(error.name)
            self.interrupted(error.exit_code)
            return error.exit_code
        traceback.print_exception(error, file=sys.stderr)
        asked = self._roster.told_failure()
        if asked in ASKED and not isinstance(error, TridentError):
            # Errors after a peer was asked to end are no fault of this rank.
            self.leave()
            return asked
        lost = []
        if isinstance(error, PeerLostError) or not isinstance(error, TridentError):
            lost = self._wait_for_loss(LOSS_WAIT_S)
        told = self._lost(lost) if lost else self._lost_elsewhere(error) or self._as_trident_error(error)
        is_told_by_parent = bool(lost) and self._is_supervised
        if not is_told_by_parent and self._claim(told.exit_code):
            # A known fault says what to do; about one that nobody foresaw the log says most.
            is_known = isinstance(error, TridentError)
            self._report(told, lost[0] if lost else None if is_known else self._rank)
        self.leave()
        return told.exit_code

    def _report(self, error: TridentError, shown_rank: int | None) -> None:
        """Report the failure, after the last lines of a rank's log."""
        if shown_rank is None:
            report_failure(error)
            return
        sys.stderr.flush()
        report_failure(error, f"rank {shown_rank}", tail(self._logs / f"rank_{shown_rank}.log"))

    def _lost(self, lost: Sequence[int]) -> TridentError:
        return lost_error(lost, self._oom_kills, again=self._again, account=self._account)

    def _report_lost(self, lost: Sequence[int]) -> int:
        """Report lost peers, unless a parent does, or another rank has; return the exit code of their loss."""
        error = self._lost(lost)
        if not self._is_supervised and self._claim(error.exit_code):
            self._report(error, lost[0])
        return error.exit_code

    def _lost_elsewhere(self, error: BaseException) -> PeerLostError | None:
        """Return the error for a peer on another machine, whose process cannot be looked at from here."""
        first_line = next(iter(str(error).splitlines()), "")
        is_broken = not isinstance(error, TridentError) and _BROKEN_CONNECTION.search(first_line)
        if not is_broken or not self._roster.has_other_hosts():
            return None
        return PeerLostError(
            f"every rank must live until the run ends, but rank {self._rank} lost the connection to one: {first_line}",
            hints=[
                "a machine, or a rank on another machine, is gone: see the other logs in the same folder",
                self._again.replace("again", "again on every machine", 1),
            ],
        )

    def _as_trident_error(self, error: BaseException) -> TridentError:
        if isinstance(error, TridentError):
            return error
        first_line = next(iter(str(error).splitlines()), "")
        return TridentError(
            f"rank {self._rank} failed: {type(error).__name__}: {first_line}",
            hints=[f"the traceback is at the end of {self._logs / f'rank_{self._rank}.log'}"],
        )

    def _claim(self, exit_code: int) -> bool:
        try:
            return self._roster.claim_failure(exit_code)
        except OSError:
            return self._rank == 0

    def _wait_for_loss(self, seconds: float) -> list[int]:
        end = time.monotonic() + seconds
        while not (lost := self._roster.lost()) and time.monotonic() < end:
            time.sleep(0.1)
        return lost

    def _on_asked(self, code: int) -> None:
        record(f"a peer was asked to end before there was anything to save: ending with {code}")
        self._roster.leave(self._rank)
        sys.stderr.flush()
        os._exit(code)

    def _on_loss(self, lost: list[int]) -> None:
        code = self._report_lost(lost)
        self._roster.leave(self._rank)
        sys.stderr.flush()
        # The main thread may wait for the dead peer in a collective that never returns.
        os._exit(code)


def lost_error(
    lost: Sequence[int],
    oom_kills: OomKills,
    log: Path | None = None,
    again: str = GOES_ON,
    account: Account | None = None,
) -> TridentError:
    """Return the error that names lost ranks, and says whether the kernel killed one for its memory.

    It is one of memory where the kernel counted a kill in this process's own control group: the same config would come
    to the same end. Elsewhere another process of the machine may have been killed.

    Args:
        lost: the lost ranks.
        oom_kills: the kernel's kills for memory since this run started.
        log: log of the first of them, if it is to be named.
        again: what to do then.
        account: tells of a rank that was killed for its memory; None if nobody can.
    """
    killed = oom_kills.hint()
    of_log = [f"its log is {log}"] if log else []
    if killed and oom_kills.is_ours():
        lines, changes = account(lost[0]) if account is not None else ((), ())
        return OutOfMemoryError(lost_message(lost), [killed, *changes, *of_log, again], lines)
    return PeerLostError(lost_message(lost), [*([killed] if killed else []), *of_log, again])


def lost_message(lost: Sequence[int]) -> str:
    """Return the line that names lost ranks."""
    names = ", ".join(str(rank) for rank in lost)
    many = len(lost) > 1
    return (
        f"every rank must live until the run ends, but rank{'s' * many} {names} "
        f"{'were' if many else 'was'} lost (killed, or out of host memory)"
    )
