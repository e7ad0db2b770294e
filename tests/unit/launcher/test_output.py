from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainer.launcher import output
from trainer.launcher.output import tail

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 30

_RANK = """
import os, sys
from pathlib import Path
from trainer.launcher.output import send_output_to
out, err = send_output_to(Path(sys.argv[1]))
print("python noise")
print("python complaint", file=sys.stderr)
sys.stdout.flush()
os.write(1, b"C noise\\n")
os.write(2, b"C complaint\\n")
print("step 1", file=out)
print("error: broken", file=err)
"""

_PARENT = """
import subprocess, sys, os
from trainer.launcher.output import shared_output
print("parent before", flush=True)
with shared_output():
    environment = {**os.environ, "TRIDENT_CONSOLE_PID": str(os.getpid())}
    subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]], env=environment, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("parent inside", flush=True)
print("parent after", flush=True)
"""


def environment(**extra: str) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def in_parent(log: Path) -> list[str]:
    return [sys.executable, "-c", _PARENT, _RANK, str(log)]


def test_a_rank_splits_noise_from_what_a_person_reads(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "rank_0.log"
    command = [sys.executable, "-c", _RANK, str(log)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert result.stdout == "step 1\n"
    assert result.stderr == "error: broken\n"
    assert sorted(log.read_text().splitlines()) == ["C complaint", "C noise", "python complaint", "python noise"]
    subprocess.run(command, env=environment(), capture_output=True, timeout=TIMEOUT_S, check=True)
    assert len(log.read_text().splitlines()) == 8, "a log grows with every attempt"


_NOISE = """
import logging, sys
from pathlib import Path
from trainer.launcher.output import send_output_to
logging.basicConfig(stream=sys.stdout, level="INFO")
out, err = send_output_to(Path("/dev/full"))
logging.info("library noise")
print("python noise", flush=True)
sys.stderr.write("python complaint" * 10000)
print("step 1", file=out)
sys.stdout.write("left in the buffer")
"""


def test_a_log_on_a_full_disk_loses_its_lines_and_nothing_else() -> None:
    command = [sys.executable, "-c", _NOISE]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "step 1\n", "")


def test_a_console_that_is_gone_leaves_the_ranks_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RANK, str(tmp_path / "log")]
    nobody = environment(TRIDENT_CONSOLE_PID="999999999")
    result = subprocess.run(command, env=nobody, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert (result.stdout, result.stderr) == ("step 1\n", "error: broken\n")


def test_a_log_that_cannot_be_written_is_a_storage_fault(tmp_path: Path) -> None:
    code = (
        "import sys, pytest\nfrom pathlib import Path\nfrom trainer.errors import StorageError\n"
        "import trainer.launcher.output as output\n"
        "def refuse(*a, **k): raise OSError(28, 'No space left on device')\n"
        "output.os.open = refuse\n"
        "with pytest.raises(StorageError, match='the disk is full'):\n    output.send_output_to(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    subprocess.run(command, env=environment(), timeout=TIMEOUT_S, check=True)


LINES = ["parent before", "step 1", "parent inside", "parent after"]


def test_a_pipe_is_shared_with_the_ranks(tmp_path: Path) -> None:
    result = subprocess.run(
        in_parent(tmp_path / "log"), env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert result.stdout.splitlines() == LINES
    assert result.stderr == "error: broken\n"


def test_writers_of_one_file_do_not_overwrite_each_other(tmp_path: Path) -> None:
    # Without append mode the rank would write at position 0, over the parent's first line.
    with (tmp_path / "out").open("wb") as out:
        subprocess.run(in_parent(tmp_path / "log"), env=environment(), stdout=out, timeout=TIMEOUT_S, check=True)
    assert (tmp_path / "out").read_text().splitlines() == LINES


def test_output_that_nobody_can_open_is_copied(tmp_path: Path) -> None:
    # A socket, as systemd gives its services: /proc refuses to open it.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            in_parent(tmp_path / "log"), env=environment(), stdout=theirs.fileno(), stderr=theirs.fileno()
        )
        assert process.wait(TIMEOUT_S) == 0
        theirs.close()
        ours.settimeout(TIMEOUT_S)
        text = b"".join(iter(lambda: ours.recv(4096), b"")).decode()
    assert [line for line in text.splitlines() if not line.startswith("error:")] == LINES
    assert "error: broken\n" in text


def test_a_reader_that_goes_away_stops_nobody(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.close()
        command = ["sh", "-c", 'trap "" PIPE; exec "$@"', "sh", *in_parent(tmp_path / "log")]
        code = "import sys; sys.argv[1:]"  # the parent's own prints would fail: it writes nothing before and after
        quiet = _PARENT.replace('print("parent before", flush=True)', code).replace(
            'print("parent after", flush=True)', ""
        )
        command[command.index(_PARENT)] = quiet
        assert (
            subprocess.run(
                command, env=environment(), stdout=theirs.fileno(), timeout=TIMEOUT_S, check=False
            ).returncode
            == 0
        )


@pytest.mark.timeout(30)
def test_ranks_can_write_on_when_nobody_reads_the_copy() -> None:
    source, writer = os.pipe()
    reader, target = os.pipe()
    os.close(reader)
    copying = threading.Thread(target=output._copy, args=(source, target), daemon=True)
    copying.start()
    # More than a pipe holds: it would block for ever.
    for _ in range(64):
        os.write(writer, b"x" * 8192)
    os.close(writer)
    copying.join(20)
    assert not copying.is_alive()


def test_closed_output_is_no_fault(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *in_parent(tmp_path / "log")]
    assert subprocess.run(command, env=environment(), timeout=TIMEOUT_S, check=False).returncode == 0


def test_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == []
    log.write_bytes(b"".join(f"line {index}\n".encode() for index in range(30)) + b"\xff end")
    assert tail(log, 3) == ["line 28", "line 29", "\ufffd end"]
    assert len(tail(log)) == 20
    start = log.stat().st_size
    with log.open("ab") as file:
        file.write(b"\nnew\n")
    assert tail(log, start=start) == ["", "new"]
    assert tail(log, start=10**9) == []


def test_the_tail_of_a_huge_log_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 34)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert tail(log, 1) == ["last"]


def test_a_killed_rank_does_not_leave_the_terminal_without_a_cursor() -> None:
    primary, secondary = pty.openpty()
    code = "from trainer.launcher.output import shared_output\nwith shared_output():\n    pass\n"
    subprocess.run([sys.executable, "-c", code], env=environment(), stdout=secondary, timeout=TIMEOUT_S, check=True)
    os.close(secondary)
    with os.fdopen(primary, "rb", buffering=0) as screen:
        assert screen.read(64) == b"\x1b[?25h"
