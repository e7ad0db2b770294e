from __future__ import annotations

import math
from typing import cast

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.batches import labelled
from tests.helpers.thread_group import ThreadGroup, run_ranks
from trainer.errors import DataError
from trainer.micro_batch import IGNORED
from trainer.spec.execution import Execution
from trainer.tensor_parallel import cross_entropy
from trainer.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from trainer.topology.groups import Group, SingleGroup

S, B = 6, 3


def sharded(
    logits: torch.Tensor, labels: torch.Tensor, size: int, vocab_size: int, weights: torch.Tensor | None = None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return each rank's loss and the whole gradient, padding included."""
    width = Execution(S, vocab_unit=2 * size).padded(vocab_size)
    # Padding that would win if it were not masked.
    padded = F.pad(logits, (0, width - vocab_size), value=100.0)

    batch = labelled(labels, weights)

    def body(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        mine = padded.chunk(size, dim=-1)[group.rank].clone().requires_grad_()
        loss = vocab_parallel_cross_entropy(mine, batch, group, vocab_size)
        (loss * 3.0).backward()  # type: ignore[no-untyped-call]
        assert mine.grad is not None
        return loss.detach(), mine.grad

    losses, gradients = zip(*run_ranks(size, body), strict=True)
    return list(losses), torch.cat(gradients, dim=-1)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("vocab_size", [16, 13, 5, 2])
@pytest.mark.parametrize("chunk_elements", [1 << 24, 7])
def test_equals_torch_cross_entropy(
    size: int, vocab_size: int, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", chunk_elements)
    logits, labels = 4 * torch.randn(S, B, vocab_size), torch.randint(0, vocab_size, (B, S))
    losses, gradient = sharded(logits, labels, size, vocab_size)
    leaf = logits.clone().requires_grad_()
    expected = F.cross_entropy(leaf.flatten(0, 1), labels.transpose(0, 1).flatten())
    (expected * 3.0).backward()  # type: ignore[no-untyped-call]
    for loss in losses:
        assert loss.dtype is torch.float32
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient[..., :vocab_size], leaf.grad, rtol=1e-5, atol=1e-7)
    assert gradient[..., vocab_size:].abs().sum() == 0


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("chunk_elements", [1 << 24, 7])
def test_tokens_count_by_their_labels_and_weights(
    size: int, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", chunk_elements)
    logits, labels, weights = 4 * torch.randn(S, B, 13), torch.randint(0, 13, (B, S)), torch.rand(B, S)
    labels[0], weights[1, :2] = IGNORED, 0.0
    losses, gradient = sharded(logits, labels, size, 13, weights)
    leaf = logits.clone().requires_grad_()
    each = F.cross_entropy(leaf.permute(1, 2, 0), labels, reduction="none", ignore_index=IGNORED)
    expected = (each * weights).sum() / weights[labels != IGNORED].sum()
    (expected * 3.0).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses[0], expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient[..., :13], leaf.grad, rtol=1e-5, atol=1e-7)
    assert gradient[:, 0].abs().sum() == gradient[:2, 1].abs().sum() == 0


def test_a_micro_batch_without_a_counted_token_costs_nothing() -> None:
    losses, gradient = sharded(torch.randn(S, B, 13), torch.full((B, S), IGNORED), 2, 13)
    assert [float(loss) for loss in losses] == [0.0, 0.0]
    assert gradient.abs().sum() == 0


@pytest.mark.parametrize("chunk_elements", [1 << 24, 60, 61, 7])
def test_chunks_cover_the_sequence_within_the_bound(chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", chunk_elements)
    logits = torch.zeros(S, B, 10)
    chunks = list(cross_entropy._chunks(logits))
    assert [position for part in chunks for position in range(S)[part]] == list(range(S))
    assert max(logits[part].numel() for part in chunks) <= max(chunk_elements, B * 10)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0, 0.0]]])
    losses, gradient = sharded(logits, torch.tensor([[1]]), 2, 4)
    assert losses[0].item() == pytest.approx(2e4)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_reduced_in_fp32(dtype: torch.dtype) -> None:
    logits = torch.randn(S, B, 300).to(dtype)
    labels = torch.randint(0, 300, (B, S))
    losses, gradient = sharded(logits, labels, 2, 300)
    expected = F.cross_entropy(logits.float().flatten(0, 1), labels.transpose(0, 1).flatten())
    assert losses[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradient.dtype is dtype


def test_communicates_two_small_tensors_and_nothing_in_backward() -> None:
    def body(group: Group) -> list[str]:
        logits = torch.randn(S, B, 4, requires_grad=True)
        labels = labelled(torch.zeros(B, S, dtype=torch.int64))
        vocab_parallel_cross_entropy(logits, labels, group, 8).backward()  # type: ignore[no-untyped-call]
        return cast(ThreadGroup, group).calls

    assert run_ranks(2, body) == [["all_reduce_max", "all_reduce_sum"]] * 2


def test_uniform_logits_cost_the_log_of_the_true_vocabulary() -> None:
    batch = labelled(torch.zeros(B, S, dtype=torch.int64))
    loss = vocab_parallel_cross_entropy(torch.zeros(S, B, 64), batch, SingleGroup(), 50)
    assert loss.item() == pytest.approx(math.log(50), rel=1e-6)


def test_wrong_shapes_and_labels_are_errors() -> None:
    labels = torch.zeros(B, S, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"logits must be \[S, B, V/tp\] for labels \[B, S\], but are \(3, 6, 8\)"):
        vocab_parallel_cross_entropy(torch.zeros(B, S, 8), labelled(labels), SingleGroup(), 8)
    with pytest.raises(DataError, match=r"token ids must be in \[0, 7\)"):
        vocab_parallel_cross_entropy(torch.zeros(S, B, 8), labelled(labels + 7), SingleGroup(), 7)
