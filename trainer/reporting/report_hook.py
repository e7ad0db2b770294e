"""`logging.report=true`: the page of a run, written when it ends, however it ends."""

from __future__ import annotations

import time
from pathlib import Path

from trainer.errors import first_line
from trainer.files import write_atomically
from trainer.log import say, warn
from trainer.loop.events import Hook, RunEnd
from trainer.records.run_record import read_record
from trainer.records.signs import Signs
from trainer.reporting.page import Content, page
from trainer.reporting.sweep_board import goal_of
from trainer.reporting.written_report import FILE_NAME


class ReportHook(Hook):
    """Writes `report.html` into the run's folder. Lives on the reporting rank, behind all hooks that write files.

    A page that cannot be written is a warning: it can be made at any time from the same files, and a run that trained
    well must not fail by it.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_end(self, end: RunEnd) -> None:
        """Write the page. Local; the other ranks end meanwhile."""
        path = self._folder / FILE_NAME
        now = time.time()
        try:
            # Its own lock is still held: the run has ended for its files, and not yet for who looks from outside.
            record = read_record(self._folder, Signs(changed=now, now=now))
            write_atomically(path, page(Content([record], self._folder.name, goal_of(None, [record], []))))
        except Exception as error:
            warn(f"the report could not be written: {first_line(error)}; see `trident report {self._folder}`")
            return
        say(f"report  {path}")
