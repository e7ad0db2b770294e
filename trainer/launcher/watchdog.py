"""A watchdog that ends a run which stands still, and names the rank that is behind. No torch, no collective.

Each rank watches itself: nothing is written, and nobody is asked, until one rank has not moved for too long. That rank
then writes to a file of the run's folder where it is, which makes the others do the same, and writes the stack of each
of its threads. One rank sums it up on the terminal. A rank that does not answer is stopped or holds the interpreter: it
is the one to name, and a rank of its host kills it, because it cannot end by itself.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TextIO

from trainer.errors import PeerLostError
from trainer.interruption import Effort
from trainer.launcher.roster import Roster
from trainer.log import record, report_failure, tell
from trainer.progress import BEFORE_THE_LOOP, PHASES, READER, Progress

FEW_RANKS = 16
"""Largest number of ranks listed on the terminal; `logs/hang.txt` has all of them."""
STACK_S = 0.5
"""Seconds that a rank which does not answer gets to write its stacks from a signal handler."""
END_S = 10.0
"""Seconds to put everything together and end."""
_OWN_TIME = (*BEFORE_THE_LOOP, "start", "hooks", "end")
"""Phases that may take as long as a collective: starting, saving, ending."""
_WAITING = ("torch/distributed/", "deepspeed/comm/", "trainer/loop/stop.py")
"""Code of waiting: a rank whose innermost frame is here waits for others."""
_READS = "trainer/data/prefetch.py"
"""Code of waiting for the thread that reads data."""
_SIGNAL = signal.SIGUSR2


@dataclass(frozen=True)
class Whereabouts:
    """Position of a rank when the run stood still."""

    rank: int
    stage: int
    host: str
    step: int
    phase: str
    micro_batch: int | None
    instruction: str | None
    waits: bool
    """True if it waited for other ranks."""
    code: str
    """Innermost file, line and function."""

    def __str__(self) -> str:
        """Return the position as one line."""
        parts = [f"rank {self.rank}: stage {self.stage}, step {self.step}, {self.phase}"]
        parts += [f"micro-batch {self.micro_batch}"] * (self.micro_batch is not None)
        parts += [self.instruction] if self.instruction is not None else []
        parts.append(f"{'waits' if self.waits else 'is'} in {self.code}")
        return ", ".join(parts)

    @property
    def advance(self) -> tuple[bool, int, int, int]:
        """Sort key: the rank furthest behind comes first. One that waits is not the cause, however far it is."""
        return self.waits, self.step, PHASES.index(self.phase), self.micro_batch or 0


class Watchdog:
    """Watches this rank while inside its `with` block.

    Args:
        logs: the run's `logs` folder, the same for all ranks.
        rank: global rank.
        stage: its pipeline stage.
        world_size: number of ranks.
        progress: the current activity of this rank.
        timeout_s: longest time without progress in a step or an evaluation. 0: there is no watch.
        save_timeout_s: longest time between steps, for example for saving.
    """

    def __init__(
        self,
        logs: Path,
        rank: int,
        stage: int,
        world_size: int,
        progress: Progress,
        timeout_s: float,
        save_timeout_s: float,
    ) -> None:
        self._logs, self._rank, self._stage, self._world_size = logs, rank, stage, world_size
        self._progress, self._timeout_s, self._save_timeout_s = progress, timeout_s, save_timeout_s
        # On a network's file system it takes a while until every machine sees a file.
        self._answer_s = min(30.0, max(3.0, timeout_s / 20))
        self._stop = threading.Event()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._stacks: TextIO | None = None
        self._stacks_path = logs / "stacks" / f"rank_{rank}.txt"
        self._watched = threading.get_ident()

    @staticmethod
    def prepare(logs: Path) -> None:
        """Remove the files of an earlier attempt, except its stacks. One rank calls this before any rank watches."""
        for path in logs.glob("hang_rank_*.json"):
            path.unlink(missing_ok=True)

    def __enter__(self) -> Watchdog:
        """Start watching."""
        if self._timeout_s > 0:
            self._progress.beat()
            # Open beforehand: a rank that holds the interpreter can still write here, from a signal handler.
            with suppress(OSError):
                self._stacks_path.parent.mkdir(parents=True, exist_ok=True)
                self._stacks = self._stacks_path.open("a", encoding="utf-8")
                faulthandler.register(_SIGNAL, self._stacks, all_threads=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Stop watching, and leave no file behind if nothing happened."""
        self._stop.set()
        if self._ends.is_set():
            # A peer that has ended broke the collective that this rank waited in. The watchdog reports, not this error.
            self._thread.join(self._answer_s + END_S)
        if self._stacks is not None:
            faulthandler.unregister(_SIGNAL)
            self._stacks.close()
            with suppress(OSError):
                if self._stacks_path.stat().st_size == 0:
                    self._stacks_path.unlink()
                self._stacks_path.parent.rmdir()

    def _watch(self) -> None:
        effort = Effort()
        while not self._stop.wait(min(1.0, self._timeout_s / 5)):
            effort.note(self._progress)
            is_late = time.monotonic() - self._progress.moved_at > self._allowed()[0]
            if is_late or next(self._logs.glob("hang_rank_*.json"), None) is not None:
                self._end()

    def _allowed(self) -> tuple[float, str]:
        """Return how long this rank may stay where it is, and the key that says so."""
        if self._progress.phase in _OWN_TIME:
            return self._save_timeout_s, "runtime.timeout_s"
        return self._timeout_s, "runtime.hang_timeout_s"

    def _end(self) -> None:
        """Write where this rank is, read the others' answers, and end the process."""
        self._ends.set()
        mine = self._whereabouts()
        self._write_stacks(mine)
        with suppress(OSError):
            temporary = self._logs / f"hang_rank_{self._rank}.tmp"
            temporary.write_text(json.dumps(asdict(mine)), encoding="utf-8")
            temporary.replace(temporary.with_suffix(".json"))
        heard = {**self._hear(), self._rank: mine}
        roster = Roster(self._logs)
        silent = [rank for rank in range(self._world_size) if rank not in heard]
        with suppress(OSError):
            if roster.claim_failure(PeerLostError.exit_code):
                self._tell(heard, silent)
        if self._rank == min(rank for rank, one in heard.items() if one.host == mine.host):
            _end_silent(roster, silent)
        roster.leave(self._rank)
        sys.stderr.flush()
        # The main thread may wait for ever.
        os._exit(PeerLostError.exit_code)

    def _whereabouts(self) -> Whereabouts:
        now = self._progress
        waits, code = _code_of(_frame_of(self._watched))
        host = socket.gethostname()
        return Whereabouts(
            self._rank, self._stage, host, now.step, now.phase, now.micro_batch, now.instruction, waits, code
        )

    def _write_stacks(self, mine: Whereabouts) -> None:
        record(f"the run stands still; {mine}")
        if self._stacks is not None:
            with suppress(OSError, ValueError):
                self._stacks.write(f"{mine}\n")
                self._stacks.flush()
                faulthandler.dump_traceback(self._stacks, all_threads=True)
                self._stacks.write("\n")
                self._stacks.flush()

    def _hear(self) -> dict[int, Whereabouts]:
        """Wait for the other ranks' answers; return those that came."""
        heard: dict[int, Whereabouts] = {}
        end = time.monotonic() + self._answer_s
        while len(heard) < self._world_size and time.monotonic() < end:
            time.sleep(0.1)
            for rank in set(range(self._world_size)) - heard.keys():
                with suppress(OSError, ValueError, TypeError):
                    text = (self._logs / f"hang_rank_{rank}.json").read_text(encoding="utf-8")
                    heard[rank] = Whereabouts(**json.loads(text))
        return heard

    def _tell(self, heard: Mapping[int, Whereabouts], silent: Sequence[int]) -> None:
        lines = [str(heard[rank]) if rank in heard else f"rank {rank}: no answer" for rank in range(self._world_size)]
        with suppress(OSError):
            (self._logs / "hang.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        shown = lines if len(lines) <= FEW_RANKS else [*lines[:FEW_RANKS], f"... all ranks: {self._logs / 'hang.txt'}"]
        tell("\n".join(shown))
        report_failure(hang_error(heard, silent, self._allowed(), self._logs))


def hang_error(
    heard: Mapping[int, Whereabouts], silent: Sequence[int], allowed: tuple[float, str], logs: Path
) -> PeerLostError:
    """Return the error that names the rank which is behind.

    Args:
        heard: positions of the ranks that answered.
        silent: the other ranks.
        allowed: longest time without progress, and the key that says so.
        logs: the run's `logs` folder.
    """
    if silent:
        names = ", ".join(map(str, silent[:FEW_RANKS])) + ("" if len(silent) <= FEW_RANKS else " and more")
        many = len(silent) > 1
        behind = f"rank{'s' * many} {names} {'do' if many else 'does'} not answer (stopped, or stuck outside Python)"
    else:
        behind = f"behind is {min(heard.values(), key=lambda one: one.advance)}"
    seconds, key = allowed
    return PeerLostError(
        f"every rank must go on within {seconds:g} s ({key}), but the run stands still at step "
        f"{max(one.step for one in heard.values())}: {behind}",
        hints=[
            f"stacks of every rank: {logs / 'stacks'}",
            "if it takes that long here, raise runtime.hang_timeout_s and runtime.timeout_s",
            "start the same command again: it resumes from the last checkpoint",
        ],
    )


def _end_silent(roster: Roster, silent: Sequence[int]) -> None:
    """Let ranks of this host that do not answer write their stacks if they can, and kill them."""
    here = {rank: pid for rank, pid in roster.present().items() if rank in silent}
    for number in (_SIGNAL, signal.SIGKILL):
        for pid in here.values():
            with suppress(OSError):
                os.kill(pid, number)
        if here and number is _SIGNAL:
            time.sleep(STACK_S)


def _frame_of(thread: int | None) -> FrameType | None:
    """Return the innermost frame of a thread; if it waits for one that reads data, that one's."""
    frames = sys._current_frames()
    frame = None if thread is None else frames.get(thread)
    if frame is None or not frame.f_code.co_filename.endswith(_READS):
        return frame
    readers = [one.ident for one in threading.enumerate() if one.name == READER and one.ident in frames]
    return frames[readers[-1]] if readers and readers[-1] is not None else frame


def _code_of(frame: FrameType | None) -> tuple[bool, str]:
    """Return whether a thread waits for other ranks, and its innermost code."""
    if frame is None:
        return False, "unknown code"
    path = frame.f_code.co_filename
    place = f"{'/'.join(Path(path).parts[-3:])}:{frame.f_lineno} ({frame.f_code.co_name})"
    return any(part in path for part in _WAITING), place
