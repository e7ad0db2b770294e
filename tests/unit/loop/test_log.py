from __future__ import annotations

import io
import subprocess
import sys

import pytest

from trainer import log
from trainer.errors import ConfigError, NumericsError
from trainer.log import be_quiet, conclude, print_above_bar, report_error, report_failure, say, use_terminal, warn


@pytest.fixture(autouse=True)
def fresh_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("out", "err", "above_bar", "is_quiet"):
        monkeypatch.setattr(log._Terminal, name, getattr(log._Terminal, name))


def test_the_reporting_rank_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (None, "0"):
        monkeypatch.delenv("RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        say("hello")
        warn("careful")
        assert capsys.readouterr() == ("hello\n", "warning: careful\n")


def test_other_ranks_are_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    say("hello")
    warn("careful")
    report_error(NumericsError("bad"))
    assert capsys.readouterr() == ("", "")


def test_an_error_is_a_line_for_each_problem_and_three_hints_at_most(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    error = ConfigError(["a must be b", "c must be d"], hints=["1", "2", "3", "4"])
    report_error(error)
    expected = "error: a must be b\nerror: c must be d\nhint: 1\nhint: 2\nhint: 3\n"
    assert capsys.readouterr() == ("", expected)


def test_hints_added_later_are_cut_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    error = NumericsError("bad")
    error.hints = ("1", "2", "3", "4")
    report_error(error)
    assert capsys.readouterr().err.count("hint:") == 3


def test_a_reader_that_goes_away_does_not_end_the_process() -> None:
    code = "import time; from trainer.log import say\nfor _ in range(50): say('x' * 2000); time.sleep(0.002)\n"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.close()
    assert writer.wait(30) == 0
    assert writer.stderr is not None
    assert writer.stderr.read() == b""


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_under_a_progress_bar_lines_go_above_it_and_files_stay_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    screen, file, above = _Tty(), io.StringIO(), list[str]()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", file)
    print_above_bar(above.append)
    say("saved")
    warn("careful")
    print_above_bar(None)
    say("done")
    assert above == ["saved"]
    assert file.getvalue() == "warning: careful\n"
    assert screen.getvalue() == "done\n"


def test_a_quiet_run_shows_errors_and_the_last_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    be_quiet()
    say("hello")
    warn("careful")
    report_error(NumericsError("bad"))
    conclude("finished")
    assert capsys.readouterr() == ("finished\n", "error: bad\n")
    be_quiet(False)
    say("hello")
    assert capsys.readouterr().out == "hello\n"


def test_only_the_reporting_rank_concludes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    conclude("finished")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("is_quiet", [False, True])
def test_the_log_of_a_rank_has_what_its_run_said(
    is_quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    out, err = io.StringIO(), io.StringIO()
    use_terminal(out, err)
    be_quiet(is_quiet)
    say("hello")
    warn("careful")
    report_error(NumericsError("bad", ["do this"]))
    conclude("finished")
    assert capsys.readouterr() == ("hello\nwarning: careful\nerror: bad\nhint: do this\nfinished\n", "")
    shown = (
        ("", "error: bad\nhint: do this\n")
        if is_quiet
        else ("hello\n", "warning: careful\nerror: bad\nhint: do this\n")
    )
    assert (out.getvalue(), err.getvalue()) == (f"{shown[0]}finished\n", shown[1])


def test_the_end_of_a_log_stands_before_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    report_failure(NumericsError("bad"), "rank 3", ["one", "two"])
    assert capsys.readouterr().err == "rank 3 | one\nrank 3 | two\nerror: bad\n"


def test_a_name_with_a_line_end_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    report_failure(ConfigError("run_dir must be a folder, but two\nlines is a file", ["remove two\r\nlines"]))
    assert capsys.readouterr().err == (
        "error: run_dir must be a folder, but two\\nlines is a file\nhint: remove two\\nlines\n"
    )
