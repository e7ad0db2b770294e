"""When steps are recorded, what is left when they are not, and that nothing stays in the way."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from trainer.config.schema import RuntimeConfig, TrainConfig, TridentConfig
from trainer.errors import StorageError
from trainer.loop.events import RunEnd
from trainer.mesh import Mesh
from trainer.profiling.marks import axis_of
from trainer.profiling.phases import MarkedProgress
from trainer.profiling.profile_hook import ProfileHook
from trainer.topology.dist_group import DistGroup, make_groups
from trainer.topology.exchange import Peers

CONFIG = TridentConfig(train=TrainConfig(steps=20), runtime=RuntimeConfig(profile=True, profile_steps=2))
CLASSES = (dist.ProcessGroup, dist.Work, Peers)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[DistGroup]:
    """A world of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    handle = dist.group.WORLD
    assert handle is not None
    yield DistGroup(0, 1, handle, (0,))
    dist.destroy_process_group()


class Run:
    """A loop of one rank in small: steps that compute something."""

    def __init__(self, control: DistGroup, folder: Path, **runtime: Any) -> None:
        config = replace(CONFIG, runtime=replace(CONFIG.runtime, **runtime))
        self.progress = MarkedProgress()
        groups = make_groups(Mesh(1, 1, 1), torch.device("cpu"), timedelta(seconds=60))
        self.folder = folder / "profile"
        self.hook = ProfileHook(config, folder, self.progress, groups)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.progress.begin_step(step)
            self.progress.enter("forward", 1)
            torch.ones(8, 8) @ torch.ones(8, 8)
            self.progress.enter("hooks")
            self.hook.on_step(step)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*")) if self.folder.exists() else []


@pytest.fixture
def methods() -> Iterator[None]:
    """What is marked while recording is afterwards as it was."""
    before = [dict(vars(owner)) for owner in CLASSES]
    yield
    for owner, found in zip(CLASSES, before, strict=True):
        assert {name: value for name, value in vars(owner).items() if not name.startswith("__")} == {
            name: value for name, value in found.items() if not name.startswith("__")
        }


def steps_in(path: Path) -> list[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [event["name"] for event in events if event["name"].startswith("trident step")]


@pytest.mark.usefixtures("methods")
def test_the_fifth_and_sixth_step_of_a_start_are_recorded_once(control: DistGroup, tmp_path: Path) -> None:
    run = Run(control, tmp_path)
    run.hook.on_start(8)
    run.train(8, 12)
    assert run.files() == []
    run.train(13, 20)
    run.hook.on_end(RunEnd("finished", 20, 1.0))
    assert run.files() == ["step12-13_rank0.json.gz", "summary.json"]
    assert steps_in(run.folder / "step12-13_rank0.json.gz") == ["trident step 12", "trident step 13"]
    found = json.loads((run.folder / "summary.json").read_text())
    assert found["steps"] == [12, 13]
    assert sum(found["parts_ms"].values()) == pytest.approx(found["step_ms"])
    assert found["parts_ms"]["forward"] > 0
    assert "aten::mm" in [operator["name"] for operator in found["operators"]]
    # A rewind starts the loop anew; what is done stays done.
    (run.folder / "summary.json").unlink()
    run.hook.on_start(3)
    run.train(3, 9)
    assert run.files() == ["step12-13_rank0.json.gz"]


@pytest.mark.usefixtures("methods")
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_chosen_step_may_be_the_first_one(control: DistGroup, tmp_path: Path, first: int) -> None:
    run = Run(control, tmp_path, profile_first_step=first, profile_steps=1)
    run.hook.on_start(1)
    run.train(1, 4)
    assert steps_in(run.folder / f"step{first}-{first}_rank0.json.gz") == [f"trident step {first}"]


@pytest.mark.parametrize(
    ("settings", "first_step", "message"),
    [
        ({"profile_first_step": 5}, 6, "trains steps 6 to 20, but steps 5 to 6 were to be recorded"),
        ({}, 16, "trains steps 16 to 20, but steps 20 to 21 were to be recorded"),
    ],
)
def test_a_start_that_does_not_train_these_steps_says_so(
    control: DistGroup,
    tmp_path: Path,
    settings: dict[str, Any],
    first_step: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run(control, tmp_path, **settings)
    run.hook.on_start(first_step)
    run.train(first_step, 20)
    run.hook.on_end(RunEnd("finished", 20, 1.0))
    assert run.files() == []
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("methods")
def test_a_failure_in_a_recorded_step_leaves_nothing(
    control: DistGroup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(control, tmp_path)
    run.hook.on_start(1)
    run.train(1, 5)
    run.progress.begin_step(6)
    run.progress.enter("forward", 1)
    run.hook.on_end(RunEnd("failed", 5, 1.0, "error"))
    assert run.files() == []
    assert "recorded nothing: the run failed after step 5, before it was done" in capsys.readouterr().err
    # Rewound, it tries again, with a profiler that is free.
    run.hook.on_start(3)
    run.train(3, 8)
    assert run.files() == ["step7-8_rank0.json.gz", "summary.json"]


@pytest.mark.usefixtures("methods")
def test_a_trace_that_did_not_fit_is_told(control: DistGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: object, path: str) -> None:
        Path(path).write_text('{"traceEvents": [')

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", half)
    run = Run(control, tmp_path)
    run.hook.on_start(1)
    with pytest.raises(StorageError, match=r"trace must fit into .*, but it ends after 17 bytes"):
        run.train(1, 6)
    assert run.files() == []


def test_the_axis_of_a_group_is_what_its_ranks_differ_in() -> None:
    grid = Mesh(2, 2, 2)
    assert [axis_of(grid, ranks) for ranks in (grid.tensor_groups()[1], grid.sample_groups()[1])] == ["tensor", "data"]
    assert axis_of(grid, grid.pipeline_groups()[3]) == "pipeline"
    assert axis_of(grid, list(range(8))) == "mesh"
    assert axis_of(grid, [3]) is None
