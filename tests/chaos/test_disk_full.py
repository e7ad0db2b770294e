"""A disk that is full, or refuses a write anywhere: the run ends with one line and exit code 8, the checkpoints before
are whole, nothing half-written stays, and with room the same command goes on bit for bit.

`--chaos-refusals` and `--chaos-full-disks` say how many.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.chaos_fixtures import (
    DISK_FULL,
    LAYOUTS,
    PAGE_BYTES,
    SAVES_SEEN,
    WORDS,
    Campaign,
    Layout,
    Rehearsal,
    last_row,
)
from tests.chaos.conftest import ChaosOptions
from tests.chaos.points import PointChooser
from tests.helpers.command import Running, trident, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

LARGE_BYTES = 1 << 26
FIRST_TWO = pytest.mark.parametrize("layout", LAYOUTS[:2], ids=lambda layout: layout.name)


class SmallDisk:
    """A file system in memory that can be made larger."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount(f"size={LARGE_BYTES}")

    def _mount(self, options: str) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)], check=True, capture_output=True, text=True
        )

    def resize(self, size_bytes: int) -> None:
        """Set its size."""
        self._mount(f"remount,size={size_bytes}")

    def set_read_only(self, is_read_only: bool) -> None:
        """Refuse every change, or allow them again."""
        self._mount("remount,ro" if is_read_only else "remount,rw")

    def fill(self) -> None:
        """Take all the room that is left."""
        with (self.path / "filler").open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(PAGE_BYTES)):
                pass

    def empty(self) -> None:
        """Give back what `fill` took."""
        (self.path / "filler").unlink()

    def remove(self) -> None:
        """Take it away."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        small = SmallDisk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {getattr(error, 'stderr', error)}")
    yield small
    small.remove()


@FIRST_TWO
def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(
    layout: Layout, rehearsals: dict[str, Rehearsal], chaos: ChaosOptions, disk: SmallDisk, tmp_path: Path
) -> None:
    """Full at any moment: the disk has room for next to nothing up to nearly three checkpoints, which it would need."""
    campaign = Campaign(layout, rehearsals[layout.name], disk.path, chaos.seed, tmp_path)
    most = 3 * campaign.rehearsal.checkpoint_bytes // PAGE_BYTES
    for _ in range(chaos.full_disks):
        pages = campaign.chance.randrange(4, most)
        disk.resize(pages * PAGE_BYTES)
        run_dir = campaign.run_dir
        with campaign.start() as world:
            outcome = world.end()
        assert campaign.judge_refusal(outcome, f"{pages} pages")
        disk.resize(LARGE_BYTES)
        campaign.finish()
        shutil.rmtree(run_dir)
    assert campaign.tally.runs == chaos.full_disks
    chaos.tell(f"{layout.name} full", campaign.tally)


@FIRST_TWO
def test_a_disk_that_refuses_anything_ends_the_run_and_then_it_goes_on(
    layout: Layout, rehearsals: dict[str, Rehearsal], chaos: ChaosOptions, tmp_path: Path
) -> None:
    campaign = Campaign(layout, rehearsals[layout.name], tmp_path, chaos.seed)
    chooser = PointChooser(campaign.rehearsal.points, SAVES_SEEN, campaign.chance)
    for _ in range(chaos.refusals // 2):
        trap, kind = chooser.refusal()
        with campaign.start([trap]) as world:
            outcome = world.end()
        campaign.note(str(trap))
        campaign.judge_refusal(outcome, kind)
    campaign.finish()
    assert campaign.tally.faults.total() >= chaos.refusals // 4, "hardly any refusal was met"
    chaos.tell(f"{layout.name} refused", campaign.tally)


@FIRST_TWO
def test_metrics_on_a_full_disk_end_the_run(
    layout: Layout, rehearsals: dict[str, Rehearsal], chaos: ChaosOptions, disk: SmallDisk, tmp_path: Path
) -> None:
    """The disk fills up between two saves, so a row of metrics.jsonl is what does not fit."""
    campaign = Campaign(
        layout, rehearsals[layout.name], disk.path, chaos.seed, tmp_path, words=("checkpoint.every=27",)
    )
    with campaign.start() as world:
        campaign.wait_for_steps(world, 2)
        disk.fill()
        outcome = world.end()
    assert campaign.judge_refusal(outcome, "metrics")
    assert f"error: {campaign.run_dir / 'metrics.jsonl'} must be writable" in outcome.output
    # One page holds some rows more.
    assert 2 <= last_row(campaign.run_dir) < 27
    disk.empty()
    campaign.finish()


def test_a_read_only_disk_is_found_before_anything_is_done(
    rehearsals: dict[str, Rehearsal], chaos: ChaosOptions, disk: SmallDisk, tmp_path: Path
) -> None:
    campaign = Campaign(LAYOUTS[1], rehearsals[LAYOUTS[1].name], disk.path, chaos.seed, tmp_path)
    disk.set_read_only(True)
    with campaign.start() as world:
        outcome = world.end()
    assert DISK_FULL in outcome.codes.values(), outcome.output
    errors = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: run_dir must be on a disk that can be written, but that of {disk.path} is read-only"]
    assert list(disk.path.iterdir()) == []
    disk.set_read_only(False)
    campaign.finish()


@pytest.mark.e2e
def test_a_full_disk_under_the_real_launcher(disk: SmallDisk, tmp_path: Path) -> None:
    """Not even the exit code can be written down then; the parent tells it all the same, and only once."""
    run_dir = disk.path / "run"
    words = (*WORDS, *LAYOUTS[2].words, "train.steps=100000", "checkpoint.every=0", f"run_dir={run_dir}")
    with Running(trident("train", *words), tmp_path) as running:
        wait_until(lambda: last_row(run_dir) >= 3, 120, "the third step")
        disk.fill()
        ended = running.end(60)
        wait_until(lambda: not running.left_behind(), 5, "the end of every process")
    assert ended.code == DISK_FULL, ended.err
    assert len(ended.errors) == 1, ended.err
    assert f"error: {run_dir / 'metrics.jsonl'} must be writable, but the disk is full" in ended.errors[0]
    assert "Traceback" not in ended.out + ended.err
