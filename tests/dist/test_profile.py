"""Recorded steps of real layouts: the files are there, the parts add up, and what ranks say has the right name."""

from __future__ import annotations

import gzip
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.dist import run_distributed, train_command

pytestmark = [pytest.mark.dist, pytest.mark.timeout(180)]

SMALL = (
    *("data=synthetic", "model.vocab_size=64", "model.hidden_size=64", "model.num_layers=4"),
    *("model.num_attention_heads=4", "model.seq_length=64", "batch.global_batch_size=8", "batch.micro_batch_size=2"),
    *("schedule.warmup_steps=1", "logging=local", "logging.console=plain"),
)


def read(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return events


def test_a_pipeline_of_tensor_parallel_stages(tmp_path: Path) -> None:
    words = [*SMALL, "layout.pipeline_parallel_size=2", "layout.tensor_parallel_size=2", "train.steps=4"]
    words += ["runtime.profile=true", "runtime.profile_first_step=2", "runtime.profile_steps=2"]
    assert run_distributed(train_command, 4, [*words, f"run_dir={tmp_path}"]) == [0] * 4
    folder = tmp_path / "profile"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step2-3_rank0.json.gz", "step2-3_rank2.json.gz", "summary.json"]
    found = json.loads((folder / "summary.json").read_text())
    assert (found["steps"], found["device"], list(found["ranks"])) == ([2, 3], "cpu", ["0", "2"])
    for one in (found, *found["ranks"].values()):
        assert sum(one["parts_ms"].values()) == pytest.approx(one["step_ms"])
        every_stage = {"forward", "backward", "optimizer", "data", "host", "tensor all-reduce", "pipeline messages"}
        assert every_stage <= {part for part, value in one["parts_ms"].items() if value > 0}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4
    log = (tmp_path / "logs" / "rank_0.log").read_text()
    assert log.count(f"profile of step 2 to 3, mean over 2 ranks, {found['step_ms']:.1f} ms a step") == 1
    annotations = [event["name"] for event in read(folder / names[1]) if event.get("cat") == "user_annotation"]
    # 4 micro-batches in each of 2 steps.
    assert annotations.count("trident phase ForwardPass") == annotations.count("trident phase BackwardPass") == 8


def test_a_run_that_does_not_profile_has_no_such_folder_and_the_same_losses(tmp_path: Path) -> None:
    words = [*SMALL, "layout.pipeline_parallel_size=2", "layout.pipeline_schedule=dualpipev", "train.steps=4"]
    profiled = ["runtime.profile=true", "runtime.profile_first_step=1", "runtime.profile_ranks=[1]"]
    losses = []
    for name, more in (("plain", []), ("profiled", profiled)):
        run_dir = tmp_path / name
        assert run_distributed(train_command, 2, [*words, *more, "train.log_every=1", f"run_dir={run_dir}"]) == [0, 0]
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        losses.append([(row["train/loss"], row["train/grad_norm"]) for row in rows])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    assert not (tmp_path / "plain" / "profile").exists()
    found = json.loads((tmp_path / "profiled" / "profile" / "summary.json").read_text())
    assert list(found["ranks"]) == ["1"]
    assert found["parts_ms"]["pipeline messages"] > 0


def talk(rank: int, world_size: int, folder: Path) -> dict[str, float]:
    """Record one step in which ranks talk in every way; the second one is late each time. Return its parts in ms."""
    import torch
    import torch.distributed as dist
    from torch.profiler import ProfilerActivity, profile

    from trainer.mesh import Mesh
    from trainer.profiling.breakdown import break_down
    from trainer.profiling.marks import CommunicationMarks
    from trainer.profiling.phases import MarkedProgress
    from trainer.topology.dist_group import make_groups

    grid = Mesh(world_size // 2, 1, 2)
    groups = make_groups(grid, torch.device("cpu"), timedelta(seconds=60))
    marks, progress = CommunicationMarks(grid), MarkedProgress()
    large, small = torch.ones(1 << 15), torch.ones(4)
    dist.barrier()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        marks.put_in()
        progress.mark(lambda: None)
        progress.begin_step(1)
        progress.enter("forward", 1)
        late = 0.4 if groups.tensor.rank == 1 else 0.0
        time.sleep(late)
        groups.tensor.all_reduce(small)
        time.sleep(late)
        groups.tensor.start_all_reduce(large)()
        time.sleep(late)
        groups.tensor.start_all_gather(large)()
        time.sleep(late)
        groups.tensor.start_reduce_scatter(large)()
        time.sleep(late)
        stage = grid.coordinate(rank).stage
        peer = grid.rank(1 - stage, 0, groups.tensor.rank)
        if stage == 0:
            time.sleep(0.4)
            dist.send(small, peer)
        else:
            dist.recv(small, peer)
        dist.all_reduce(small)
        progress.enter("hooks")
        progress.stop()
        marks.take_out()
    trace = folder / f"{rank}.json"
    profiler.export_chrome_trace(str(trace))
    found = break_down(json.loads(trace.read_text())["traceEvents"])
    assert sum(found.parts.values()) == found.nanoseconds
    return {name: value / 1e6 for name, value in found.parts.items()}


def test_waiting_counts_as_the_communication_that_is_waited_for(tmp_path: Path) -> None:
    parts = run_distributed(talk, 4, tmp_path)
    kinds = {"tensor all-reduce", "tensor all-gather", "tensor reduce-scatter", "pipeline messages", "mesh all-reduce"}
    for found in parts:
        assert {name for name in found if " " in name} == kinds
    # Rank 0 waits 400 ms for its partner at each of four calls, and stage 1 for a message as well; a machine that is
    # busy takes something off. What is not seen as waiting would be a few ms.
    assert parts[0]["tensor all-reduce"] > 100
    assert min(parts[0]["tensor all-gather"], parts[0]["tensor reduce-scatter"], parts[2]["pipeline messages"]) > 50
    # Sleeping is no computation and no communication.
    assert parts[1]["host"] > 4 * 400
