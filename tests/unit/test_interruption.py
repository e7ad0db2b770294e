from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import signal, sys, time
from trainer import interruption
from trainer.errors import Interrupted
from trainer.progress import BUILDING, COMPILING, IMPORTING, current
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Shorter than for a user, in which nothing else is different.
interruption.GRACE_S, interruption.LEAVE_S, interruption._PARTING_S = 1.0, 2.0, 1.2
interruption.listen()
current().enter(BUILDING)
"""
"""Then comes what the command does."""
SIGNALS = [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
STUBBORN = """
is_ready = False
while True:
    try:
        if not is_ready:
            print("ready", flush=True)
            is_ready = True
        time.sleep(60)
    except BaseException:
        pass
"""
TIDY = """
try:
    print("ready", flush=True)
    time.sleep(60)
except Interrupted as stop:
    print("tidied up", flush=True)
    interruption.tell_end(stop.name)
    interruption.end(stop.exit_code)
"""


def started(program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND + program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str], timeout_s: float = 30) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_main_thread_tidies_up_and_says_what_it_did(number: signal.Signals, code: int) -> None:
    process = started(TIDY)
    process.send_signal(number)
    told = f"asked to stop by {number.name} while building the engine: ended, there was nothing to save yet\n"
    assert ended(process) == (code, "tidied up\n", told)


@pytest.mark.parametrize(
    "order",
    [
        "interruption.tell_end(stop.name)\n    time.sleep(60)",
        "time.sleep(interruption.GRACE_S + 0.6)\n    interruption.tell_end(stop.name)\n    time.sleep(60)",
    ],
    ids=["then hangs", "comes late"],
)
def test_the_end_is_told_once_however_slowly_the_main_thread_tidies_up(order: str) -> None:
    """Freeing what fills the memory takes longer than anybody waits."""
    parting = "interruption.before_end(lambda code: time.sleep(0.9))"
    waiting = "try:\n    print('ready', flush=True)\n    time.sleep(60)\nexcept Interrupted as stop:\n"
    process = started(f"{parting}\n{waiting}    {order}\n")
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert (code, err.count("asked to stop by SIGTERM")) == (75, 1), err


def test_what_hears_nothing_is_ended(tmp_path: Path) -> None:
    process = started(
        f"interruption.before_end(lambda code: open({str(tmp_path / 'told')!r}, 'w').write(str(code)))" + STUBBORN
    )
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert (code, err.count("asked to stop by SIGTERM while building the engine")) == (75, 1)
    assert (tmp_path / "told").read_text() == "75"


def test_a_parting_that_hangs_is_not_waited_for() -> None:
    process = started("interruption.before_end(lambda code: time.sleep(600))" + STUBBORN)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130


@pytest.mark.parametrize("program", ["subprocess.Popen", "subprocess.run"])
def test_what_it_started_ends_too(program: str) -> None:
    """Also what a program started that is killed on the way, as `subprocess.run` does."""
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    start = f"import subprocess; {program}([sys.executable, '-c', {grandchild!r}])"
    process = started(TIDY.replace("    time.sleep(60)", f"    {start}; time.sleep(60)"))
    deadline = time.monotonic() + 30
    while len(left := psutil.Process(process.pid).children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75
    _, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []


BUILDS = """
import subprocess
builder = "import subprocess, sys, time\\n" + (
    "while True: subprocess.Popen(['sleep', sys.argv[1]], start_new_session=True); time.sleep(0.001)"
)
print("ready", flush=True)
try:
    subprocess.run([sys.executable, "-c", builder, SECONDS])
except Interrupted as stop:
    interruption.end(stop.exit_code)
"""
"""Starts programs all the time, as a build system does."""


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_what_a_build_starts_in_the_last_moment_ends_too(number: signal.Signals, code: int) -> None:
    seconds = f"600.{os.getpid()}{int(number)}"
    process = started(BUILDS.replace("SECONDS", repr(seconds)))

    def left() -> list[int]:
        return [p.pid for p in psutil.process_iter(["cmdline"]) if seconds in (p.info["cmdline"] or [])]

    while len(left()) < 5:
        time.sleep(0.02)
    process.send_signal(number)
    assert ended(process)[0] == code
    assert left() == []


def test_when_the_work_is_done_no_signal_changes_the_exit_code() -> None:
    """However long libraries take to clean up."""
    process = started(
        "import atexit; atexit.register(time.sleep, 600)\nprint('ready', flush=True)\ninterruption.leave(8)"
    )
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (8, "", "")


def test_what_is_ignored_stays_ignored() -> None:
    program = (
        "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nfrom trainer import interruption\n"
        "interruption.listen()\nprint('ready', flush=True)\nimport time; time.sleep(1)\ninterruption.leave(0)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert ended(process) == (0, "", "")


def test_what_stands_still_is_ended_with_its_phase() -> None:
    process = started("interruption.limit(1)\n" + STUBBORN)
    code, _, err = ended(process)
    assert code == 7
    assert err.startswith(
        "error: the command must go on within 1 s (runtime.timeout_s), but stands still while building"
    )


@pytest.mark.parametrize("phase", ["IMPORTING", "COMPILING"])
def test_what_computes_does_not_stand_still(phase: str) -> None:
    """Nor does what waits for a child that computes."""
    spin = "end = time.monotonic() + 5\nwhile time.monotonic() < end: pass\n"
    if phase == "COMPILING":
        spin = f"import subprocess; subprocess.run([sys.executable, '-c', {'import time' + chr(10) + spin!r}])\n"
    process = started(
        f"interruption.limit(3)\ncurrent().enter({phase})\nprint('ready', flush=True)\n{spin}interruption.leave(0)"
    )
    assert ended(process)[0] == 0
