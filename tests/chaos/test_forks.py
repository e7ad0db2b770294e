"""A fork that is stopped and killed is, with the same command, the fork that was never interrupted.

`tests/e2e/test_forks.py` does it under the launchers, at random moments.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.chaos_fixtures import EVERY, LAYOUTS, WORDS, Layout, final_of, last_row, newest, summary_of
from tests.chaos.world import Outcome, World

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

SINGLE, TWO_RANKS = LAYOUTS[:2]
FORKED_AT, STEPS = 4, 90
"""Long enough for three interruptions, however late they come on a busy machine."""
STOPPED, USAGE = 75, 2


class Fork:
    """One command, started as often as it takes."""

    def __init__(self, layout: Layout, run_dir: Path, *words: str) -> None:
        self.run_dir = run_dir
        self.starts = 0
        self._layout = layout
        self._words = (*WORDS, *layout.words, f"train.steps={STEPS}", *words)

    def world(self) -> World:
        self.starts += 1
        notes = self.run_dir.parent / f"notes_{self.run_dir.name}_{self.starts}"
        return World(self._words, self._layout.world_size, self.run_dir, notes)

    def run(self) -> Outcome:
        with self.world() as world:
            return world.end()

    def interrupt(self, after: int, number: signal.Signals) -> Outcome:
        """Train until some steps are done, and send every rank a signal."""
        file = self.run_dir / "metrics.jsonl"
        with self.world() as world:

            def is_there() -> bool:
                # Rows of an earlier start are there until this one has cut them.
                is_new = file.exists() and file.stat().st_mtime_ns > world.started_ns
                return is_new and last_row(self.run_dir) >= after

            world.wait_until(is_there, time.monotonic() + 60)
            assert world.alive, f"it ended before step {after}"
            for pid in world.alive.values():
                os.kill(pid, number)
            return world.end()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forks") / "base"
    outcome = Fork(SINGLE, folder, f"train.steps={FORKED_AT}").run()
    assert outcome.codes == {0: 0}, outcome.output
    return folder


@pytest.mark.parametrize(("key", "layout"), [("resume", SINGLE), ("resume", TWO_RANKS), ("init_from", SINGLE)])
def test_interrupted_it_ends_as_if_it_never_was(key: str, layout: Layout, base: Path, tmp_path: Path) -> None:
    begun_at = FORKED_AT if key == "resume" else 0
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    word = f"checkpoint.{key}={moved}"
    whole = Fork(layout, tmp_path / "whole", word)
    assert set(whole.run().codes.values()) == {0}
    fork = Fork(layout, tmp_path / "fork", word)
    # Killed before its first save; after one; and asked to stop.
    fork.interrupt(begun_at + 1, signal.SIGKILL)
    fork.interrupt(begun_at + 3 * EVERY, signal.SIGKILL)
    reached = newest(fork.run_dir)
    assert reached > begun_at
    shutil.rmtree(moved)
    stopped = fork.interrupt(reached + EVERY + 2, signal.SIGTERM)
    assert set(stopped.codes.values()) == {STOPPED}, stopped.output
    assert f"resumed from {fork.run_dir}/checkpoints/step_{reached} " in stopped.output
    told = re.search(r"stopped after step ([0-9]+) as asked; the same command goes on from there", stopped.output)
    assert told is not None, stopped.output
    assert newest(fork.run_dir) == int(told[1])
    last = fork.run()
    assert set(last.codes.values()) == {0}, last.output
    assert f"resumed from {fork.run_dir}/checkpoints/step_{told[1]} " in last.output
    found, wanted = final_of(fork.run_dir), final_of(whole.run_dir)
    # Asked to stop, a run leaves out the evaluation of the step that it ends with.
    at = int(told[1])
    assert found.rows[at][3] in (None, wanted.rows[at][3])
    assert found == replace(wanted, rows={**wanted.rows, at: (*wanted.rows[at][:3], found.rows[at][3])})
    finished = fork.run()
    assert set(finished.codes.values()) == {0}
    assert f"nothing to do: {fork.run_dir} is at step {STEPS}" in finished.output
    # What was left out stays left out.
    assert final_of(fork.run_dir) == found
    assert min(final_of(fork.run_dir).rows) == begun_at + 1


def test_a_run_that_wanted_a_fresh_folder_goes_on_when_it_was_stopped(tmp_path: Path) -> None:
    run = Fork(SINGLE, tmp_path / "run", "checkpoint=none")
    assert run.interrupt(3, signal.SIGTERM).codes == {0: STOPPED}
    reached = newest(run.run_dir)
    assert reached >= 3
    last = run.run()
    assert last.codes == {0: 0}, last.output
    assert f"(step {reached})" in last.output
    assert summary_of(run.run_dir)[:2] == ("finished", STEPS)
    again = run.run()
    assert again.codes == {0: USAGE}
    assert "holds a run that has finished" in again.output


def test_a_finished_run_that_saved_nothing_is_not_trained_again(base: Path, tmp_path: Path) -> None:
    words = (f"checkpoint.resume={base}", "checkpoint.every=0", "checkpoint.save_final=false")
    run = Fork(SINGLE, tmp_path / "run", *words)
    assert run.run().codes == {0: 0}
    rows = (run.run_dir / "metrics.jsonl").read_bytes()
    again = run.run()
    assert again.codes == {0: 0}
    assert f"nothing to do: {run.run_dir} is at step {STEPS}" in again.output
    assert (run.run_dir / "metrics.jsonl").read_bytes() == rows


def test_rows_of_a_start_elsewhere_are_forgotten(base: Path, tmp_path: Path) -> None:
    """Of which no checkpoint is left: they would stand before those of the fork as if they led there."""
    run_dir = tmp_path / "run"
    Fork(SINGLE, run_dir, "checkpoint.every=0").interrupt(5, signal.SIGKILL)
    assert Fork(SINGLE, run_dir, f"checkpoint.resume={base}").run().codes == {0: 0}
    assert min(final_of(run_dir).rows) == FORKED_AT + 1
