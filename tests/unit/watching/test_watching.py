from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.metrics.console_fixtures import console_of, seen
from trainer.config.schema import TridentConfig
from trainer.config.written import to_yaml
from trainer.errors import ConfigError, Interrupted, PeerLostError
from trainer.records.printable import printable
from trainer.records.run_status import State
from trainer.records.signs import Signs
from trainer.verbs.declare import Verb
from trainer.verbs.parse import parse
from trainer.verbs.runs import VERB as RUNS
from trainer.verbs.watch import VERB as WATCH
from trainer.watching import ssh_folder, watcher
from trainer.watching.row_follower import RowFollower
from trainer.watching.run_list import runs_verb
from trainer.watching.ssh_folder import SshFolder
from trainer.watching.watcher import LocalFolder, watch_verb

FAKE_SSH = '#!/bin/sh\n[ "$1 $2" = "-T --" ] || exit 9\nprintf "welcome to %s\\n" "$3"\nshift 3\nexec "$@"\n'
"""Stands in for ssh: runs the command on this machine, behind a greeting."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "logs").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(to_yaml(TridentConfig()))
    append(folder, 1, 2, 3)
    return folder


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces ssh by a script, which can be changed."""
    command = tmp_path / "bin" / "ssh"
    command.parent.mkdir()

    def write(text: str) -> None:
        command.write_text(text)
        command.chmod(0o755)

    write(FAKE_SSH)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return write


def append(folder: Path, *steps: int, **values: float) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            row = {"step": step, "train/loss": 6.0 / step, "time/step_ms": 1000.0, "perf/tokens_per_second": 1234.0}
            file.write(json.dumps({**row, **values}) + "\n")


def finish(folder: Path, step: int = 3, status: str = "finished") -> None:
    (folder / "summary.json").write_text(json.dumps({"status": status, "step": step}))


def shown(word: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert watch_verb(word, is_once=True) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_run_that_has_ended_is_shown_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(run)
    event = {"kind": "skip", "step": 2, "time": "2026-11-30T09:00:00+00:00", "reason": "not finite"}
    end = {"kind": "end", "step": 3, "time": "2026-11-30T09:01:00+00:00", "status": "finished"}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n" + json.dumps(end) + "\n")
    append(run, 4, **{"eval/loss": 2.5, "perf/mfu": 0.5, "perf/tflops_per_gpu": 3.0})
    lines = shown(str(run), capsys)
    assert lines[0] == "run     default, pp1 tp1"
    assert lines[1] == f"folder  {run}"
    assert any(line.startswith("step 4 of 100") and line.endswith("done") for line in lines)
    assert any(line.startswith("speed   1.23k tokens/s   MFU 50.0%   3.00 TFLOP/s a GPU") for line in lines)
    assert "eval    2.5000 at step 4" in lines
    assert "events  step 3: finished   step 2: skipped a batch, which was not finite" in lines
    assert any(line.startswith("state   finished, wrote 0m") for line in lines)
    assert lines[-1] == "loss 6.0000 at step 1, 1.5000 at step 4"


def test_rows_of_other_versions_lack_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text('{"step": 5, "plan/step_ms": 3, "what": "ever"}\n')
    (run / "config.yaml").write_text("old: {key: 1}\nname: '\x1b[31mred'\n".replace("\x1b", "\\e").replace("'", '"'))
    lines = shown(str(run), capsys)
    assert lines[0] == "run     ?[31mred"
    assert "step 5   crashed" in lines
    assert "loss    not finite: the batch was skipped" in lines
    (run / "metrics.jsonl").unlink()
    assert "loss    no step is logged" in shown(str(run), capsys)


def test_losses_beyond_all_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1e308}\n{"step": 2, "train/loss": -1e308}\n')
    assert "loss    -1.0e+308" in shown(str(run), capsys)
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1e-320}\n{"step": 2, "train/loss": 2e-320}\n')
    assert "loss    2.0e-320   ▁█" in shown(str(run), capsys)
    (run / "metrics.jsonl").write_text(f'{{"step": 1, "train/loss": {10**400}, "perf/mfu": true}}\n')
    assert "loss    not finite: the batch was skipped" in shown(str(run), capsys)
    assert runs_verb(str(run), False) == runs_verb(str(run), True) == 0
    assert '"last": {\n   "step": 1\n  }' in capsys.readouterr().out
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    assert "loss    no step is logged" in shown(str(run), capsys)


class Played:
    """A source that changes the run at each look."""

    def __init__(self, folder: Path, *acts: Callable[[], object]) -> None:
        self.copy = folder
        self.signs: Signs | None = None
        self._acts: list[Callable[[], object]] = [lambda: None, *acts]

    def look(self, timeout_s: float) -> bool:
        return self._acts.pop(0)() is not False


def test_a_running_run_is_followed_to_its_end(run: Path) -> None:
    stream = io.StringIO()
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def end() -> None:
            finish(run, 5)
            fcntl.flock(lock, fcntl.LOCK_UN)

        source = Played(run, lambda: append(run, 4), lambda: False, lambda: append(run, 5), end)
        watcher._watch(source, "runs/mine", console_of(stream, terminal=True), is_once=False)
    assert source._acts == []
    lines = seen(stream.getvalue())
    assert any("eta 1m36s" in line for line in lines)
    assert stream.getvalue().count("\x1b[?25h") == 1, "the cursor must come back"
    assert lines[-1] == "loss 6.0000 at step 1, 1.2000 at step 5"


def test_a_machine_that_falls_silent_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watcher.Watched(LocalFolder(run), "node:mine")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 75)
    watched.refresh(is_heard=False)
    assert watched._more()["note"] == ["no answer for 1m15s"]


def test_rows_are_followed_also_where_they_are_written_anew(run: Path) -> None:
    follower = RowFollower(run / "metrics.jsonl")
    assert follower.read()
    assert [step for step, _ in follower.losses] == [1, 2, 3]
    assert not follower.read()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
        file.flush()
        assert follower.read()
        assert follower.row["step"] == 3
        file.write('ss": 1.0, "eval/loss": NaN}\nrubbish\n')
    follower.read()
    assert (follower.losses[-1], follower.evaluations) == ((4, 1.0), [])
    anew = run / "anew"
    anew.write_text('{"step": 1, "train/loss": 9.0}\n')
    anew.replace(run / "metrics.jsonl")
    assert follower.read()
    assert follower.losses == [(1, 9.0)]
    append(run, 5, 3)
    follower.read()
    assert [step for step, _ in follower.losses] == [1, 3]
    (run / "metrics.jsonl").unlink()
    assert not follower.read()


def test_another_machines_run_is_shown(run: Path, ssh: object, capsys: pytest.CaptureFixture[str]) -> None:
    finish(run)
    here = shown(str(run), capsys)
    there = shown(f"me@node:{run}", capsys)
    assert there[1] == f"folder  me@node:{run}"
    assert [line for line in there if "folder" not in line and "state" not in line] == [
        line for line in here if "folder" not in line and "state" not in line
    ]
    assert any(line.startswith("state   finished, wrote 0m") for line in there)


def test_another_machines_run_is_copied_as_it_grows(run: Path, ssh: object, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"host": socket.gethostname(), "pid": os.getpid(), "started": 0.0}
    (run / "logs" / "rank_0.pid").write_text(json.dumps(entry))
    (run / "logs" / "rank_1.pid").write_text(json.dumps({**entry, "pid": 4_100_000}))
    (run / "logs" / "rank_2.pid").write_text(json.dumps({**entry, "host": "node9"}))
    with (run / "lock").open("w") as lock, SshFolder("node", str(run), every_s=1) as source:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert source.look(60)
        signs = source.signs
        assert (signs.is_locked, signs.alive, signs.lost, dict(signs.elsewhere)) == (True, (0,), (1,), {2: "node9"})
        assert abs((signs.age_s or 0) - 0) < 60
        watched = watcher.Watched(source, "node:mine")
        assert watched._overview.status.state is State.running
        append(run, 4)
        (run / "logs" / "rank_1.pid").unlink()
        while watched._rows.row["step"] < 4:
            assert source.look(60)
            watched.refresh(is_heard=True)
        assert (source.copy / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
        assert source.signs.lost == ()
        kept = source.copy
    assert not kept.exists()


def test_only_the_end_of_long_rows_is_fetched(run: Path, ssh: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_folder, "FIRST_BYTES", 150)
    with SshFolder("node", str(run), is_once=True) as source:
        assert source.look(60)
        assert (source.copy / "metrics.jsonl").stat().st_size == 150
        follower = RowFollower(source.copy / "metrics.jsonl")
        follower.read()
        assert follower.row["step"] == 3


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (
            "#!/bin/sh\necho 'ssh: connect to host node port 22: refused' >&2\nexit 255\n",
            "ssh reaches, but `ssh node` ended",
        ),
        ("#!/bin/sh\nexit 255\n", "RUN must be on a machine that ssh reaches, but `ssh node` ended: exit code 255"),
        (FAKE_SSH, "RUN must be the folder of a run, but node has no folder /no/such"),
    ],
)
def test_a_machine_that_is_not_reached(script: str, error: str, ssh: Callable[[str], None]) -> None:
    ssh(script)
    with pytest.raises(ConfigError) as caught:
        watch_verb("node:/no/such", is_once=True)
    assert error in str(caught.value)


def test_without_ssh(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="needs the command ssh, but it cannot be started"):
        watch_verb(f"node:{run}", is_once=True)


def test_a_connection_that_ends(run: Path, ssh: Callable[[str], None]) -> None:
    with SshFolder("node", str(run), is_once=True) as source:
        assert source.look(60)
        with pytest.raises(PeerLostError, match="the connection to node must last while a run is watched, but ended"):
            source.look(60)


def test_a_machine_that_never_answers(ssh: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    ssh("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(watcher, "_FIRST_ANSWER_S", 0.3)
    with pytest.raises(ConfigError, match="RUN must be on a machine that answers, but node:x said nothing"):
        watch_verb("node:x", is_once=True)


def test_a_machine_that_sends_files_that_were_not_asked_for(tmp_path: Path) -> None:
    source = SshFolder("node", "x")
    (source.copy / "logs").mkdir(parents=True)
    source._take(
        [b"FRAME x", b"FILE ../../evil cm0=", b"FILE config.yaml not-base64", b"ROWS %%%", b"ALIVE", b"WRITTEN -"]
    )
    assert sorted(path.name for path in source.copy.rglob("*")) == ["config.yaml", "logs", "metrics.jsonl"]
    assert not (tmp_path / "evil").exists()
    source.close()


def test_a_folder_of_another_machine_that_is_no_run(tmp_path: Path, ssh: object) -> None:
    with pytest.raises(ConfigError, match=f"RUN must be the folder of a run, but node:{tmp_path} holds neither"):
        watch_verb(f"node:{tmp_path}", is_once=True)


def test_places(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    (run.parent / "a:b").mkdir()
    assert watcher._remote("mine") is None
    assert watcher._remote("a:b") is None
    assert watcher._remote("./no:such") is None
    assert watcher._remote("me@node:~/runs/x") == ("me@node", "~/runs/x")
    with pytest.raises(ConfigError, match="begins with a dash"):
        watcher._remote("-oProxyCommand=id:y")


def test_ctrl_c_ends_the_view_and_other_signals_the_command(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(name: str) -> None:
        def raising(*_: object) -> None:
            raise Interrupted(name, 130)

        monkeypatch.setattr(watcher, "_watch", raising)

    press("SIGINT")
    assert watch_verb(str(run), is_once=False) == 0
    press("SIGTERM")
    with pytest.raises(Interrupted):
        watch_verb(str(run), is_once=False)


def test_ctrl_c_at_a_terminal(run: Path) -> None:
    """In a process of its own, on a terminal of its own."""
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        master, slave = os.openpty()
        environment = {**os.environ, "TERM": "xterm", "LANG": "C.UTF-8"}
        command = [sys.executable, "-m", "trainer", "watch", str(run)]
        process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        try:
            text = b""
            while b"state" not in text:
                text += os.read(master, 65536)
            process.send_signal(signal.SIGINT)
            while True:
                try:
                    text += os.read(master, 65536)
                except OSError:
                    break
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            os.close(master)
    assert b"\x1b[?25h" in text
    assert b"Traceback" not in text
    assert b"asked to stop" not in text


def test_runs_are_listed_newest_first(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "sweep" / "lr=1"
    old.mkdir(parents=True)
    (old / "metrics.jsonl").write_text('{"step": 7, "train/loss": 1.25, "perf/tokens_per_second": 54321}\n')
    (old / "plan.json").write_text('{"layout": {"pipeline_parallel_size": 2}}')
    os.utime(old / "metrics.jsonl", (0, time.time() - 7200))
    (run / "plan.json").write_text("{")
    finish(run)
    assert runs_verb(str(tmp_path), as_json=False) == 0
    head, first, second, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "step", "loss", "eval", "layout", "tokens/s", "changed"]
    assert first.split()[:7] == ["mine", "finished", "3/100", "2.0000", "-", "pp1", "tp1"]
    assert second.split() == ["sweep/lr=1", "crashed", "7", "1.2500", "-", "pp2", "54.3k", "2h00m", "ago"]
    assert note.startswith("note: mine: plan.json cannot be read")
    assert runs_verb(str(tmp_path), as_json=True) == 0
    held = json.loads(capsys.readouterr().out)
    assert [(one["path"], one["state"], one["layout"]) for one in held] == [
        (str(run), "finished", "pp1 tp1"),
        (str(old), "crashed", "pp2"),
    ]
    assert runs_verb(str(run), as_json=False) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("mine")


def test_folders_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        runs_verb(None, as_json=False)
    assert str(caught.value) == f"FOLDER must be a folder that holds runs, but {tmp_path / 'runs'} is none"
    assert caught.value.hints == ("another folder: trident runs FOLDER",)
    with pytest.raises(
        ConfigError, match=f"FOLDER must hold runs, but there is none in {tmp_path} or 2 levels below it"
    ):
        runs_verb(".", as_json=False)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is none"):
        runs_verb("file", as_json=False)


@pytest.mark.parametrize(
    ("verb", "words", "error"),
    [
        (WATCH, [], "usage must be `trident watch RUN [--once]`, but is `trident watch`"),
        (WATCH, ["a", "b"], "usage must be `trident watch RUN [--once]`, but is `trident watch a b`"),
        (RUNS, ["a", "b"], "usage must be `trident runs [FOLDER] [--json]`, but is `trident runs a b`"),
    ],
)
def test_words_that_are_refused(verb: Verb, words: list[str], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        verb.run(parse(verb, words))
    assert str(caught.value) == error


def test_control_codes_are_not_shown() -> None:
    assert printable("a\x1b[31mb\nc\td\u2028e") == "a?[31mb c d e"
