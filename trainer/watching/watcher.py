"""`trident watch`: the live view of any run, drawn from its files."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from rich.console import RenderableType
from rich.live import Live

from trainer.config.places import absolute_path
from trainer.errors import ConfigError, Interrupted
from trainer.log import terminal
from trainer.metrics.curve import loss_curve
from trainer.metrics.figures import duration, number
from trainer.metrics.live_view import LiveView
from trainer.metrics.screen import TrainingConsole
from trainer.records.happened import EVALUATION, Event
from trainer.records.printable import printable
from trainer.records.run_record import Overview, read_overview
from trainer.records.run_status import State
from trainer.records.signs import Signs
from trainer.run_paths import METRICS, RunPaths
from trainer.watching.row_follower import RowFollower
from trainer.watching.ssh_folder import SshFolder

_REDRAWS_PER_SECOND = 2
_POLL_S = 1.0
_FIRST_ANSWER_S = 60.0
"""Seconds that another machine gets to answer at first: a person may have to type a password."""
_SILENT_S = 20.0
"""Seconds without an answer from which on it is said."""
_FEW_EVENTS = 3
_CURVE_WIDTH = 60
_PLACE = re.compile(r"(?P<host>[^/:\s][^/:\s]*):(?P<path>.+)")


class Source(Protocol):
    """A run's folder, here or as a copy."""

    copy: Path
    """Folder to read."""

    def look(self, timeout_s: float) -> bool:
        """Wait for news, and return whether the folder was seen."""

    @property
    def signs(self) -> Signs | None:
        """Signs of life that were seen with it; None: they are to be looked for in the folder."""


class LocalFolder:
    """A run's folder on this machine.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.copy = path
        self.signs: Signs | None = None
        self._is_seen = False

    def look(self, timeout_s: float) -> bool:
        """Wait, except at the first time."""
        if self._is_seen:
            time.sleep(timeout_s)
        self._is_seen = True
        return True


def watch_verb(word: str, is_once: bool) -> int:
    """Show a run until it is over or Ctrl-C is pressed, and return exit code 0.

    Where nothing can be redrawn, in a pipe or a file, it is shown once.

    Args:
        word: the run's folder, or HOST:PATH.
        is_once: true to show it once.

    Raises:
        ConfigError: it is not the folder of a run, or the machine is not reached.
        PeerLostError: the connection to the machine ended.
    """
    console = TrainingConsole(terminal())
    place = _remote(word)
    is_once = is_once or not console.can_redraw
    context: AbstractContextManager[Source]
    if place is None:
        context = nullcontext(LocalFolder(absolute_path(word, "RUN")))
    else:
        context = SshFolder(*place, is_once=is_once)
    try:
        with context as source:
            _watch(source, word, console, is_once)
    except KeyboardInterrupt as stop:
        # Ctrl-C is how a person leaves. Other signals come from elsewhere.
        if isinstance(stop, Interrupted) and stop.name != "SIGINT":
            raise
    return 0


def _remote(word: str) -> tuple[str, str] | None:
    """Return machine and path of HOST:PATH; None for a folder here, also one with a colon in its name."""
    found = _PLACE.fullmatch(word)
    if found is None or Path(word).exists():
        return None
    if found["host"].startswith("-"):
        raise ConfigError(f"RUN must be a folder or HOST:PATH, but the host of {word!r} begins with a dash")
    return found["host"], found["path"]


def _watch(source: Source, word: str, console: TrainingConsole, is_once: bool) -> None:
    if not source.look(_FIRST_ANSWER_S):
        raise ConfigError(f"RUN must be on a machine that answers, but {word} said nothing for {_FIRST_ANSWER_S:g} s")
    watched = Watched(source, word)
    for line in watched.head():
        console.print(line, soft_wrap=True, markup=False)
    if is_once or watched.is_over:
        console.print(watched.drawn(console))
    else:
        live = Live(
            get_renderable=lambda: watched.drawn(console),
            console=console,
            refresh_per_second=_REDRAWS_PER_SECOND,
            vertical_overflow="crop",
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live:
            while not watched.is_over:
                watched.refresh(source.look(_POLL_S))
                live.refresh()
    for line in watched.foot(console):
        console.print(line, soft_wrap=True, markup=False)


class Watched:
    """A run as it was seen last.

    Args:
        source: its folder.
        word: name of the folder as it was typed.
    """

    def __init__(self, source: Source, word: str) -> None:
        self._source, self._word = source, word
        self._rows = RowFollower(RunPaths(source.copy).metrics)
        self._drawn: tuple[int, RenderableType] | None = None
        self._read()

    def _read(self) -> None:
        copy = self._source.copy
        if self._source.signs is not None and not any(
            path.is_file() for path in (RunPaths(copy).config, copy / METRICS, RunPaths(copy).summary)
        ):
            raise ConfigError(
                f"RUN must be the folder of a run, but {self._word} holds neither config.yaml nor {METRICS}"
            )
        self._overview: Overview = read_overview(copy, self._source.signs)
        self._rows.read()
        self._heard_at = time.monotonic()

    def refresh(self, is_heard: bool) -> None:
        """Read what has changed.

        Args:
            is_heard: false if the machine did not answer since.
        """
        self._drawn = None
        if is_heard:
            self._read()

    @property
    def is_over(self) -> bool:
        """True if nothing more is to be expected."""
        return self._overview.status.is_over

    def head(self) -> Iterator[str]:
        """Yield the lines that do not change."""
        seen = self._overview
        yield f"run     {printable(seen.name)}{f', {seen.layout}' if seen.layout else ''}"
        yield f"folder  {printable(self._word)}"
        for note in seen.notes:
            yield f"note    {printable(note)}"

    def drawn(self, console: TrainingConsole) -> RenderableType:
        """Return the view; it is made anew when something was read, or the terminal has another width."""
        if self._drawn is None or self._drawn[0] != console.width:
            self._drawn = console.width, self._view().draw(console.width, console.is_unicode, self._more())
        return self._drawn[1]

    def _view(self) -> LiveView:
        status, row = self._overview.status, self._rows.row
        tail = {State.finished: "done", State.running: f"eta {self._left()}"}.get(status.state, status.state.value)
        return LiveView(
            step=status.step,
            steps=status.steps,
            tail=tail,
            row=row,
            losses=[loss for _, loss in self._rows.losses],
            stages=sum(1 for name in row if re.fullmatch(r"memory/stage\d+/peak_allocated_gib", name)) or 1,
            unit="GPU" if "perf/mfu" in row else "rank",
            nothing_yet="no step is logged",
        )

    def _left(self) -> str:
        status, step_ms = self._overview.status, self._rows.row.get("time/step_ms")
        if status.steps is None or step_ms is None or step_ms <= 0:
            return "-"
        return duration(max(0, status.steps - status.step) * step_ms / 1000)

    def _more(self) -> dict[str, list[str]]:
        """Return label -> texts of the lines that only a watcher sees."""
        status, found = self._overview.status, {}
        if self._rows.evaluations:
            step, loss = self._rows.evaluations[-1]
            found["eval"] = [f"{number(loss, 4)} at step {step:,}"]
        if events := [_told(event) for event in self._overview.events if event.kind != EVALUATION][-_FEW_EVENTS:]:
            found["events"] = events[::-1]
        age = "" if status.age_s is None else f", wrote {duration(status.age_s)} ago"
        found["state"] = [f"{status.state.value}{age}", printable(status.reason)]
        silent_s = time.monotonic() - self._heard_at
        if silent_s > _SILENT_S:
            found["note"] = [f"no answer for {duration(silent_s)}"]
        return found

    def foot(self, console: TrainingConsole) -> Iterator[str]:
        """Yield the lines behind the last view."""
        width = min(_CURVE_WIDTH, console.width - 12)
        curve = loss_curve(self._rows.losses, width=width, unicode=console.is_unicode)
        yield from ["", *curve] if curve else []
        if self._rows.losses:
            (first, before), (last, after) = self._rows.losses[0], self._rows.losses[-1]
            yield f"loss {before:.4f} at step {first}, {after:.4f} at step {last}"


def _told(event: Event) -> str:
    return f"{'' if event.step is None else f'step {event.step:,}: '}{printable(event.text)}"
