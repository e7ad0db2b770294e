"""What random kills found to be wrong once, each at the place where it happens."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.chaos.chaos_fixtures import EVERY, LAYOUTS, STEPS, WORDS, Rehearsal, newest, rows_of, summary_of
from tests.chaos.traps import Event, Trap
from tests.chaos.world import World
from trainer.cli import main

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

SINGLE = LAYOUTS[0]
COMMAND = (*WORDS, *SINGLE.words, f"train.steps={STEPS}")


def killed_and_resumed(trap: Trap, run_dir: Path, notes: Path) -> None:
    with World(COMMAND, 1, run_dir, notes / "killed", [trap]) as world:
        assert world.end().sprung
    with World(COMMAND, 1, run_dir, notes / "resumed") as world:
        outcome = world.end()
    assert outcome.codes == {0: 0}, outcome.output


def test_the_row_of_a_saved_step_is_there_after_a_kill(rehearsals: dict[str, Rehearsal], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # The checkpoint has its name; the row has not been written yet.
    trap = Trap(Event(0, "write", "checkpoints/.latest.P.tmp"))
    killed_and_resumed(trap, run_dir, tmp_path)
    missing = rehearsals[SINGLE.name].final.rows.keys() - rows_of(run_dir).keys()
    assert not missing


def test_a_run_killed_after_its_last_save_gets_its_summary(rehearsals: dict[str, Rehearsal], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    killed_and_resumed(Trap(Event(0, "write", ".summary.json.P.tmp")), run_dir, tmp_path)
    assert rows_of(run_dir) == rehearsals[SINGLE.name].final.rows
    assert summary_of(run_dir)[:2] == ("finished", STEPS)


def test_a_run_killed_in_its_last_save_is_tidied(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    killed_and_resumed(Trap(Event(0, "write", "checkpoints/.latest.P.tmp"), STEPS // EVERY), run_dir, tmp_path)
    assert newest(run_dir) == STEPS
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    latest = (run_dir / "checkpoints" / "latest").read_text()
    assert (latest, names) == (f"step_{STEPS}\n", ["latest", f"step_{STEPS - EVERY}", f"step_{STEPS}"])


def test_a_kill_while_an_old_one_is_deleted_leaves_no_damaged_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    trap = Trap(Event(0, "rmdir", "checkpoints/.step_N.deleted.partial/tensors"))
    with World(COMMAND, 1, run_dir, tmp_path / "killed", [trap]) as world:
        assert world.end().sprung
    assert main(["checkpoint", "verify", str(run_dir)]) == 0


def test_who_may_read_the_config_of_a_checkpoint_may_read_its_tensors(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with World((*COMMAND, f"train.steps={EVERY}"), 1, tmp_path / "run", tmp_path / "notes") as world:
            assert world.end().codes == {0: 0}
    finally:
        os.umask(before)
    saved = tmp_path / "run" / "checkpoints" / f"step_{EVERY}"
    modes = {path.name: stat.filemode(path.stat().st_mode) for path in saved.rglob("*.*") if path.is_file()}
    assert set(modes.values()) == {"-rw-r--r--"}
