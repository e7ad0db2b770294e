from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from trainer.loop.evaluate import mean_loss
from trainer.loop.source_losses import SourceLosses
from trainer.micro_batch import IGNORED, MicroBatch
from trainer.tensor_parallel import fused_loss
from trainer.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from trainer.tensor_parallel.fused_loss import HeadShard, vocab_parallel_linear_cross_entropy
from trainer.topology.groups import SingleGroup, single_process_groups

S, B, H, V = 70, 3, 5, 11
NAMES = ("web", "code", "math", "none")


def batches() -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for sources in ((0, 1, 0), (2, 0, 1)):
        ids = torch.randint(0, V, (B, S), generator=generator)
        labels = ids.roll(-1, 1)
        labels[0, :5] = IGNORED
        found.append(replace(MicroBatch.of(ids, labels), sources=sources))
    return found


@pytest.mark.parametrize("is_fused", [True, False])
def test_the_losses_of_sources_are_those_of_their_rows(is_fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several chunks in a row of sequences.
    monkeypatch.setitem(fused_loss.CHUNK_ELEMENTS, "cpu", 64 * V)
    torch.manual_seed(1)
    weight, hiddens = torch.randn(V, H), [torch.randn(S, B, H) for _ in range(2)]
    losses = SourceLosses(NAMES, batches(), single_process_groups())
    expected: dict[str, list[float]] = {name: [] for name in NAMES}
    whole = []
    for hidden, batch in zip(hiddens, losses.micro_batches, strict=True):
        assert batch.sources is not None
        if is_fused:
            head = HeadShard(weight.clone().requires_grad_(), SingleGroup(), V)
            loss = vocab_parallel_linear_cross_entropy(hidden, head, batch, sequence_parallel=False)
        else:
            loss = vocab_parallel_cross_entropy(hidden @ weight.t(), batch, SingleGroup(), V)
        whole.append((float(loss.detach()), float(batch.counted())))
        each = torch.nn.functional.cross_entropy(
            (hidden @ weight.t()).permute(1, 2, 0), batch.targets(), ignore_index=IGNORED, reduction="none"
        )
        for row, source in enumerate(batch.sources):
            expected[NAMES[source]] += each[row][batch.targets()[row] != IGNORED].tolist()
    found = losses.read()
    assert found.keys() == {"loss/web", "loss/code", "loss/math"}
    for name, values in expected.items():
        if values:
            # fp32 losses of single tokens.
            assert found[f"loss/{name}"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    total = sum(len(values) for values in expected.values())
    mean = sum(found[f"loss/{name}"] * len(values) for name, values in expected.items() if values) / total
    assert mean == pytest.approx(sum(loss * count for loss, count in whole) / total, abs=1e-6)


def test_a_rank_that_computes_no_loss_watches_nothing() -> None:
    without = [replace(batch, labels=None, count=3) for batch in batches()]
    losses = SourceLosses(NAMES, without, single_process_groups())
    assert losses.micro_batches == without
    assert losses.read() == {}


def test_the_loss_of_an_evaluation_is_the_mean_by_weights() -> None:
    assert mean_loss([2.5], [0.0]) == 2.5
    assert mean_loss([2.0, 4.0], [3.0, 1.0]) == 2.5
    assert mean_loss([2.0, math.nan], [3.0, 0.0]) == 2.0
    assert mean_loss([2.0, 4.0], [0.0, 0.0]) == 3.0
    assert math.isnan(mean_loss([2.0, math.nan], [1.0, 1.0]))
