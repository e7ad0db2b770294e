"""One start of a run: its ranks, forked from this warm process, and how they end.

Each rank goes through the command line's `main`, as under any launcher. This process stands in for the launcher: when
a rank is gone and the others do not end by themselves, it ends them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psutil

from tests.chaos.traps import Event, Trap, Traps, read_record
from trainer.engine.warm_start import warm_up
from trainer.errors import TridentError
from trainer.launcher.start import free_port
from trainer.proving.forked_ranks import show_on, take_place

POLL_S = 0.01
LIMIT_S = 300.0
"""No start of these runs takes so long, on any machine."""
GRACE_S = 20.0
"""What ranks get to notice that another is gone: their own limit is 5 s."""
PIPE_BYTES = 1 << 20
"""More than a start prints."""
_SET_CHILD_SUBREAPER = 36


_OF_A_LOG = re.compile(r"(rank [0-9]+|launcher) \| ")


@dataclass
class Outcome:
    """How one start ended."""

    codes: dict[int, int] = field(default_factory=dict)
    """By rank: exit code, or minus the signal."""
    killed: list[int] = field(default_factory=list)
    """Ranks that this test killed."""
    unnoticed: list[int] = field(default_factory=list)
    """Ranks that did not notice by themselves that another is gone, though they could."""
    is_early: bool = False
    """A rank was killed before it had entered the roster; the others cannot know then why a collective breaks."""
    sprung: list[str] = field(default_factory=list)
    """Traps that went off."""
    output: str = ""
    """What a person would see."""
    seconds: float = 0.0

    @property
    def said(self) -> str:
        """What the start itself said, without the last lines of logs that it shows of a rank that failed."""
        return "\n".join(line for line in self.output.splitlines() if not _OF_A_LOG.match(line))


def warm(words: Sequence[str] = ("data=synthetic",)) -> None:
    """Import, compile and compose once, before the first fork, what every rank would again."""
    warm_up()
    import trainer.app
    import trainer.verbs.rank
    import trainer.verbs.train  # noqa: F401
    from trainer.config.compose import compose

    # What is wrong with them the ranks say.
    with suppress(TridentError):
        compose(words)


def _adopt_orphans(yes: bool) -> None:
    """Let orphans of the ranks become children of this process, where they are seen."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


class World:
    """The ranks of one start.

    Args:
        words: of the command line, after `train`.
        world_size: ranks.
        run_dir: the run's folder, which is added to the words.
        notes: a folder outside of it for the records of this start.
        traps: what goes wrong.
        out: descriptor of a person's terminal; default: a pipe, whose content is in the outcome.
    """

    _entered: ClassVar[list[World]] = []
    """All that are under way in this process."""

    def __init__(
        self,
        words: Sequence[str],
        world_size: int,
        run_dir: Path,
        notes: Path,
        traps: Sequence[Trap] = (),
        out: int | None = None,
    ) -> None:
        self._words = ["train", *words, f"run_dir={run_dir}"]
        warm(self._words[1:])
        self._size = world_size
        self._run_dir = run_dir
        self._notes = notes
        self._traps = traps
        self._screen = out
        self.outcome = Outcome()
        self.alive: dict[int, int] = {}
        """Rank -> process id."""
        self._pids: dict[int, int] = {}
        notes.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> World:
        _adopt_orphans(True)
        self._before = _children()
        self._entered.append(self)
        # Not a file: what makes a rank's disk fail must not silence it.
        self._terminal, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.started, self.started_ns = time.monotonic(), time.time_ns()
        port = free_port()
        for rank in range(self._size):
            self.alive[rank] = self._pids[rank] = self._fork(
                rank, port, writer if self._screen is None else self._screen
            )
        os.close(writer)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(list(self.alive))
        self.reap(block=True)
        os.close(self._terminal)
        self._entered.remove(self)
        _adopt_orphans(bool(self._entered))

    def _fork(self, rank: int, port: int, screen: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        # What the interpreter ends with after an exception that nobody caught.
        code = 1
        try:
            show_on(screen)
            faulthandler.enable(2)
            if self._size > 1:
                take_place(rank, self._size, port)
            Traps(rank, self._run_dir, self._traps, self._record(rank), self._notes / f"{rank}.sprung")
            from trainer.cli import main

            code = main(self._words)
        except BaseException:
            faulthandler.dump_traceback(2)
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def _record(self, rank: int) -> Path:
        return self._notes / f"{rank}.events"

    def kill(self, ranks: Sequence[int]) -> None:
        """Kill ranks at once."""
        for rank in ranks:
            if rank in self.alive:
                os.kill(self.alive[rank], signal.SIGKILL)
                self.outcome.killed.append(rank)

    def reap(self, block: bool = False) -> list[int]:
        """Note the ranks that have ended since the last time, and return them."""
        done = []
        for rank, pid in list(self.alive.items()):
            found, status = os.waitpid(pid, 0 if block else os.WNOHANG)
            if found:
                del self.alive[rank]
                self.outcome.codes[rank] = os.waitstatus_to_exitcode(status)
                done.append(rank)
        return done

    def wait_until(self, condition: Callable[[], bool], until: float) -> bool:
        """Wait for a condition, but no longer than the first end of a rank or the moment `until`."""
        while not condition():
            if self.reap() or time.monotonic() > until:
                return False
            time.sleep(POLL_S)
        return True

    def end(self, launcher_kills: bool = False) -> Outcome:
        """Wait for the end of all ranks.

        Args:
            launcher_kills: once a rank is gone by a signal, kill the others, as a node that is lost does.

        Raises:
            AssertionError: they do not end, or leave a process behind.
        """
        lost_at: float | None = None
        while self.alive:
            self.reap()
            now = time.monotonic()
            if lost_at is None and any(code != 0 for code in self.outcome.codes.values()):
                lost_at = now
                self.outcome.is_early = not self._lost_one_is_known()
                if launcher_kills and any(code < 0 for code in self.outcome.codes.values()):
                    self.kill(list(self.alive))
            is_early = self.outcome.is_early
            if lost_at is not None and now - lost_at > (0.0 if is_early else GRACE_S):
                self.outcome.unnoticed += [] if is_early else list(self.alive)
                self.kill(list(self.alive))
            if now - self.started > LIMIT_S:
                raise AssertionError(f"ranks {list(self.alive)} did not end\n{self._stacks()}")
            time.sleep(POLL_S)
        return self._finish()

    def _lost_one_is_known(self) -> bool:
        """Return whether those that are lost had entered the roster; before that only a launcher can see it."""
        gone = [rank for rank, code in self.outcome.codes.items() if code < 0]
        return all(self._entry(rank) == self._pids[rank] for rank in gone)

    def _entry(self, rank: int) -> int | None:
        try:
            return int(json.loads((self._run_dir / "logs" / f"rank_{rank}.pid").read_text())["pid"])
        except (OSError, ValueError):
            return None

    def _finish(self) -> Outcome:
        outcome = self.outcome
        outcome.seconds = time.monotonic() - self.started
        outcome.sprung = [path.read_text() for path in sorted(self._notes.glob("*.sprung"))]
        outcome.output = b"".join(iter(lambda: os.read(self._terminal, PIPE_BYTES), b"")).decode(errors="replace")
        left = _children() - self._before - self._of_others()
        assert not left, f"processes are left behind: {left}"
        return outcome

    def _of_others(self) -> set[int]:
        """Return the processes of other worlds that were entered since this one was."""
        ranks = [pid for world in self._entered if world is not self for pid in world.alive.values()]
        return {child for pid in ranks for child in (pid, *_children(pid))}

    def events(self, rank: int) -> list[tuple[Event, int]]:
        """Return a rank's record."""
        return read_record(self._record(rank), rank)

    def _stacks(self) -> str:
        for pid in self.alive.values():
            os.kill(pid, signal.SIGABRT)
        time.sleep(1.0)
        logs = [(path, path.read_text(errors="replace")) for path in self._run_dir.glob("logs/*.log")]
        return "\n".join(f"--- {path.name}\n{text[-3000:]}" for path, text in logs)


def _children(pid: int | None = None) -> set[int]:
    """Return all that descend from a process, by default this one."""
    try:
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()
