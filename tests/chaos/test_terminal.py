"""A reader of the output that goes away, as `trident train | head` does, changes nothing about the run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.chaos.chaos_fixtures import LAYOUTS, STEPS, WORDS, Layout, Rehearsal, final_of, summary_of
from tests.chaos.world import World
from tests.helpers.command import trident

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=lambda layout: layout.name)
def test_a_closed_pipe_stops_nobody(layout: Layout, rehearsals: dict[str, Rehearsal], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = (*WORDS, *layout.words, f"train.steps={STEPS}")
    with World(words, layout.world_size, tmp_path / "run", tmp_path / "notes", out=writer) as world:
        outcome = world.end()
    os.close(writer)
    assert set(outcome.codes.values()) == {0}
    assert final_of(tmp_path / "run") == rehearsals[layout.name].final


def test_a_full_terminal_stops_nobody(rehearsals: dict[str, Rehearsal], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        words = (*WORDS, *LAYOUTS[0].words, f"train.steps={STEPS}")
        with World(words, 1, tmp_path / "run", tmp_path / "notes", out=full.fileno()) as world:
            assert world.end().codes == {0: 0}
    assert final_of(tmp_path / "run") == rehearsals[LAYOUTS[0].name].final


@pytest.mark.e2e
def test_head_ends_and_the_run_goes_on(tmp_path: Path) -> None:
    words = trident("train", *WORDS, *LAYOUTS[0].words, f"train.steps={STEPS}", f"run_dir={tmp_path / 'run'}")
    script = 'set -o pipefail; "$@" | head -n 1'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert summary_of(tmp_path / "run")[:2] == ("finished", STEPS)
