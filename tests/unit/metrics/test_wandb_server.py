"""The real wandb: into the run's folder, against a server that answers, and against one that never does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.metrics.wandb_fixtures import KEY, Voice, make_sink, wandb_server
from trainer.config.schema import WandbMode
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics import wandb_sink
from trainer.metrics.sink import Row, Sample

FINISHED = RunEnd("finished", 5, 1.0)


@pytest.fixture(autouse=True)
def fresh_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings are read once a process: begin and end without wandb's helper."""
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    wandb_sink._end_service()
    yield
    wandb_sink._end_service()


def train(run_dir: Path, steps: range, report: StepReport, end: RunEnd = FINISHED) -> Voice:
    voice = Voice()
    sink = make_sink(run_dir, voice)
    sink.start(steps[0])
    for step in steps:
        sink.write({"step": step, "train/loss": 1.0 / step}, report)
    sink.end(end)
    return voice


def test_offline_really_writes_into_the_run_folder_and_needs_no_home(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing can be made below it, not even by root.
    monkeypatch.setenv("HOME", "/proc/no-home")
    voice = Voice()
    sink = make_sink(tmp_path, voice)
    sink.start(1)
    sink.write(row, report)
    sink.show([Sample(5, "def ", "f(x)")])
    sink.end(FINISHED)
    assert voice.warned == []
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = b""
    # wandb's own process writes the last block a moment after finish has returned.
    for _ in range(100):
        content = files[0].read_bytes()
        if b"run/wall_time_s" in content:
            break
        time.sleep(0.1)
    for part in (b"train/loss", b"hidden_size", b"run/wall_time_s", b"samples"):
        assert part in content
    assert b"s3cr3t-value" not in content
    assert (tmp_path / "wandb_run_id").read_text().strip() in files[0].name
    assert voice.noted == [f"wandb is offline; upload with: wandb sync {tmp_path / 'wandb'}"]


def test_the_line_that_is_printed_uploads_all_attempts_as_one_run(tmp_path: Path, report: StepReport) -> None:
    run_dir = tmp_path / "run of two"
    run_dir.mkdir()
    train(run_dir, range(1, 6), report, RunEnd("failed", 5, 1.0, "NumericsError: nan"))
    # Folders of attempts are named after the second in which they begin.
    time.sleep(1.1)
    [note] = train(run_dir, range(4, 9), report).noted
    command = note.partition("upload with: ")[2]
    assert command == f"wandb sync '{run_dir}/wandb'"
    with wandb_server() as server:
        environment = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "HOME": str(tmp_path)}
        script = f"{Path(sys.executable).parent}/{command}"
        done = subprocess.run(
            script, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
        )
    assert done.returncode == 0, done.stderr
    [run] = server.history
    assert run == (run_dir / "wandb_run_id").read_text().strip()
    lines = [server.history[run][index] for index in sorted(server.history[run])]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]
    # The server drops what does not go on from wandb's own count; ours tells it which steps were trained again.
    assert [line["_step"] for line in lines] == list(range(10))
    assert [(level, title) for level, title, _ in server.alerts] == [
        ("ERROR", "Loss or gradients not finite"),
        ("INFO", "Training started again"),
    ]
    assert "tiny" in server.groups
    assert any("model" in config for config in server.configs)


def test_a_server_that_accepts_and_never_answers_holds_up_no_step(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink, "_INIT_S", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))
    voice = Voice()
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{hole.getsockname()[1]}")
        sink = make_sink(tmp_path, voice, WandbMode.online)
        sink.start(1)
        for _ in range(10):
            sink.write(row, report)
        assert voice.warned == [], "rows must not wait until the server is given up"
        sink.end(FINISHED)
    assert len(voice.warned) == 1
    assert voice.warned[0].startswith("wandb is off for the rest of this run (")
