"""Runs that are killed at any moment go on bit for bit: same losses, same weights and moments, nothing left behind.

`--chaos-kills`, `--chaos-write-kills` and `--chaos-in-a-row` say how many; `--chaos-seed` does the same ones again (to
the moment for kills at an event, about for those by the clock).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import ChaosOptions
from tests.chaos.points import PointChooser
from tests.chaos.room import EVERY, LAYOUTS, SAVES_SEEN, Campaign, Layout, Rehearsal, rehearse

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

BY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
GIVE_UP = 20
"""Starts in a row in which nothing could be killed: something is wrong with the test."""


@pytest.fixture(scope="module")
def rehearsals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rehearsal]:
    return {layout.name: rehearse(layout, tmp_path_factory.mktemp(layout.name)) for layout in LAYOUTS}


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
    while campaign.tally.kills.total() < wanted:
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
    while campaign.tally.kills.total() < wanted:
        trap, kind = chooser.next(campaign.run_dir)
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
    rehearsal = rehearse(layout, tmp_path_factory.mktemp("long"), steps=(EVERY + 3) * chaos.in_a_row + EVERY)
    campaign = Campaign(layout, rehearsal, tmp_path, chaos.seed)
    for _ in range(chaos.in_a_row):
        assert kill_by_the_clock(campaign, steps=EVERY + 1 + campaign.chance.randrange(3))
    campaign.finish()
    assert (campaign.tally.runs, campaign.tally.kills.total()) == (1, chaos.in_a_row)
    chaos.tell(f"{layout.name} in a row", campaign.tally)
