"""A run that is resumed with another batch size or sequence length goes on in the data where it was."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import pytest

from tests.helpers.dist import run_distributed
from trainer.checkpoint.manifest import read_manifest
from trainer.metrics.jsonl import read_rows

pytestmark = [pytest.mark.dist, pytest.mark.timeout(180)]

SETTINGS = (
    *("data=synthetic", "model.vocab_size=64", "data.synthetic_tokens=4096", "runtime.device=cpu"),
    *("model.hidden_size=16", "model.num_layers=2", "model.num_attention_heads=2", "model.seq_length=8"),
    *("model.position=rope", "logging.wandb=disabled", "logging.console=quiet", "launch.max_restarts=0"),
)


def _train(rank: int, world_size: int, place: Path, arguments: tuple[str, ...]) -> list[list[int]]:
    """Train as one rank of the whole program; return every sequence that it read, labels included."""
    import torch

    from trainer.app import train_rank
    from trainer.config.compose import compose
    from trainer.data.batches import BatchSource
    from trainer.data.picks import EVERYTHING
    from trainer.launcher.environment import World
    from trainer.micro_batch import MicroBatch

    read: list[list[int]] = []
    original = BatchSource.micro_batches

    def spy(self: BatchSource, position: int, step: int | None = None) -> list[MicroBatch]:
        # A stage of a pipeline reads inputs or labels, or none.
        whole = copy(self)
        whole._needs = EVERYTHING
        for batch in original(whole, position, step):
            read.extend(torch.cat([batch.input_ids, batch.targets()[:, -1:]], 1).tolist())
        return original(self, position, step)

    BatchSource.micro_batches = spy  # type: ignore[method-assign]
    config = compose([*SETTINGS, f"run_dir={place / 'R'}", f"data.cache_dir={place / 'cache'}", *arguments])
    assert train_rank(config, World(rank=rank, local_rank=rank, size=world_size)) == 0
    return read


def train(place: Path, *arguments: str, ranks: int = 1) -> list[list[int]]:
    ranks_read = run_distributed(_train, ranks, place, arguments, timeout_s=120)
    return [row for read in ranks_read for row in read]


def position(place: Path, step: int) -> tuple[object, object]:
    state = read_manifest(place / "R" / "checkpoints" / f"step_{step}").train_state
    return state["position"], state["sample_ledger"]


def test_other_batch_sizes_on_the_way(tmp_path: Path) -> None:
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    whole = train(straight, "batch.global_batch_size=16", "train.steps=4")
    assert len(whole) == 64
    parts = train(changed, "batch.global_batch_size=16", "train.steps=1")
    parts += train(changed, "batch.global_batch_size=8", "train.steps=3", "layout.data_parallel_size=2", ranks=2)
    parts += train(changed, "batch.global_batch_size=32", "train.steps=4")
    assert sorted(parts) == sorted(whole)
    assert position(changed, 4)[0] == position(straight, 4)[0] == 64 * 8
    assert [row["train/tokens_seen"] for row in read_rows(changed / "R" / "metrics.jsonl")] == [128, 192, 256, 512]


def test_a_batch_that_grows_reads_the_stream_in_order_in_every_layout(tmp_path: Path) -> None:
    straight, grown, moved = (tmp_path / name for name in ("straight", "grown", "moved"))
    grows = ("batch.global_batch_size=16", "batch.rampup_sizes=[4,8]", "batch.rampup_steps=[2,4]", "train.steps=5")
    whole = train(straight, "batch.global_batch_size=8", "train.steps=5")
    assert train(grown, *grows) == whole
    # The same in tokens, ended in the middle of the warm-up and gone on with in another layout.
    in_tokens = (*grows[:2], "batch.rampup_tokens=[60,180]")
    parts = train(moved, *in_tokens, "train.steps=5", "checkpoint.every=3", "layout.data_parallel_size=2", ranks=2)
    (moved / "R" / "checkpoints" / "step_5").rename(tmp_path / "later")
    parts += train(moved, *in_tokens, "train.steps=5", "layout.pipeline_parallel_size=2", ranks=2)
    assert sorted({tuple(row) for row in parts}) == sorted({tuple(row) for row in whole})
    assert position(moved, 5) == position(grown, 5)
    rows = read_rows(grown / "R" / "metrics.jsonl")
    assert [row["train/tokens_seen"] for row in rows] == [32, 64, 128, 192, 320]
    losses, others = ([row["train/loss"] for row in read_rows(run / "R" / "metrics.jsonl")] for run in (grown, moved))
    assert others[:3] == pytest.approx(losses[:3], rel=1e-5)
    assert others[-2:] == pytest.approx(losses[-2:], rel=1e-5)


def test_a_longer_sequence_on_the_way(tmp_path: Path) -> None:
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    whole = train(straight, "batch.global_batch_size=8", "train.steps=4")
    parts = train(changed, "batch.global_batch_size=8", "train.steps=2")
    longer = train(changed, "batch.global_batch_size=8", "model.seq_length=16", "train.steps=3")
    assert parts == whole[:16]
    assert [row[:-1] for row in longer] == [
        first[:-1] + second[:-1] for first, second in zip(whole[16::2], whole[17::2], strict=True)
    ]
    assert position(changed, 3)[0] == position(straight, 4)[0]
