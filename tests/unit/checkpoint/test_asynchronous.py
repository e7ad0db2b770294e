"""Saves that go on beside the training. What would take long waits for an event here, never for a clock."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.checkpoint_fixtures import FULL, Run, plan_of
from trainer.checkpoint import fragments as fragment_files
from trainer.checkpoint import save
from trainer.checkpoint.writer_thread import BackgroundWork
from trainer.engine.face import Fragment
from trainer.errors import StorageError
from trainer.run_events import read_events
from trainer.run_paths import LATEST
from trainer.topology.groups import Group

LONG_S = 30.0
"""A hang; nothing here waits for it unless something is broken."""


class Gate:
    """Holds the writing of tensors until it is opened, or lets it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.error: Exception | None = None
        self._write = fragment_files.write_fragments
        monkeypatch.setattr(save, "write_fragments", self._wait)

    def _wait(self, path: Path, fragments: Iterable[Fragment]) -> bool:
        self.reached.set()
        assert self.open.wait(LONG_S)
        if self.error is not None:
            raise self.error
        return self._write(path, fragments)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def run_of(run_dir: Path, control: Group, **settings: object) -> Run:
    return Run(run_dir, control, plan_of(**{"asynchronous": True, **settings}))  # type: ignore[arg-type]


def finished(run: Run) -> None:
    """Wait until the thread of the save under way has ended, as a step would find it some time."""
    assert run.hook._under_way is not None
    assert run.hook._under_way[1].wait(LONG_S)


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, control: Group, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, control)
    run.steps(3)
    assert gate.reached.wait(LONG_S)
    assert run.store.steps() == []
    assert run.measures.take().keys() == {"checkpoint/stall_ms"}
    assert "saved" not in capsys.readouterr().out
    gate.open.set()
    finished(run)
    run.hook.on_step(3)
    assert run.store.steps() == [2]
    assert (run.store.folder / LATEST).read_text() == "step_2\n"
    assert run.measures.take().keys() == {"checkpoint/write_ms"}
    assert f"saved {run.store.path(2)}" in capsys.readouterr().out


def test_what_is_written_is_what_it_was_when_the_step_ended(tmp_path: Path, control: Group, gate: Gate) -> None:
    run = run_of(tmp_path, control)
    run.steps(2)
    state = run.state.to_dict()
    run.state.step, run.state.tokens_seen, run.engine.saves = 3, 999, 77
    gate.open.set()
    finished(run)
    assert torch.equal(run.saved(2)["weight"], FULL + 1)
    found = run.store.newest_valid()
    assert found is not None
    assert found[1].train_state == state


def test_the_next_save_waits_for_the_one_under_way(
    tmp_path: Path, control: Group, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, control)
    run.steps(3)
    assert gate.reached.wait(LONG_S)
    at_once: list[int] = []
    write = save.CheckpointWriter.write

    def spy(self: save.CheckpointWriter, snapshot: save.Snapshot) -> None:
        at_once.append(len(run.store.steps()))
        write(self, snapshot)

    monkeypatch.setattr(save.CheckpointWriter, "write", spy)
    # The loop's thread is held until the writing one is let go.
    threading.Timer(0.2, gate.open.set).start()
    run.steps(4)
    run.end("finished")
    assert at_once == [1]
    assert run.store.steps() == [2, 4]


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_the_end_waits_for_the_save_under_way_and_does_not_repeat_it(
    tmp_path: Path, control: Group, gate: Gate, status: str
) -> None:
    run = run_of(tmp_path, control)
    run.steps(2)
    threading.Timer(0.2, gate.open.set).start()
    run.end(status)
    assert run.store.steps() == [2]
    assert run.engine.saves == 1


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


def failing(run: Run, gate: Gate, last: int) -> None:
    gate.error = FULL_DISK
    gate.open.set()
    run.steps(last)
    finished(run)
    gate.error = None


def test_a_save_that_failed_is_told_at_the_end_of_the_next_step(tmp_path: Path, control: Group, gate: Gate) -> None:
    run = run_of(tmp_path, control)
    failing(run, gate, 2)
    with pytest.raises(StorageError, match="the disk is full") as caught:
        run.steps(3)
    assert caught.value.exit_code == 8
    assert run.store.steps() == []
    assert run.names() == []


def test_a_run_may_go_on_without_a_checkpoint_until_the_next_one(
    tmp_path: Path, control: Group, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, control, on_failure="go_on")
    failing(run, gate, 2)
    run.steps(4)
    warnings = capsys.readouterr().err
    assert "warning: step 2 is not saved" in warnings
    assert "the disk is full" in warnings
    run.end("finished")
    assert run.store.steps() == [4]
    failed, saved = read_events(tmp_path)
    assert (failed.kind, failed.step, saved.kind, saved.step) == ("save_failed", 2, "save", 4)
    assert "the disk is full" in str(failed.details["reason"])


def test_a_run_goes_on_even_if_it_cannot_note_that_it_has_not_saved(
    tmp_path: Path,
    control: Group,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_of(tmp_path, control, on_failure="go_on")
    failing(run, gate, 2)

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("trainer.checkpoint.checkpoint_hook.append_event", refuse)
    run.steps(3)
    assert "warning: that is not in the run's events either: the disk is full" in capsys.readouterr().err


def test_the_last_checkpoint_of_a_run_must_be_written(tmp_path: Path, control: Group, gate: Gate) -> None:
    run = run_of(tmp_path, control, on_failure="go_on", every=10)
    run.steps(3)
    gate.error = FULL_DISK
    gate.open.set()
    with pytest.raises(StorageError, match="the disk is full"):
        run.end("finished")
    assert run.names() == []


def test_a_run_that_fails_lets_the_save_under_way_end(
    tmp_path: Path, control: Group, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, control)
    run.steps(3)
    gate.open.set()
    run.end("failed")
    assert run.store.steps() == [2]
    assert "saved" in capsys.readouterr().out


def test_a_run_that_fails_does_not_wait_for_ever(
    tmp_path: Path, control: Group, gate: Gate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.checkpoint.checkpoint_hook._LAST_CHANCE_S", 0.05)
    run = run_of(tmp_path, control)
    run.steps(3)
    run.end("failed")
    assert "step 2 is not saved: the run failed while it was written" in capsys.readouterr().err
    assert run.store.steps() == []


def test_a_run_that_fails_tells_that_its_save_failed_too(
    tmp_path: Path, control: Group, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, control)
    failing(run, gate, 2)
    run.end("failed")
    assert "step 2 is not saved" in capsys.readouterr().err


def test_a_save_that_a_lost_rank_broke_is_told_in_words(
    tmp_path: Path, control: Group, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, control)
    gate.error = RuntimeError("Connection closed by peer")
    gate.open.set()
    run.steps(2)
    finished(run)
    run.end("failed")
    assert "step 2 is not saved: a rank was lost while it was written" in capsys.readouterr().err


def test_too_little_room_is_known_before_anything_is_written(
    tmp_path: Path, control: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, control, asynchronous=False)
    run.steps(2)

    class Usage:
        free = 1000

    monkeypatch.setattr("trainer.checkpoint.save.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match=r"room for a checkpoint of .* GiB, but .* has .* GiB left"):
        run.steps(4)
    assert run.names() == [LATEST, "step_2"]


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def waiting(gate: threading.Event) -> Callable[[], None]:
    def action() -> None:
        assert gate.wait(LONG_S)

    return action


def test_work_in_the_background() -> None:
    gate = threading.Event()
    work = BackgroundWork(waiting(gate), "test")
    assert not work.done()
    assert not work.wait(0.01)
    gate.set()
    assert work.result() > 0
    assert work.done()
    with pytest.raises(KeyboardInterrupt):
        BackgroundWork(raising(KeyboardInterrupt()), "test").result()
