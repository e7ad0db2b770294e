"""A run's folder on another machine, copied as it grows. Only a shell is needed there, and nothing is written."""

from __future__ import annotations

import base64
import binascii
import json
import queue
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from trainer.errors import ConfigError, PeerLostError, TridentError
from trainer.launcher.roster import Roster
from trainer.records.printable import printable
from trainer.records.signs import Signs
from trainer.run_paths import LOCK, LOGS, METRICS

FIRST_BYTES = 8 << 20
"""Bytes of metrics.jsonl that are fetched at first, from its end: the rows before them are not looked at."""
_NO_FOLDER = 3
"""Exit code of the script if there is no such folder."""
_SMALL = re.compile(r"[a-z]+\.(yaml|json|jsonl)|lock|logs/failure|logs/rank_[0-9]{1,9}\.pid")
"""Names of files that the script sends; a machine that sends another one is not obeyed."""
SCRIPT = r"""
cd -- {path} 2>/dev/null || exit 3
printf 'TRIDENT\n'
send() {{ printf 'FILE %s ' "$1"; base64 < "$1" | tr -d '\n'; printf '\n'; }}
when() {{ stat -c %Y "$1" 2>/dev/null || date -r "$1" +%s 2>/dev/null; }}
marks='' inode='' offset=0
while :; do
  printf 'FRAME %s %s\n' "$(date +%s)" "$(hostname)"
  files=
  for f in config.yaml plan.json summary.json events.jsonl restarts.json ledger.jsonl \
    lock logs/failure logs/rank_*.pid; do
    [ -f "$f" ] && files="$files $f"
  done
  now=$(ls -lid $files 2>/dev/null)
  if [ "$now" != "$marks" ]; then
    marks=$now
    printf 'CLEAR\n'
    for f in $files; do send "$f"; done
  fi
  for f in logs/rank_*.pid; do
    [ -f "$f" ] || continue
    pid=$(sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p' "$f")
    if [ -n "$pid" ] && {{ [ -d "/proc/$pid" ] || ps -p "$pid" >/dev/null 2>&1; }}; then printf 'ALIVE %s\n' "$f"; fi
  done
  if [ -f lock ] && command -v flock >/dev/null 2>&1 && ! flock -n -s lock true 2>/dev/null; then printf 'LOCKED\n'; fi
  for f in metrics.jsonl summary.json config.yaml events.jsonl logs/rank_0.log; do
    [ -f "$f" ] && printf 'WRITTEN %s\n' "$(when "$f")"
  done
  if [ -f metrics.jsonl ]; then
    size=$(($(wc -c < metrics.jsonl)))
    found=$(ls -id metrics.jsonl | awk '{{print $1}}')
    if [ "$found" != "$inode" ] || [ "$size" -lt "$offset" ]; then
      inode=$found offset=0
      [ "$size" -gt {first} ] && offset=$((size - {first}))
      printf 'ANEW\n'
    fi
    if [ "$size" -gt "$offset" ]; then
      printf 'ROWS '
      tail -c "+$((offset + 1))" metrics.jsonl | head -c "$((size - offset))" | base64 | tr -d '\n'
      printf '\n'
      offset=$size
    fi
  fi
  printf 'END\n' || exit 0
  [ {once} = 1 ] && exit 0
  sleep {every}
done
"""
"""Text that the shell of the other machine runs. POSIX, with base64; flock and ps make the state exact."""


class SshFolder:
    """Keeps a copy of a run's small files and of the end of its rows in a folder of this machine's own.

    Args:
        host: the machine, as ssh knows it.
        path: the run's folder there.
        every_s: seconds between two looks.
        is_once: true to look once.
    """

    def __init__(self, host: str, path: str, every_s: float = 2.0, is_once: bool = False) -> None:
        self.host, self.there = host, path
        self._script = SCRIPT.format(
            path=shlex.quote(path), first=FIRST_BYTES, once=int(is_once), every=max(1, round(every_s))
        )
        self._folder = tempfile.TemporaryDirectory(prefix="trident-watch-")
        self.copy = Path(self._folder.name) / "run"
        self._errors = (Path(self._folder.name) / "errors").open("w+b")
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.signs = Signs()
        self.heard_at = time.monotonic()
        """Time of the last answer."""
        self._process: subprocess.Popen[bytes] | None = None
        self._frame: list[bytes] | None = None
        """Lines of the look that is arriving; None: the script has not begun to speak."""
        self._is_reached = False

    def __enter__(self) -> SshFolder:
        (self.copy / "logs").mkdir(parents=True)
        command = ["ssh", "-T", "--", self.host, "sh", "-s"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as error:
            self.close()
            raise ConfigError(
                f"RUN on another machine needs the command ssh, but it cannot be started ({error.strerror}); install "
                "OpenSSH's client"
            ) from error
        threading.Thread(target=self._listen, name="ssh", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and remove the copy."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        self._folder.cleanup()

    def _listen(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError, ValueError):
            process.stdin.write(self._script.encode())
            process.stdin.close()
        with suppress(OSError, ValueError):
            for line in process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def look(self, timeout_s: float) -> bool:
        """Wait for the next look to arrive; return False if it did not in time.

        Raises:
            ConfigError: the machine is not reached, or the folder is not there.
            PeerLostError: the connection ended.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return False
            if line is None:
                raise self._ended()
            # A machine may greet before its shell runs the script.
            if self._frame is None:
                self._frame = [] if line.rstrip() == b"TRIDENT" else None
                continue
            self._frame.append(line.rstrip(b"\r\n"))
            if self._frame[-1] == b"END":
                frame, self._frame = self._frame, []
                self._take(frame)
                self._is_reached, self.heard_at = True, time.monotonic()
                return True

    def _ended(self) -> TridentError:
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        said = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        reason = printable(said[-1]) if said else f"exit code {code}"
        if code == _NO_FOLDER:
            return ConfigError(f"RUN must be the folder of a run, but {self.host} has no folder {self.there}")
        if self._is_reached:
            return PeerLostError(f"the connection to {self.host} must last while a run is watched, but ended: {reason}")
        return ConfigError(
            f"RUN must be on a machine that ssh reaches, but `ssh {self.host}` ended: {reason}",
            hints=[f"this must work: ssh {self.host} true"],
        )

    def _take(self, frame: Sequence[bytes]) -> None:
        """Put what arrived into the copy."""
        now, host, is_locked = 0.0, "", False
        written: list[float] = []
        alive: set[str] = set()
        for line in frame:
            kind, _, rest = line.partition(b" ")
            words = rest.decode(errors="replace").split(" ")
            if kind == b"FRAME":
                now, host = _number(words[0]), " ".join(words[1:])
            elif kind == b"CLEAR":
                self._clear()
            elif kind == b"FILE" and len(words) == 2 and _SMALL.fullmatch(words[0]):
                (self.copy / words[0]).write_bytes(_decoded(words[1]))
            elif kind == b"ALIVE":
                alive.add(words[0])
            elif kind == b"LOCKED":
                is_locked = True
            elif kind == b"WRITTEN" and _number(words[0]):
                written.append(_number(words[0]))
            elif kind in (b"ANEW", b"ROWS"):
                self._take_rows(kind, rest)
        self.signs = self._signs(host, alive, is_locked, max(written, default=None), now)

    def _clear(self) -> None:
        for path in self.copy.rglob("*"):
            if path.is_file() and path.name != METRICS:
                path.unlink()

    def _take_rows(self, kind: bytes, rest: bytes) -> None:
        path = self.copy / METRICS
        if kind == b"ANEW":
            # Made beside the other one, so that it is another file for who reads on.
            anew = self.copy / f".{METRICS}"
            anew.write_bytes(b"")
            anew.replace(path)
            return
        with path.open("ab") as file:
            file.write(_decoded(rest.decode(errors="replace")))

    def _signs(self, host: str, alive: set[str], is_locked: bool, changed: float | None, now: float) -> Signs:
        logs = self.copy / LOGS
        here: dict[int, bool] = {}
        elsewhere: dict[int, str] = {}
        for path in logs.glob("rank_*.pid"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                entry = json.loads(path.read_text())
                rank = int(path.stem.removeprefix("rank_"))
                if entry["host"] == host:
                    here[rank] = f"{LOGS}/{path.name}" in alive
                else:
                    elsewhere[rank] = str(entry["host"])
        owner = ""
        with suppress(OSError):
            owner = printable((self.copy / LOCK).read_text(errors="replace").strip())
        return Signs(
            is_locked=is_locked,
            owner=owner,
            alive=tuple(sorted(rank for rank, is_alive in here.items() if is_alive)),
            lost=tuple(sorted(rank for rank, is_alive in here.items() if not is_alive)),
            elsewhere=dict(sorted(elsewhere.items())),
            failure=Roster(logs).told_failure(),
            changed=changed,
            now=now,
        )


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return b""


def _number(text: str) -> float:
    return float(text) if text.isdecimal() and len(text) < 16 else 0.0
