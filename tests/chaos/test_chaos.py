"""Runs that are killed at any moment go on bit for bit: same losses, same weights and moments, nothing left behind.

`--chaos-kills`, `--chaos-write-kills` and `--chaos-in-a-row` say how many; `--chaos-seed` does the same ones again (to
the moment for kills at an event, about for those by the clock).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.chaos_fixtures import EVERY, LAYOUTS, SAVES_SEEN, Campaign, Layout, Rehearsal, run_whole
from tests.chaos.conftest import ChaosOptions
from tests.chaos.points import PointChooser
from tests.chaos.traps import Event, Trap
from trainer.checkpoint.store import CheckpointStore
from trainer.engine.face import ReadShard

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

BY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
GIVE_UP = 20
"""Starts in a row in which nothing could be killed: something is wrong with the test."""


def share_of(count: int, layout: Layout) -> int:
    """Return how many of `count` are for a layout."""
    index = LAYOUTS.index(layout)
    return (count + index) // len(LAYOUTS)


def kill_by_the_clock(campaign: Campaign, steps: int | None = None) -> bool:
    """Kill one rank or all at a random moment of a start; return whether that came before the run's end.

    Args:
        campaign: whose current run is started.
        steps: to train first, and then a part of two more; None: a random number, or not even one.
    """
    chance, rehearsal, size = campaign.chance, campaign.rehearsal, campaign.layout.world_size
    if steps is None and chance.random() < 0.75:
        steps = chance.randrange(2 * EVERY + 1)
    part = chance.random()
    ranks = list(range(size)) if chance.random() < 0.3 else [chance.randrange(size)]
    with campaign.start() as world:
        if steps is None:
            campaign.wait_for_steps(world, 1, part * rehearsal.start_s)
        else:
            campaign.wait_for_steps(world, steps)
            campaign.wait_for_steps(world, steps + 2, part * 2 * rehearsal.step_s)
        world.kill(ranks)
        outcome = world.end()
    campaign.note(f"ranks {ranks} after {steps} steps and a part of {part:.2f}")
    who, when = ("all ranks", "one rank")[len(ranks) < size], ("trains", "starts")[steps is None]
    return campaign.judge(outcome, f"{who} while it {when}")


@BY_LAYOUT
def test_killed_at_any_moment_it_goes_on_bit_for_bit(
    layout: Layout, rehearsals: dict[str, Rehearsal], chaos: ChaosOptions, tmp_path: Path
) -> None:
    campaign = Campaign(layout, rehearsals[layout.name], tmp_path, chaos.seed)
    wanted, idle = share_of(chaos.kills, layout), 0
    while campaign.tally.faults.total() < wanted:
        idle = 0 if kill_by_the_clock(campaign) else idle + 1
        assert idle < GIVE_UP, f"nothing could be killed, --chaos-seed={chaos.seed}"
    campaign.finish()
    chaos.tell(layout.name, campaign.tally)


@BY_LAYOUT
def test_killed_inside_a_save_it_goes_on_bit_for_bit(
    layout: Layout, rehearsals: dict[str, Rehearsal], chaos: ChaosOptions, tmp_path: Path
) -> None:
    campaign = Campaign(layout, rehearsals[layout.name], tmp_path, chaos.seed)
    chooser = PointChooser(campaign.rehearsal.points, SAVES_SEEN, campaign.chance)
    wanted, idle = share_of(chaos.write_kills, layout), 0
    while campaign.tally.faults.total() < wanted:
        trap, kind = chooser.kill(campaign.run_dir)
        with campaign.start([trap]) as world:
            outcome = world.end(launcher_kills=campaign.chance.random() < 0.5)
        campaign.note(str(trap))
        idle = 0 if campaign.judge(outcome, kind) else idle + 1
        assert idle < GIVE_UP, f"nothing could be killed, --chaos-seed={chaos.seed}"
    campaign.finish()
    chaos.tell(layout.name, campaign.tally)


def test_killed_again_and_again_one_run_gets_to_its_end(
    chaos: ChaosOptions, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Between two kills little more than an interval is trained, as where machines fail all the time."""
    layout = LAYOUTS[1]
    rehearsal = run_whole(layout, tmp_path_factory.mktemp("long"), steps=(EVERY + 3) * chaos.in_a_row + EVERY)
    campaign = Campaign(layout, rehearsal, tmp_path, chaos.seed)
    for _ in range(chaos.in_a_row):
        assert kill_by_the_clock(campaign, steps=EVERY + 1 + campaign.chance.randrange(3))
    campaign.finish()
    assert (campaign.tally.runs, campaign.tally.faults.total()) == (1, chaos.in_a_row)
    chaos.tell(f"{layout.name} in a row", campaign.tally)


def _in_place(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint is written under its own name."""
    patch.setattr(CheckpointStore, "temporary_path", CheckpointStore.path)
    patch.setattr(CheckpointStore, "publish", lambda self, step: None)


def _without_moments(patch: pytest.MonkeyPatch) -> None:
    """Resuming begins with moments of zero."""
    from trainer.engine import masters

    restore = masters.restore

    def forgetful(engine: Any, read: ReadShard, scalars: Mapping[str, float]) -> None:
        restore(engine, lambda kind, spec: read(kind, spec) * (kind == "weight"), scalars)

    patch.setattr(masters, "restore", forgetful)


def _without_tidying(patch: pytest.MonkeyPatch) -> None:
    """What a killed run left half written stays."""
    patch.setattr("trainer.run_folder.remove_unfinished", lambda folder: None)


MUTATIONS = (
    (
        _in_place,
        Trap(Event(0, "write", "checkpoints/step_N/.manifest.json.P.tmp"), 2, share=0.5, size_bytes=1000),
        "resumed from 3, not 6",
    ),
    (_without_moments, Trap(Event(0, "mkdir", "checkpoints/.step_N.partial"), 6), r"the rows of steps \[.*\] differ"),
    (_without_tidying, Trap(Event(0, "rename", "checkpoints/.latest.P.tmp"), 2), r"checkpoints holds \['\.latest\."),
)


@pytest.mark.parametrize(("mutation", "trap", "wrong"), MUTATIONS)
def test_a_product_that_forgets_something_is_noticed(
    mutation: Callable[[pytest.MonkeyPatch], None],
    trap: Trap,
    wrong: str,
    rehearsals: dict[str, Rehearsal],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutation(monkeypatch)
    campaign = Campaign(LAYOUTS[0], rehearsals[LAYOUTS[0].name], tmp_path, "none")
    with campaign.start([trap]) as world:
        outcome = world.end()
    assert campaign.judge(outcome, str(trap))
    with pytest.raises(AssertionError, match=wrong):
        campaign.finish()
