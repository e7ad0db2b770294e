from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from trainer.metrics.figures import duration, number, short
from trainer.metrics.screen import TrainingConsole, speaks_unicode


def resize(descriptor: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))


def test_width_of_the_terminal_that_is_written_to_at_every_moment() -> None:
    primary, secondary = pty.openpty()
    resize(secondary, 117)
    with os.fdopen(secondary, "w") as stream, os.fdopen(primary, "rb", buffering=0):
        console = TrainingConsole(stream, environ={})
        assert console.is_terminal
        assert (console.width, console.height) == (117, 30)
        resize(secondary, 60)
        assert console.width == 60
        resize(secondary, 0)
        assert console.width == 80, "some terminals do not tell"
    assert TrainingConsole(io.StringIO()).width == 80


def test_a_pipe_is_no_terminal_whatever_the_environment_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    console = TrainingConsole(io.StringIO())
    assert not console.is_terminal
    assert not console.can_redraw


@pytest.mark.parametrize(("term", "can_redraw"), [("xterm-256color", True), ("dumb", False), ("unknown", False)])
def test_a_dumb_terminal_gets_lines(term: str, can_redraw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    assert TrainingConsole(io.StringIO(), is_terminal=True).can_redraw is can_redraw


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"LANG": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),
        ({"LC_CTYPE": "C.UTF-8"}, False),
        ({"LC_ALL": "POSIX", "LANG": "en_US.UTF-8"}, False),
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LANG": "C", "LC_CTYPE": "de_DE.UTF-8"}, True),
        ({"LANG": "de_DE.UTF-8", "LC_CTYPE": "C.UTF-8"}, True),
        ({"LANG": "C", "LC_ALL": "en_US.UTF-8"}, True),
    ],
)
def test_who_asked_for_more_than_ascii(environ: dict[str, str], expected: bool) -> None:
    assert speaks_unicode(io.StringIO(), environ) is expected


def test_a_stream_that_cannot_hold_it_gets_ascii() -> None:
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert not speaks_unicode(latin, {"LANG": "de_DE.ISO-8859-1"})


def test_numbers_are_short() -> None:
    assert [number(value, 3) for value in (0.75, 123456789.0, 1e-12, 0.0)] == ["0.750", "1.2e+08", "1.0e-12", "0.000"]
    assert [short(value) for value in (0, 999, 999.6, 12345, 1.5e12)] == ["0", "999", "1.00k", "12.3k", "1.50T"]
    assert [duration(value) for value in (0.4, 61, 3599.7, 7384, 900_000)] == [
        *("0m00s", "1m01s", "1h00m", "2h03m"),
        "10d10h",
    ]
