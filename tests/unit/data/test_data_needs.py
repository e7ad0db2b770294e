from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.data.data_fixtures import config
from tests.unit.data.test_data_batches import SEQ_LENGTH, data
from trainer.config.plan import make_plan
from trainer.data.batches import needs_of, training_batches
from trainer.data.shard_set import ShardSet

CPU = torch.device("cpu")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Tokens that are read, by what is read of them."""
    counted: Counter[str] = Counter()

    def counting(name: str) -> None:
        original = getattr(ShardSet, name)

        def spy(self: ShardSet, start: int, count: int) -> object:
            counted[name] += count
            return original(self, start, count)

        monkeypatch.setattr(ShardSet, name, spy)

    for name in ("tokens", "begins", "marks"):
        counting(name)
    return counted


@pytest.mark.parametrize(
    ("schedule", "pp", "readers"), [("1f1b", 3, {0, 2}), ("1f1b", 1, {0}), ("1f1b", 4, {0, 3}), ("dualpipev", 2, {0})]
)
@pytest.mark.parametrize("masked", [False, True])
def test_stages_that_need_no_tokens_read_none(
    schedule: str, pp: int, readers: set[int], masked: bool, tmp_path: Path, reads: Counter[str]
) -> None:
    keys: dict[str, Any] = {"data__mask_documents": True, "data__boundary_label": "ignore"} if masked else {}
    plan = make_plan(
        config(
            layout__pipeline_parallel_size=pp,
            layout__pipeline_schedule=schedule,
            model__num_layers=2 * pp,
            model__seq_length=SEQ_LENGTH,
            batch__global_batch_size=16,
            data__source="synthetic",
            **keys,
        ),
        vocab_size=10**4,
    )
    prepared = data(tmp_path, np.arange(401))
    for stage in range(pp):
        source = training_batches(prepared, plan, SEQ_LENGTH, 0, CPU, needs_of(plan, stage))
        reads.clear()
        batches = source.micro_batches(0, 1)
        # A sample has a token more than inputs: the last label.
        assert reads["tokens"] == (16 * (SEQ_LENGTH + 1) if stage in readers else 0)
        # Where documents end is needed by the attention of every stage.
        assert (reads["begins"] > 0) == masked
        assert all(batch.input_ids.shape == (1, SEQ_LENGTH) for batch in batches)
        # The rank that reports hashes all tokens, whatever its stage needs.
        reads.clear()
        source.ledger("", 0, 1)
        assert reads["tokens"] == 16 * (SEQ_LENGTH + 1)
