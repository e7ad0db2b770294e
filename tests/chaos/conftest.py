from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.chaos_fixtures import LAYOUTS, Rehearsal, Tally, rehearse


@dataclass(frozen=True)
class ChaosOptions:
    """How much is done, and with which seed."""

    kills: int
    write_kills: int
    in_a_row: int
    refusals: int
    full_disks: int
    seed: str
    report: Path | None

    def tell(self, name: str, tally: Tally) -> None:
        """Say what was done: on the output, and as a JSON line in the report."""
        print(f"{name}: {tally} (--chaos-seed={self.seed})")  # noqa: T201
        if self.report is not None:
            with self.report.open("a") as file:
                file.write(json.dumps({"name": name, "seed": self.seed, **tally.to_dict()}) + "\n")


@pytest.fixture(scope="session")
def chaos(request: pytest.FixtureRequest) -> ChaosOptions:
    option = request.config.getoption
    seed = option("--chaos-seed") or f"{random.SystemRandom().randrange(10**6)}"
    return ChaosOptions(
        kills=option("--chaos-kills"),
        write_kills=option("--chaos-write-kills"),
        in_a_row=option("--chaos-in-a-row"),
        refusals=option("--chaos-refusals"),
        full_disks=option("--chaos-full-disks"),
        seed=seed,
        report=option("--chaos-report"),
    )


@pytest.fixture(scope="session")
def rehearsals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rehearsal]:
    return {layout.name: rehearse(layout, tmp_path_factory.mktemp(layout.name)) for layout in LAYOUTS}
