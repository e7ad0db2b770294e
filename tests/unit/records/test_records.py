from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from trainer.config.schema import TridentConfig
from trainer.config.written import to_yaml
from trainer.errors import ConfigError
from trainer.records.metric_columns import read_metrics
from trainer.records.run_record import layout_of, read_overview, read_record, runs_below
from trainer.records.run_status import SILENT_S, State

Make = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has done 4 of 1000 steps and is gone."""
    folder = tmp_path / "mine"
    (folder / "logs").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(to_yaml(TridentConfig()))
    write_rows(folder, [1, 2, 3, 4])
    return folder


def write_rows(folder: Path, steps: Sequence[int]) -> None:
    rows = ({"step": step, "train/loss": 6.0 / step, "time/step_ms": 10} for step in steps)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_summary(folder: Path, **values: object) -> None:
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "step": 4, **values}))


def write_events(folder: Path, *events: dict[str, object]) -> None:
    lines = ({"time": f"2026-11-30T09:00:{number:02d}.000+00:00", **event} for number, event in enumerate(events))
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def enter(folder: Path, rank: int, pid: int, host: str = "", started: float = 0.0) -> None:
    entry = {"host": host or socket.gethostname(), "pid": pid, "started": started}
    (folder / "logs" / f"rank_{rank}.pid").write_text(json.dumps(entry))


def test_a_whole_run_is_read(run: Path) -> None:
    write_summary(run, versions={"torch": "2.13.0"}, source={"commit": "87f30afdf2b9cf9b46db", "has_changes": True})
    (run / "samples.jsonl").write_text(
        '{"step": 4, "prompt": "def ", "text": "f():"}\n{"step": 2, "prompt": "a", "text": "b"}\n'
    )
    record = read_record(run)
    assert (record.name, record.typed_config) == ("default", TridentConfig())
    assert record.config["model.hidden_size"] == TridentConfig().model.hidden_size
    assert record.metrics.steps.tolist() == [1, 2, 3, 4]
    steps, losses = record.metrics.series("train/loss")
    assert (steps.tolist(), losses.tolist()) == ([1, 2, 3, 4], [6.0, 3.0, 2.0, 1.5])
    assert record.metrics.names == ("train/loss", "time/step_ms")
    assert record.status.state is State.finished
    assert (record.status.step, record.status.steps) == (4, TridentConfig().train.steps)
    assert record.environment == {"torch": "2.13.0", "commit": "87f30afdf2b9 with changes"}
    assert [sample.step for sample in record.samples] == [2, 4]
    assert (len(record.discarded), record.notes) == (0, ())


def test_the_last_row_of_a_step_counts_and_the_others_are_kept(run: Path) -> None:
    write_rows(run, [1, 2, 3])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/loss": 9, "eval/loss": 8}\n{"step": 3, "train/loss": 7}\n')
    record = read_record(run)
    assert record.metrics.steps.tolist() == [1, 2, 3]
    assert record.metrics.series("train/loss")[1].tolist() == [6.0, 9.0, 7.0]
    assert record.metrics.series("time/step_ms")[0].tolist() == [1]
    assert record.metrics.series("eval/loss")[0].tolist() == [2]
    assert record.discarded.steps.tolist() == [2, 3]
    assert record.discarded.series("train/loss")[1].tolist() == [3.0, 2.0]
    assert record.notes == (
        "metrics.jsonl has 2 rows of steps that come again later in it; the last row of a step counts",
    )


@pytest.mark.parametrize(
    ("text", "steps", "note"),
    [
        (
            b'{"step": 1}\n{"step": 2, "tr',
            [1],
            "the last line is not whole: it is being written, or the run was killed",
        ),
        (b'{"step": 1}\n{"st{"step": 2}\n', [1, 2], "1 line holds a row behind the beginning of another"),
        (b'{"step": 1}\nwhat\n\n[2]\n{"step": 3}\n', [1, 3], "2 lines hold no row (the first is line 2)"),
        (b'{"step": 1}\n{"loss": 2}\n{"step": -1}\n{"step": true}\n', [1], "3 lines hold no row"),
        (b'{"step": 3}\n{"step": 1}\n{"step": 2}', [1, 2, 3], None),
        (b"\x00\xff\xfe\n{" + b'"a":{' * 5000 + b"\n", [], "2 lines hold no row (the first is line 1)"),
        (b'{"step": 1e400}\n{"step": 2.0}\r\n', [2], "1 line holds no row"),
        (b"x" * (3 << 20) + b'\n{"step": 4}\n', [4], "1 line holds no row (the first is line 1)"),
        (b"", [], None),
    ],
)
def test_damaged_rows_are_left_out_and_noted(run: Path, text: bytes, steps: list[int], note: str | None) -> None:
    (run / "metrics.jsonl").write_bytes(text)
    record = read_record(run)
    assert record.metrics.steps.tolist() == steps
    assert record.notes == ((f"metrics.jsonl: {note}",) if note else ())


def test_values_that_are_not_finite_or_no_numbers(run: Path) -> None:
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "a": NaN, "b": null, "c": "text", "d": [1], "e": true}\n'
        '{"step": 2, "a": Infinity, "b": "nan", "c": 5}\n'
        f'{{"step": 3, "a": 1, "b": -1e999, "c": {10**400}}}\n'
    )
    metrics = read_record(run).metrics
    assert metrics.names == ("a", "b", "c")
    np.testing.assert_array_equal(metrics.series("a")[1], [np.nan, np.inf, 1.0])
    np.testing.assert_array_equal(metrics.series("b")[1], [np.nan, np.nan, -np.inf])
    assert metrics.series("c")[0].tolist() == [2, 3]
    assert (metrics.last("a"), metrics.last("b"), metrics.last("c"), metrics.last("none")) == (1.0, None, 5.0, None)


def test_two_hundred_thousand_rows_are_read_in_a_moment(tmp_path: Path) -> None:
    names = [f"group{number}/some_metric_ms" for number in range(25)]
    rest = ", ".join(f'"{name}": {0.1 + number / 3}' for number, name in enumerate(names))
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, {rest}}}\n' for step in range(200_000)))
    began = time.process_time()
    metrics, _ = read_metrics(path, [])
    # 1.0 to 1.6 s were measured beside other processes; the machine's own speed varies by a factor of two.
    assert time.process_time() - began < 4
    assert len(metrics) == 200_000
    assert metrics.last(names[-1]) == 8.1


def test_a_config_of_another_version(run: Path) -> None:
    (run / "config.yaml").write_text(
        "name: old\nmodel: {hidden_size: 64, width: 3}\nnew: {deep: {er: [1]}}\ntrain: {steps: 7}\n"
    )
    record = read_record(run)
    assert record.typed_config is None
    assert record.config == {
        "name": "old",
        "model.hidden_size": 64,
        "model.width": 3,
        "new.deep.er": [1],
        "train.steps": 7,
    }
    assert (record.name, record.status.steps) == ("old", 7)
    assert record.notes[0].startswith("config.yaml is not one of this version: there is no key 'model.width'")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", b"a: [1\n"),
        ("config.yaml", b"[1, 2]"),
        ("config.yaml", b"\xff\x00"),
        ("plan.json", b"{"),
        ("plan.json", b"[]"),
        ("summary.json", b"[" * 100_000),
        ("summary.json", b""),
    ],
)
def test_a_file_that_cannot_be_read_is_noted(run: Path, name: str, text: bytes) -> None:
    (run / name).write_bytes(text)
    record = read_record(run)
    assert record.metrics.steps.tolist() == [1, 2, 3, 4]
    assert any(note.startswith(name) for note in record.notes)
    assert all("\n" not in note for note in record.notes)


@pytest.mark.timeout(20)
def test_pipes_and_devices_are_not_read(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    for name in ("metrics.jsonl", "events.jsonl", "restarts.json", "ledger.jsonl", "samples.jsonl", "summary.json"):
        os.mkfifo(run / name)
    for name in ("lock", "plan.json"):
        (run / name).symlink_to("/dev/zero")
    for name in ("rank_0.pid", "failure", "skipped_batches.jsonl"):
        os.mkfifo(run / "logs" / name)
    record = read_record(run)
    assert (len(record.metrics), record.events, record.status.state) == (0, (), State.unknown)
    assert read_overview(run).last == {}


def test_folders_in_the_place_of_files(run: Path) -> None:
    for name in ("metrics.jsonl", "config.yaml"):
        (run / name).unlink()
    for name in ("metrics.jsonl", "events.jsonl", "ledger.jsonl", "summary.json", "plan.json", "lock"):
        (run / name).mkdir()
    (run / "checkpoints").rmdir()
    (run / "checkpoints").write_text("a file")
    assert read_record(run).status.state is State.unknown


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "end", "step": 1e5, "status": 7, "error": {"a": 1}},
        {"kind": "rewind", "step": -3, "to": {}, "time": "2026-13-45"},
        {"kind": "spike", "step": 2, "loss": "x", "limit": None, "time": "2026-11-30T10:00:00"},
        {"kind": "restart", "step": None, "lost_ranks": ["a", None], "by": 5},
        {"kind": "start", "layout": ["x"]},
    ],
)
def test_events_of_any_content_are_said(run: Path, line: dict[str, object]) -> None:
    (run / "events.jsonl").write_text(json.dumps(line) + "\n")
    (event,) = read_record(run).events
    assert event.text
    assert event.step is None or event.step >= 0


def test_aliases_of_yaml_do_not_fill_the_memory(run: Path) -> None:
    lines = ["a0: &a0 [1, 2]", *(f"a{number}: &a{number} [*a{number - 1}, *a{number - 1}]" for number in range(1, 60))]
    (run / "config.yaml").write_text("\n".join(lines))
    record = read_record(run)
    assert (record.config, record.typed_config) == ({}, None)
    assert record.notes == ("config.yaml cannot be read: it must have no aliases, but has some",)


def test_without_an_end_a_run_has_crashed(run: Path) -> None:
    status = read_record(run).status
    assert (status.state, status.reason, status.step) == (State.crashed, "it wrote down no end", 4)


def test_a_summary_that_later_rows_have_passed_does_not_count(run: Path) -> None:
    write_summary(run, status="stopped", step=2)
    assert read_record(run).status.state is State.crashed
    write_summary(run, status="stopped", step=4)
    assert read_record(run).status.state is State.stopped


def test_a_failure_says_its_error(run: Path) -> None:
    write_summary(run, status="failed", error="NumericsError: the loss is not finite")
    status = read_record(run).status
    assert (status.state, status.reason) == (State.failed, "NumericsError: the loss is not finite")


def test_a_failure_after_an_earlier_end(run: Path) -> None:
    write_summary(run, status="stopped")
    (run / "logs" / "failure").write_text("6")
    status = read_record(run).status
    assert (status.state, status.reason) == (State.failed, "a rank reported exit code 6: out of memory")


def test_a_run_whose_lock_is_held_is_running(run: Path) -> None:
    write_summary(run)
    with (run / "lock").open("w") as lock:
        lock.write("process 12 on node1\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = read_record(run).status
        assert (status.state, status.reason) == (State.running, "its lock is held by process 12 on node1")
        assert not status.is_over
    assert read_record(run).status.state is State.finished


def test_ranks_that_run_and_ranks_that_were_killed(run: Path) -> None:
    me = psutil.Process()
    enter(run, 0, me.pid, started=me.create_time())
    status = read_record(run).status
    assert (status.state, status.reason) == (State.running, "rank 0 of it runs on this machine")
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    enter(run, 0, process.pid, started=1.0)
    enter(run, 3, process.pid, started=1.0)
    status = read_record(run).status
    assert (status.state, status.reason) == (State.crashed, "ranks 0, 3 ended without a word: they were killed")


def test_ranks_of_another_machine_are_believed_while_the_run_writes(run: Path) -> None:
    enter(run, 2, 77, host="node9")
    status = read_record(run).status
    assert (status.state, status.reason) == (State.running, "its ranks on node9 have not signed out")
    for path in [run / "checkpoints", *run.glob("*.*")]:
        os.utime(path, (0, time.time() - SILENT_S - 1))
    status = read_record(run).status
    assert status.state is State.unknown
    assert status.reason == "its ranks on node9 have not signed out, but write nothing any more; look there"


def test_events_are_read_and_said_in_words(run: Path) -> None:
    write_events(
        run,
        {"kind": "start", "step": 1, "layout": "pp2 tp2 dp1"},
        {"kind": "evaluation", "step": 2, "loss": 3.25},
        {"kind": "save", "step": 2, "write_s": 0.1},
        {"kind": "save_failed", "step": 2, "reason": "the disk is full"},
        {"kind": "spike", "step": 3, "loss": 9.5, "limit": 6},
        {"kind": "rewind", "step": 3, "to": 2},
        {"kind": "skip", "step": 3, "reason": "not finite", "loss": None},
        {"kind": "restart", "step": 4, "by": "Slurm", "lost_ranks": [1, 2], "exit_code": 7},
        {"kind": "restart", "step": 4, "by": "trident", "lost_ranks": [], "exit_code": 1},
        {"kind": "teleport_done", "step": "x"},
        {"kind": "end", "step": 4, "status": "stopped"},
    )
    with (run / "events.jsonl").open("a") as file:
        file.write('{"kind": 3}\n{"kind": "end", "st')
    record = read_record(run)
    assert [(event.kind, event.step, event.text) for event in record.events] == [
        ("start", 1, "started on pp2 tp2 dp1"),
        ("evaluation", 2, "evaluated: loss 3.25"),
        ("save", 2, "saved a checkpoint"),
        ("save_failed", 2, "could not save a checkpoint: the disk is full"),
        ("spike", 3, "skipped a spike of the loss: 9.5, limit 6"),
        ("rewind", 3, "went back to the checkpoint of step 2"),
        ("skip", 3, "skipped a batch, which was not finite"),
        ("restart", 4, "was started again by Slurm after ranks 1, 2 were lost"),
        ("restart", 4, "was started again by trident after exit code 1"),
        ("teleport_done", None, "teleport done"),
        ("stop", 4, "stopped as asked"),
    ]
    assert str(record.events[1].time) == "2026-11-30 09:00:01+00:00"
    assert record.status.state is State.stopped


def test_a_start_without_an_end_outweighs_an_earlier_summary(run: Path) -> None:
    write_summary(run)
    write_events(run, {"kind": "start", "step": 1}, {"kind": "end", "step": 4, "status": "finished"})
    assert read_record(run).status.state is State.finished
    write_events(
        run,
        {"kind": "start", "step": 1},
        {"kind": "end", "step": 4, "status": "finished"},
        {"kind": "start", "step": 5},
    )
    assert read_record(run).status.state is State.crashed


def test_events_of_a_run_that_kept_no_list(run: Path) -> None:
    sizes = {"final": 4, "warmup": []}
    start = {"position": 0, "ledger": "", "seq_length": 8, "sample_length": 8, "stream": "s", "sizes": sizes}
    (run / "ledger.jsonl").write_text("".join(json.dumps({"step": step, **start}) + "\n" for step in (1, 3)))
    (run / "restarts.json").write_text(json.dumps([{"step": 2, "by": "torchrun", "exit_code": 7, "lost_ranks": [1]}]))
    (run / "logs" / "skipped_batches.jsonl").write_text('{"step": 4, "reason": "spike", "loss": 9, "limit": 5}\n')
    (run / "checkpoints" / "step_2").mkdir()
    (run / "checkpoints" / "step_2" / "manifest.json").write_text('{"versions": {"torch": "1"}}')
    (run / "checkpoints" / ".step_4.partial").mkdir()
    record = read_record(run)
    assert [(event.kind, event.step) for event in record.events] == [
        ("start", 1),
        ("restart", 2),
        ("save", 2),
        ("start", 3),
        ("spike", 4),
    ]
    assert (record.checkpoints, record.environment, len(record.starts)) == ((2,), {"torch": "1"}, 2)


def test_an_overview_agrees_with_the_record(run: Path) -> None:
    write_summary(run)
    (run / "plan.json").write_text(json.dumps({"layout": {"pipeline_parallel_size": 2, "tensor_parallel_size": 1}}))
    record, overview = read_record(run), read_overview(run)
    assert (overview.status.state, overview.status.step) == (record.status.state, record.status.step)
    assert overview.last == {"step": 4, "train/loss": 1.5, "time/step_ms": 10}
    assert overview.layout == "pp2 tp1"
    assert layout_of(None, {"layout.pipeline_parallel_size": 4, "layout.data_parallel_size": None}) == "pp4"


def refused(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_record(path)
    return caught.value


def test_an_overview_notes_rows_that_may_not_be_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.open

    def refused_here(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "metrics.jsonl":
            raise PermissionError(13, "Permission denied")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refused_here)
    overview = read_overview(run)
    assert (dict(overview.last), overview.notes) == ({}, ("metrics.jsonl cannot be read: Permission denied",))


def test_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    assert (
        str(refused(tmp_path))
        == f"RUN must be the folder of a run, but {tmp_path} holds neither config.yaml nor metrics.jsonl"
    )
    assert refused(tmp_path).hints == (f"runs there are {run}",)
    gone = refused(tmp_path / "mime")
    assert (str(gone), gone.hints) == (
        f"RUN must be the folder of a run, but {tmp_path / 'mime'} is not there",
        (f"runs there are {run}",),
    )
    file = refused(run / "metrics.jsonl")
    assert str(file) == f"RUN must be the folder of a run, but {run / 'metrics.jsonl'} is a file"
    (tmp_path / "empty").mkdir()
    assert str(refused(tmp_path / "empty")).endswith("is empty")
    inner = run / "checkpoints" / "step_4"
    inner.mkdir()
    assert str(refused(inner)) == f"RUN must be the folder of a run, but {inner} is a checkpoint of one; use {run}"
    assert str(refused(tmp_path / ("x" * 300))).startswith("RUN must be a folder that can be read")


def test_runs_are_found_two_folders_deep(run: Path, tmp_path: Path) -> None:
    deep = tmp_path / "sweep" / "0"
    deep.mkdir(parents=True)
    (deep / "metrics.jsonl").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "metrics.jsonl").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert runs_below(tmp_path)[:2] == [tmp_path / "loop" / "mine", run]
    assert deep in runs_below(tmp_path)
    assert runs_below(tmp_path / "nothing") == []
