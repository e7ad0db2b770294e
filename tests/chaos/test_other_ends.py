"""Other ways in which a run ends or begins, with the whole command: out of memory, a clock that jumps, two at once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.chaos.chaos_fixtures import (
    EVERY,
    LAYOUTS,
    STEPS,
    WORDS,
    Layout,
    Rehearsal,
    final_of,
    last_row,
    newest,
    summary_of,
)
from tests.chaos.traps import Event, Trap
from tests.chaos.world import Outcome, World
from trainer.engine import plain

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

SINGLE, TWO_RANKS = LAYOUTS[:2]
OUT_OF_MEMORY, USAGE = 6, 2


def start(layout: Layout, tmp_path: Path, *words: str, name: str = "notes") -> World:
    command = (*WORDS, *layout.words, f"train.steps={STEPS}", *words)
    return World(command, layout.world_size, tmp_path / "run", tmp_path / name)


def errors_of(outcome: Outcome) -> list[str]:
    assert "Traceback" not in outcome.output
    return [line for line in outcome.output.splitlines() if line.startswith("error: ")]


def test_out_of_memory_ends_the_run_and_it_can_go_on(
    rehearsals: dict[str, Rehearsal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = plain.PlainEngine.train_step

    def full(self: Any, batches: Any, *rest: Any) -> Any:
        if batches[0].place.step == 8 and os.environ.get("RANK") == "1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
        return train_step(self, batches, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(plain.PlainEngine, "train_step", full)
        with start(TWO_RANKS, tmp_path) as world:
            outcome = world.end()
    assert outcome.codes[1] == OUT_OF_MEMORY
    assert errors_of(outcome) == [
        "error: the model must fit into device memory, but: CUDA out of memory. Tried to allocate 2.00 GiB."
    ]
    assert newest(tmp_path / "run") == 2 * EVERY
    with start(TWO_RANKS, tmp_path, name="again") as world:
        assert set(world.end().codes.values()) == {0}
    assert final_of(tmp_path / "run") == rehearsals[TWO_RANKS.name].final


def test_a_clock_that_jumps_back_changes_nothing(
    rehearsals: dict[str, Rehearsal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step, not the time of a file, tells what is newest; rates are measured with a clock that never jumps."""
    run_dir = tmp_path / "run"
    trap = Trap(Event(0, "write", "checkpoints/.latest.P.tmp"), 4)
    command = (*WORDS, *SINGLE.words, f"train.steps={STEPS}")
    with World(command, 1, run_dir, tmp_path / "notes", [trap]) as world:
        assert world.end().sprung
    saved = newest(run_dir)
    assert saved == 4 * EVERY
    for path in (run_dir / "checkpoints" / f"step_{saved}").rglob("*"):
        os.utime(path, (1, 1))
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * (next(jumps) % 3))
    with start(SINGLE, tmp_path, name="again") as world:
        outcome = world.end()
    monkeypatch.undo()
    assert outcome.codes == {0: 0}, outcome.output
    assert f"(step {saved})" in outcome.output
    found, expected = final_of(run_dir), rehearsals[SINGLE.name].final
    assert (found.tensors, found.ledger) == (expected.tensors, expected.ledger)
    assert found.rows.items() <= expected.rows.items()


def test_of_two_runs_in_one_folder_one_trains(tmp_path: Path) -> None:
    endless = "train.steps=100000"
    with (
        start(SINGLE, tmp_path, endless, "launch.grace_s=1", name="first") as first,
        start(SINGLE, tmp_path, endless, "launch.grace_s=1", name="second") as second,
    ):
        worlds = (first, second)
        end = time.monotonic() + 60
        while not any(world.reap() for world in worlds):
            assert time.monotonic() < end, "both train"
            time.sleep(0.01)
        winner, loser = worlds if first.alive else worlds[::-1]
        assert winner.alive
        outcome = loser.end()
        assert outcome.codes == {0: USAGE}
        assert len(errors_of(outcome)) == 1
        assert "error: run_dir must not be in use, but " in outcome.output
        before = last_row(tmp_path / "run")
        assert winner.wait_until(lambda: last_row(tmp_path / "run") > before, time.monotonic() + 60)
        winner.kill([0])
        winner.end()
    with start(SINGLE, tmp_path, f"train.steps={newest(tmp_path / 'run') + EVERY}", name="third") as third:
        assert third.end().codes == {0: 0}


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("lock", "rank_0.log"):
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def test_a_finished_run_that_is_started_again_does_nothing(tmp_path: Path) -> None:
    for attempt in ("first", "second"):
        before = dict(contents(tmp_path / "run"))
        # Quiet, a run still has its last line.
        with start(SINGLE, tmp_path, "logging.console=quiet", name=attempt) as world:
            outcome = world.end()
        assert outcome.codes == {0: 0}
    assert f"nothing to do: {tmp_path / 'run'} is at step {STEPS}" in outcome.output
    assert dict(contents(tmp_path / "run")) == before
    assert summary_of(tmp_path / "run")[:2] == ("finished", STEPS)
