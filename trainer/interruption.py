"""The end of a command that is asked to stop and has nothing to save yet, or no longer. No torch.

From the first moment on, SIGTERM, SIGINT, SIGHUP and SIGUSR1 end the process, whatever it does: in the main thread
`Interrupted` is raised, so that files and locks are put in order. If the main thread waits in C code, or in a loop that
nothing can leave, a second thread ends the process a little later. Once a run has trained a step, the loop takes over
the signals (`loop.stop`): from then on they ask for a checkpoint.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from trainer.errors import Interrupted, PeerLostError, Preempted, TridentError
from trainer.log import part, report_failure
from trainer.progress import BUSY, IMPORTING, Progress, current

if TYPE_CHECKING:
    import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
INTERRUPTED = 130
"""Exit code of a process that a person ended with Ctrl-C."""
ASKED = (Preempted.exit_code, INTERRUPTED)
"""Exit codes of a process that a signal ended before there was anything to save."""
GRACE_S = 3.0
"""Seconds that the main thread gets to end by itself."""
LEAVE_S = 8.0
"""Seconds that libraries get to clean up when the work is done."""
_PARTING_S = 2.0
_ROUNDS = 5
"""Times that programs are looked for, at most, which were started while others were ended."""
_POLL_S = 0.5
_BUSY_SHARE = 0.1
"""Share of a core: a process that computes less than that only waits."""
_MEASURE_S = 2.0
_NOTHING = b"\0"


def exit_code_of(number: int) -> int:
    """Return the exit code of a process that a signal ended before there was something to save.

    A person who presses Ctrl-C does not want the run. All others want the machine, and the run later.
    """
    return INTERRUPTED if number == signal.SIGINT else Preempted.exit_code


class _Interruption:
    """The handling of this process's signals. There is one process, so there is one object of this class."""

    def __init__(self) -> None:
        self.is_listening = False
        self._asked: int | None = None
        """The signal that the main thread has handled."""
        self._settled: int | None = None
        """The exit code that is decided when the work is done."""
        self._ends_at: float | None = None
        self._late: int = signal.SIGTERM
        self._limit_s = 0.0
        self._partings: list[Callable[[int], None]] = []
        self._started: list[psutil.Process] = []
        self._reader = self._writer = -1
        self._ending = threading.Lock()

    def listen(self) -> None:
        """Handle the signals from now on, in the main thread."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Written by the C part of a signal's handling, whatever the main thread does.
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            # Signals that nohup or a shell without job control ignores stay ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        threading.Thread(target=self._watch, name="interruption", daemon=True).start()
        self.is_listening = True

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._settled is None and self._asked is None:
            self._asked = number
            _Voice.doing = doing()
            # If a program is killed while this thread unwinds, nobody ends the program's own children.
            self._started = _ask_all()
            if current().phase == IMPORTING:
                # An extension aborts the process when an exception interrupts its initialisation. Nothing is open yet.
                tell_end(signal.Signals(number).name)
                self.end(exit_code_of(number))
            raise Interrupted(signal.Signals(number).name, exit_code_of(number))

    def _watch(self) -> None:
        effort = Effort()
        while True:
            ready, _, _ = select.select([self._reader], [], [], _POLL_S)
            for number in os.read(self._reader, 512) if ready else b"":
                if number in SIGNALS and signal.getsignal(number) == self._on_signal and self._ends_at is None:
                    self._late, self._ends_at = number, time.monotonic() + GRACE_S
            if self._ends_at is not None and time.monotonic() >= self._ends_at:
                self._end_late()
            elif self._limit_s > 0:
                self._check_limit(effort)

    def _end_late(self) -> None:
        if self._settled is not None:
            self.end(self._settled)
        if self._asked is None and signal.getsignal(self._late) != self._on_signal:
            # The loop took over the signals before the main thread came to handle this one.
            self._ends_at = None
            return
        number = self._late if self._asked is None else self._asked
        if not _Voice.has_told:
            with suppress(OSError, ValueError):
                tell_end(signal.Signals(number).name)
        # The main thread may get here while the last things are done.
        _Voice.is_over = True
        self.end(exit_code_of(number))

    def _check_limit(self, effort: Effort) -> None:
        progress = current()
        effort.note(progress)
        if time.monotonic() - progress.moved_at > self._limit_s:
            with suppress(OSError, ValueError):
                report_failure(stands_still(self._limit_s))
            self.end(PeerLostError.exit_code)

    def end(self, code: int) -> NoReturn:
        """End the process, and all processes that it started, from whichever thread."""
        with self._ending:
            thread = threading.Thread(target=self._part, args=(code,), daemon=True)
            thread.start()
            # A disk may hang as well.
            thread.join(_PARTING_S)
            found = {*self._started, *descendants()}
            for _ in range(_ROUNDS):
                end_all(found)
                # Other threads go on until the process is gone, and may have started another program meanwhile.
                if not (found := set(descendants())):
                    break
            _flush()
            os._exit(code)

    def _part(self, code: int) -> None:
        for parting in self._partings:
            with suppress(Exception):
                parting(code)

    def settle(self, code: int, within_s: float | None = None) -> None:
        """Decide the exit code: the work is done, and a signal now only makes the process end sooner."""
        self._settled = code
        if within_s is not None and self._ends_at is None:
            self._ends_at = time.monotonic() + within_s
        if self.is_listening:
            with suppress(OSError):
                os.write(self._writer, _NOTHING)

    def limit(self, seconds: float) -> None:
        """Set how long the process may stand still; 0: for ever."""
        current().beat()
        self._limit_s = seconds

    @property
    def is_asked(self) -> bool:
        """True if a signal has ended the work of the main thread."""
        return self._asked is not None

    def before_end(self, parting: Callable[[int], None]) -> None:
        """Let `parting` be called with the exit code when a signal ends the process. From any thread."""
        self._partings.append(parting)


_THE_ONE = _Interruption()
listen = _THE_ONE.listen
settle = _THE_ONE.settle
limit = _THE_ONE.limit
before_end = _THE_ONE.before_end
end = _THE_ONE.end


def leave(code: int) -> NoReturn:
    """End the process with its work done: libraries may clean up, but not for ever, and no signal changes the code."""
    if _THE_ONE.is_asked:
        end(code)
    settle(code, within_s=LEAVE_S)
    _flush()
    atexit._run_exitfuncs()
    _flush()
    os._exit(code)


class _Voice:
    is_parents = False
    has_told = False
    is_over = False
    doing: str | None = None
    """Activity when the signal came; the tidying up since then is another phase."""


def let_parent_tell() -> None:
    """Print nothing here: the command that started this rank does."""
    _Voice.is_parents = True


def tell_end(name: str) -> None:
    """Print that a signal ended the command, and during what. On the reporting rank only, if no parent does."""
    if _Voice.is_parents or _Voice.is_over:
        return
    _Voice.has_told = True
    part(f"asked to stop by {name} while {_Voice.doing or doing()}: ended, there was nothing to save yet")


def doing() -> str:
    """Return the activity of this process, in words."""
    progress = current()
    return progress.phase + (f" ({progress.instruction})" if progress.instruction else "")


def stands_still(seconds: float) -> TridentError:
    """Return the error of a process that has not moved for this long."""
    rank = os.environ.get("RANK")
    who = f"rank {rank}" if rank else "the command"
    return PeerLostError(
        f"{who} must go on within {seconds:g} s (runtime.timeout_s), but stands still while {doing()}",
        hints=["if it takes that long here, raise runtime.timeout_s", "otherwise start the same command again"],
    )


def descendants() -> list[psutil.Process]:
    """Return the processes that this one started, and those that they started, such as compilers."""
    # A signal may come while the module is imported.
    with suppress(Exception):
        import psutil

        return psutil.Process().children(recursive=True)
    return []


def _ask_all() -> list[psutil.Process]:
    """Ask all processes that this one started, directly or not, to end, and return them.

    A build system starts compilers all the time: nothing may start another program between being found and being asked.
    """
    found: list[psutil.Process] = []
    while new := [process for process in descendants() if process not in found]:
        for process in new:
            _try(process.suspend)
        found += new
    for process in found:
        _try(process.terminate)
        _try(process.resume)
    return found


def _try(action: Callable[[], None]) -> None:
    # Without psutil there is no process to act on; with it, a process may be gone.
    with suppress(Exception):
        action()


def end_all(processes: Collection[psutil.Process]) -> None:
    """End processes, and wait until they have."""
    if not processes:
        return
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=1.0)[1]:
        with suppress(psutil.Error):
            process.kill()


class Effort:
    """Computation of this process and those that it started. In some phases it counts as progress."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._spent_s = 0.0

    def note(self, progress: Progress) -> None:
        """Note progress of a phase that may take any time, if it computes. Cheap: it measures now and then."""
        if progress.phase not in BUSY or time.monotonic() - self._at < _MEASURE_S:
            return
        now, spent_s = time.monotonic(), _spent_s()
        if spent_s - self._spent_s >= _BUSY_SHARE * (now - self._at):
            progress.beat()
        self._at, self._spent_s = now, spent_s


def _spent_s() -> float:
    import psutil

    total = 0.0
    with suppress(psutil.Error):
        process = psutil.Process()
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                # With the children that have ended.
                total += sum(one.cpu_times()[:4])
    return total


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
