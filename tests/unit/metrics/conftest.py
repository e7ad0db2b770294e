from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.hang import Hang
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    BatchConfig,
    LayoutConfig,
    LoggingConfig,
    ModelConfig,
    TrainConfig,
    TridentConfig,
    WandbMode,
)
from trainer.loop.events import StepReport
from trainer.metrics import wandb_sink
from trainer.metrics.sink import Row


@pytest.fixture
def hang() -> Iterator[Hang]:
    made = Hang()
    yield made
    made.let_go()


@pytest.fixture
def ended_services(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts instead of killing what another test may use, and asks no network."""
    ended: list[str] = []
    monkeypatch.setattr(wandb_sink, "_end_service", lambda: ended.append("ended"))
    monkeypatch.setattr(wandb_sink, "is_reachable", lambda url: True)
    # The sink sets them; they are put back.
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return ended


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    config = TridentConfig(
        name="tiny",
        model=ModelConfig(seq_length=128),
        layout=LayoutConfig(pipeline_parallel_size=2, tensor_parallel_size=2, data_parallel_size=2),
        batch=BatchConfig(global_batch_size=16, micro_batch_size=2),
        train=TrainConfig(steps=10, eval_every=5),
        logging=LoggingConfig(wandb=WandbMode.disabled),
        run_dir=str(tmp_path),
    )
    return make_plan(config, vocab_size=512)


@pytest.fixture
def report() -> StepReport:
    return StepReport(
        step=5,
        loss=3.25,
        grad_norm=0.75,
        learning_rate=3e-4,
        tokens_seen=10240,
        window_steps=1,
        step_ms=500.0,
        data_wait_ms=2.0,
        loss_scale=None,
        skipped_steps=0,
        bubble_fraction=0.2,
        step_percentiles_ms=(490.0, 600.0, 700.0),
        eval_loss=3.5,
    )


@pytest.fixture
def row() -> Row:
    return {
        "step": 5,
        "train/loss": 3.25,
        "train/grad_norm": 0.75,
        "train/learning_rate": 3e-4,
        "train/tokens_seen": 10240,
        "perf/tokens_per_second": 12345.0,
        "perf/tflops_per_gpu": 1.5,
        "time/step_ms": 500.0,
        "memory/peak_allocated_gib": 1.25,
    }
