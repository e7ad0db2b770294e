"""`trident report`: reads runs, makes the page and the figures, and says where they are. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.places import absolute_path
from trainer.errors import ConfigError
from trainer.files import write_atomically
from trainer.log import say, tell
from trainer.picture_file import check_picture, check_place
from trainer.records.run_record import RunRecord, read_record
from trainer.reporting.facts import counts
from trainer.reporting.page import MARK, Content, page
from trainer.reporting.paper import write_figure
from trainer.reporting.sweep_board import goal_of, is_sweep, sweep_runs

OUTPUT, PNG, PDF = "--output", "--png", "--pdf"
FILE_NAME = "report.html"
MOST_RUNS = 200
"""Runs of one page: beyond it nobody can tell them apart, and the page would be too large to open."""
_HEAD_BYTES = 4096
_MANY = 4


@dataclass(frozen=True)
class Asked:
    """The words of the verb."""

    runs: Sequence[str]
    output: str | None = None
    png: str | None = None
    pdf: str | None = None


def report_verb(asked: Asked) -> int:
    """Write the page, and the figures that were asked for, and return 0.

    Raises:
        ConfigError: a folder is that of no run, a file cannot be written there, or it is none of ours.
        StorageError: the disk is full, or not writable.
    """
    places = list(dict.fromkeys(absolute_path(word, "RUN") for word in asked.runs))
    runs, sweep = expanded(places)
    output = absolute_path(asked.output, OUTPUT) if asked.output is not None else default_output(places)
    check_output(output)
    figures = [(absolute_path(word, option), option) for word, option in ((asked.png, PNG), (asked.pdf, PDF)) if word]
    for path, option in figures:
        check_picture(path, option, (f".{option.removeprefix('--')}",))
    if len(runs) > _MANY:
        tell(f"reading {len(runs)} runs")
    records = [read_record(run) for run in runs]
    notes: list[str] = []
    goal = goal_of(sweep, records, notes)
    title = title_of(places, records)
    text = page(Content(records, title, goal, notes))
    write_atomically(output, text, OUTPUT)
    what = records[0].status.state.value if len(records) == 1 else f"{len(records)} runs: {counts(records)}"
    say(f"report  {output} ({len(text.encode()) / 1e6:.1f} MB; {what})")
    for path, option in figures:
        write_figure(records, title, path, option)
        say(f"figure  {path}")
    return 0


def expanded(places: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """Return the folders of all runs, those of sweeps in place of the sweeps, and the sweep if there is just one.

    Raises:
        ConfigError: a sweep has no run that was started, or there are too many runs.
    """
    runs: list[Path] = []
    for place in places:
        if not is_sweep(place):
            runs.append(place)
            continue
        found = sweep_runs(place)
        if not found:
            raise ConfigError(
                f"RUN must be the folder of a run, or of a sweep with runs, but none of {place} was started"
            )
        runs += found
    runs = list(dict.fromkeys(runs))
    if len(runs) > MOST_RUNS:
        raise ConfigError(
            f"a report must be of at most {MOST_RUNS} runs, but these are {len(runs)}; name fewer folders"
        )
    return runs, places[0] if len(places) == 1 and is_sweep(places[0]) else None


def default_output(places: Sequence[Path]) -> Path:
    """Return the file that is written if none is named: in the run's or sweep's folder, or here for several."""
    return places[0] / FILE_NAME if len(places) == 1 else Path.cwd() / FILE_NAME


def title_of(places: Sequence[Path], records: Sequence[RunRecord]) -> str:
    """Return the title of a page: the name of the folder, or how many runs it is about."""
    if len(places) == 1:
        return places[0].name or str(places[0])
    return " and ".join(place.name for place in places) if len(records) == 2 else f"{len(records)} runs"


def check_output(path: Path) -> None:
    """Check that a page may be written there, before anything is read.

    Raises:
        ConfigError: another suffix than .html, a folder that is not there or cannot be written, or a file there that
            is no report.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{OUTPUT} must end in .html, but is {path}; use for example {path.stem or 'report'}.html")
    if path.parent.is_dir() or path.name != FILE_NAME:
        check_place(path, OUTPUT)
    if path.is_file() and not is_ours(path):
        raise ConfigError(
            f"{OUTPUT} must be a new file or an earlier report, but {path} is neither; name another one, or remove it"
        )


def is_ours(path: Path) -> bool:
    """Return whether a file is a report, or empty."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return not head or f'content="{MARK}"'.encode() in head
