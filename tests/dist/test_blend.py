"""A blend is the same stream, with the same losses of its sources, in every layout of the whole program."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.dist import run_distributed
from trainer.metrics.jsonl import read_rows

pytestmark = [pytest.mark.dist, pytest.mark.timeout(180)]
SETTINGS = (
    *("data.blend={web: {weight: 2, synthetic_tokens: 4096}, code: {weight: 1, synthetic_tokens: 2048}}",),
    *("data=synthetic", "model.vocab_size=64", "runtime.device=cpu", "data.validation_fraction=0.1"),
    *("model.hidden_size=16", "model.num_layers=2", "model.num_attention_heads=2", "model.seq_length=8"),
    *("train.steps=3", "train.eval_every=3", "train.eval_batches=2", "batch.global_batch_size=8", "checkpoint=none"),
    *("logging.wandb=disabled", "logging.console=quiet", "launch.max_restarts=0"),
)
SOURCES = [f"{kind}/{name}" for kind in ("loss", "eval/loss", "data/epochs") for name in ("web", "code")]


def _train(rank: int, world_size: int, place: Path, arguments: tuple[str, ...]) -> None:
    from trainer.app import train_rank
    from trainer.config.compose import compose
    from trainer.launcher.environment import World

    config = compose([*SETTINGS, f"run_dir={place / 'R'}", f"data.cache_dir={place.parent / 'cache'}", *arguments])
    assert train_rank(config, World(rank=rank, local_rank=rank, size=world_size)) == 0


def rows(place: Path, *arguments: str, ranks: int = 1) -> list[dict[str, float]]:
    run_distributed(_train, ranks, place, arguments, timeout_s=120)
    return [dict(row) for row in read_rows(place / "R" / "metrics.jsonl")]


def test_losses_of_sources_in_every_layout(tmp_path: Path) -> None:
    alone = rows(tmp_path / "alone")
    last = alone[-1]
    assert last["data/epochs/web"] == pytest.approx(16 / (0.9 * 4096 // 8), rel=0.01)
    # The step's loss is the mean over its sequences; 24 places of 2 to 1 are 16 and 8.
    assert last["eval/loss"] == pytest.approx((2 * last["eval/loss/web"] + last["eval/loss/code"]) / 3, abs=1e-6)
    for name, arguments in (
        ("dp2", ("layout.data_parallel_size=2", "batch.micro_batch_size=2")),
        ("pp2", ("layout.pipeline_parallel_size=2", "batch.micro_batch_size=2")),
        ("tp2", ("layout.tensor_parallel_size=2", "model.fused_loss=false")),
    ):
        found = rows(tmp_path / name, *arguments, ranks=2)
        assert [row["data/sample_ledger"] for row in found] == [row["data/sample_ledger"] for row in alone]
        for one, other in zip(alone, found, strict=True):
            for key in ("train/loss", *SOURCES):
                # fp32 sums in another order, over three steps.
                assert other.get(key) == pytest.approx(one.get(key), abs=1e-5), (name, key)
