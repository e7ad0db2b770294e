"""Ranks that were started apart: each with its own words, environment and working folder, as on different nodes."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from trainer.engine.warm_start import warm_up
from trainer.launcher.start import free_port
from trainer.proving.forked_ranks import forked, show_in, take_place

LIMIT_S = 100.0


@dataclass(frozen=True)
class Rank:
    """How one rank is started."""

    words: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    after_s: float = 0.0
    verb: str = "train"
    before: Callable[[], object] | None = None
    """Called in the rank before its command."""


@dataclass(frozen=True)
class Ended:
    """How the ranks ended."""

    codes: list[int]
    """-9 for a rank that did not end by itself."""
    said: list[str]
    """Output of each rank."""
    seconds: float

    @property
    def errors(self) -> list[str]:
        """What followed `error: `, of all ranks."""
        lines = "\n".join(self.said).splitlines()
        return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]


def start_apart(ranks: Sequence[Rank], notes: Path, limit_s: float = LIMIT_S) -> Ended:
    """Run `trident train`, or another verb, with each rank's words, in processes forked from this warm one.

    Return how they ended.
    """
    warm_up()
    import trainer.app
    import trainer.errands
    import trainer.preflight  # noqa: F401

    port, started = free_port(), time.monotonic()
    notes.mkdir(parents=True, exist_ok=True)
    pids = {index: forked(partial(_code, rank, index, len(ranks), port, notes)) for index, rank in enumerate(ranks)}
    codes: dict[int, int] = {}
    try:
        while len(codes) < len(ranks) and time.monotonic() - started < limit_s:
            for index, pid in pids.items():
                if index not in codes:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        codes[index] = os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
    finally:
        for index in pids.keys() - codes.keys():
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pids[index], signal.SIGKILL)
                os.waitpid(pids[index], 0)
    said = [(notes / f"{index}.txt").read_text(errors="replace") for index in range(len(ranks))]
    return Ended([codes.get(index, -9) for index in range(len(ranks))], said, time.monotonic() - started)


def _code(rank: Rank, index: int, size: int, port: int, notes: Path) -> int:
    """Run the command of a rank; return its exit code."""
    try:
        show_in(notes / f"{index}.txt")
        take_place(index, size, port)
        os.environ.update(rank.environ)
        if rank.folder is not None:
            os.chdir(rank.folder)
        if rank.before is not None:
            rank.before()
        time.sleep(rank.after_s)
        from trainer.cli import main

        return main([rank.verb, *rank.words])
    except BaseException:
        traceback.print_exc()
        return 1
