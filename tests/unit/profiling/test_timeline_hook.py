"""The step whose timeline is measured, and that nobody listens to any other one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.thread_group import run_ranks
from tests.unit.loop.loop_fixtures import make
from trainer.errors import StorageError
from trainer.loop.events import RunEnd
from trainer.loop.session import Session
from trainer.mesh import Mesh
from trainer.profiling import timeline_hook
from trainer.profiling.measured_step import read_timeline
from trainer.profiling.timeline_hook import TimelineHook
from trainer.topology.groups import Group, SingleGroup, single_process_groups


class Run:
    """A loop of one rank in small: a step is a forward pass of one micro-batch."""

    def __init__(self, folder: Path, step: int | None = None, steps: int = 20) -> None:
        self.session = Session(plan=make(steps=steps), groups=single_process_groups(), hosts=["here"])
        self.path = folder / "timeline.json"
        self.hook = TimelineHook(self.session, self.path, step)
        self.listened: list[int] = []

    def train(self, first: int, last: int) -> None:
        progress = self.session.progress
        for step in range(first, last + 1):
            progress.begin_step(step)
            if progress.listener is not None:
                self.listened.append(step)
            progress.enter("forward", 1)
            progress.enter("optimizer")
            progress.enter("hooks")
            assert self.hook.waits_for_device(step) == (progress.listener is not None), "and at no other step"
            self.hook.on_step(step)

    def measured(self) -> int | None:
        found = read_timeline(self.path)
        return None if found is None else found.step


@pytest.mark.parametrize(
    ("asked", "first", "last", "measured"),
    [
        (None, 1, 20, 5),
        (None, 8, 20, 12),
        (None, 18, 20, 20),
        (None, 20, 20, 20),
        (1, 1, 20, 1),
        (2, 1, 20, 2),
        (20, 1, 20, 20),
        (9, 9, 20, 9),
        # The start that trained it has measured it.
        (8, 9, 20, None),
    ],
)
def test_one_step_of_a_start_is_listened_to_and_written(
    tmp_path: Path, asked: int | None, first: int, last: int, measured: int | None
) -> None:
    run = Run(tmp_path, asked)
    run.hook.on_start(first)
    run.train(first, last)
    run.hook.on_end(RunEnd("finished", last, 1.0))
    assert run.listened == ([] if measured is None else [measured])
    assert run.measured() == measured
    assert run.session.progress.listener is None


def test_a_start_with_nothing_left_to_train_measures_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.hook.on_start(21)
    run.hook.on_end(RunEnd("finished", 20, 1.0))
    assert run.measured() is None


def test_a_step_that_the_run_does_not_have_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Where steps follow from train.epochs, nobody knows before the data are prepared.
    run = Run(tmp_path, 21)
    run.hook.on_start(1)
    run.train(1, 20)
    assert run.measured() is None
    assert "logging.timeline_step (21) is not measured: the run has 20 steps" in capsys.readouterr().err


def test_going_back_before_it_was_measured_begins_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.hook.on_start(4)
    run.train(4, 7)
    # Step 8 was listened to, and was a spike.
    run.hook.on_rewind(4)
    run.train(5, 8)
    assert run.measured() is None
    run.train(9, 9)
    assert run.measured() == 9


def test_what_is_measured_stays_so_when_the_run_goes_back(tmp_path: Path) -> None:
    run = Run(tmp_path, 3)
    run.hook.on_start(1)
    run.train(1, 4)
    run.hook.on_rewind(2)
    run.train(3, 5)
    assert (run.listened, run.measured()) == ([3], 3)


def test_a_spike_that_no_checkpoint_takes_back_leaves_the_next_step_to_be_measured(tmp_path: Path) -> None:
    run = Run(tmp_path, 3)
    run.hook.on_start(1)
    run.train(1, 2)
    # The loop calls no hook after a step that it would have gone back from.
    run.session.progress.begin_step(3)
    run.session.progress.enter("hooks")
    run.train(4, 8)
    assert run.measured() == 4


def test_a_run_that_ends_in_the_measured_step_listens_no_longer(tmp_path: Path) -> None:
    run = Run(tmp_path, 3)
    run.hook.on_start(1)
    run.train(1, 2)
    before = run.session.progress.listener
    run.hook.on_end(RunEnd("failed", 2, 1.0, "x"))
    assert before is not None
    assert run.session.progress.listener is None
    assert run.measured() is None


def test_a_disk_that_refuses_the_file_ends_the_run_in_words(tmp_path: Path) -> None:
    run = Run(tmp_path, 1)
    run.hook.on_start(1)
    run.path.parent.joinpath("file").write_text("")
    run.hook = TimelineHook(run.session, tmp_path / "file" / "timeline.json", 1)
    run.hook.on_start(1)
    with pytest.raises((StorageError, NotADirectoryError, FileExistsError)):
        run.train(1, 1)


def test_ranks_of_several_machines_compare_their_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages, as threads, whose clocks have no common name."""
    monkeypatch.setattr(timeline_hook, "clock_name", lambda: "")

    def rank(control: Group) -> list[str]:
        alone = single_process_groups()
        groups = replace(alone, control=control, rank=control.rank, mesh=Mesh(2, 1, 1))
        session = Session(plan=make(steps=20), groups=groups, hosts=["a", "b"])
        hook = TimelineHook(session, tmp_path / "timeline.json")
        hook.on_start(20)
        progress = session.progress
        progress.begin_step(20)
        progress.enter("pipeline")
        progress.execute("OptimizerStep")
        progress.enter("hooks")
        hook.on_step(20)
        return getattr(control, "calls", [])

    calls = run_ranks(2, rank)
    assert "send" in calls[0]
    assert "send" in calls[1]
    found = read_timeline(tmp_path / "timeline.json")
    assert found is not None
    assert 0 < found.clock_error_ms < 1000
    assert [place.rank for place in found.ranks] == [0, 1]


def test_the_file_is_small_and_its_lines_can_be_read_by_people(tmp_path: Path) -> None:
    run = Run(tmp_path, 1)
    run.hook.on_start(1)
    run.train(1, 1)
    lines = run.path.read_text().splitlines()
    assert [json.loads(line.rstrip(","))[1] for line in lines[1:-1]] == ["data", "forward", "optimizer"]
    assert isinstance(run.session.groups.control, SingleGroup)
