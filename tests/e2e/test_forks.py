"""Fork, stop or kill, same command, again and again: bit for bit the fork that was never interrupted, nothing lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.fork_fixtures import Campaign, ways

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(7200)]

TIMES = int(os.environ.get("TRIDENT_FORKS", "20"))
SEED = os.environ.get("TRIDENT_FORKS_SEED", "2026")


@pytest.mark.parametrize("name", ["alone", "supervisor", "slurm", "torchrun"])
def test_the_same_command_goes_on_whatever_ended_it(name: str, tmp_path: Path) -> None:
    campaign = Campaign(ways(tmp_path / "stub.log")[name], tmp_path, SEED)
    campaign.interrupt(TIMES)
    kinds = ", ".join(f"{how} {count}" for how, count in campaign.tally.items())
    print(f"{name}: {kinds}; {campaign.finished} forks, {campaign.whole_s:.0f} s each when left alone")  # noqa: T201
