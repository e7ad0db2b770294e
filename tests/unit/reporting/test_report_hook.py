from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.helpers.made_runs import MadeRun, make_run
from trainer.loop.events import RunEnd
from trainer.reporting.report_hook import ReportHook

SMALL = MadeRun(steps=60, done=60, evaluates_every=20, saves_every=20)
END = RunEnd("finished", 60, 71.0)


def test_a_run_that_ends_leaves_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "mine", SMALL)
    with (run / "lock").open("w") as lock:
        # As the run itself does until its process is gone.
        fcntl.flock(lock, fcntl.LOCK_EX)
        ReportHook(run).on_end(END)
    text = (run / "report.html").read_text()
    assert '<span class="pill good">' in text
    assert "Finished at step 60 of 60" in text
    assert capsys.readouterr().out == f"report  {run}/report.html\n"


@pytest.mark.parametrize("fault", ["a folder in its place", "no run any more"])
def test_a_page_that_cannot_be_written_fails_no_run(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "mine", SMALL)
    if fault == "a folder in its place":
        (run / "report.html" / "x").mkdir(parents=True)
    else:
        run.rename(tmp_path / "gone")
    ReportHook(run).on_end(END)
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("warning: the report could not be written: ")
