from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import cast

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.batches import labelled
from tests.helpers.thread_group import ThreadGroup, run_ranks
from trainer.errors import DataError
from trainer.kernels.loss_programs import LossPrograms, logit_gradient, logit_sums
from trainer.micro_batch import IGNORED
from trainer.spec.execution import Execution
from trainer.tensor_parallel import fused_loss
from trainer.tensor_parallel.fused_loss import HeadShard, chunk_rows, vocab_parallel_linear_cross_entropy
from trainer.tensor_parallel.logits import LogitShape
from trainer.topology.groups import Group, SingleGroup

S, B, H = 8, 3, 5
Sharded = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]


def sharded(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    size: int,
    sequence_parallel: bool,
    programs: LossPrograms | None = None,
    weights: torch.Tensor | None = None,
) -> Sharded:
    """Return each rank's loss, and the whole gradients of 3 x loss; the weight's with its padding."""
    vocab_size = len(weight)
    width = Execution(S, vocab_unit=2 * size).padded(vocab_size)
    # Padding that would win if it were not masked.
    padded = F.pad(weight, (0, 0, 0, width - vocab_size), value=50.0)

    batch = labelled(labels, weights)

    def body(group: Group) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mine = hidden.chunk(size)[group.rank] if sequence_parallel else hidden
        mine = mine.clone().requires_grad_()
        rows = padded.chunk(size)[group.rank].clone().requires_grad_()
        head = HeadShard(rows, group, vocab_size, programs=programs)
        loss = vocab_parallel_linear_cross_entropy(mine, head, batch, sequence_parallel)
        (loss * 3.0).backward()  # type: ignore[no-untyped-call]
        assert mine.grad is not None
        assert rows.grad is not None
        return loss.detach(), mine.grad, rows.grad

    losses, by_hidden, by_weight = zip(*run_ranks(size, body), strict=True)
    grad_hidden = torch.cat(by_hidden) if sequence_parallel else by_hidden[-1]
    return list(losses), grad_hidden, torch.cat(by_weight)


def expected(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = F.cross_entropy(F.linear(h, w).flatten(0, 1), labels.transpose(0, 1).flatten())
    (loss * 3.0).backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None
    assert w.grad is not None
    return loss.detach(), h.grad, w.grad


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("vocab_size", [16, 13, 5, 2])
@pytest.mark.parametrize(("rows", "width"), [(S * B, H), (7, H), (1, H), (S * B, S * B)])
def test_equals_linear_and_cross_entropy(
    size: int, vocab_size: int, rows: int, width: int, sequence_parallel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_loss, "chunk_rows", lambda *_: rows)
    # As wide as there are rows: one chunk's gradient is smaller than the weight's, and kept instead.
    hidden, weight = torch.randn(S, B, width), 2 * torch.randn(vocab_size, width)
    labels = torch.randint(0, vocab_size, (B, S))
    losses, by_hidden, by_weight = sharded(hidden, weight, labels, size, sequence_parallel)
    loss, grad_hidden, grad_weight = expected(hidden, weight, labels)
    for found in losses:
        assert found.dtype is torch.float32
        assert torch.equal(found, losses[0])
        torch.testing.assert_close(found, loss, rtol=1e-6, atol=1e-6)
    # Some roundings of the largest gradients, which are near 1: ranks add up in another order.
    torch.testing.assert_close(by_hidden, grad_hidden, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(by_weight[:vocab_size], grad_weight, rtol=1e-5, atol=5e-6)
    assert by_weight[vocab_size:].abs().sum() == 0


@pytest.mark.parametrize("programs", [None, LossPrograms(logit_sums, logit_gradient)], ids=["kernels", "programs"])
@pytest.mark.parametrize("shape", [LogitShape(0.4), LogitShape(softcap=1.5), LogitShape(2.0, 3.0)], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(7, H), (S * B, S * B)], ids=["chunks", "one"])
@pytest.mark.parametrize("size", [1, 2])
def test_bias_scale_and_cap_of_the_logits(
    size: int,
    rows: int,
    width: int,
    shape: LogitShape,
    programs: LossPrograms | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_loss, "chunk_rows", lambda *_: rows)
    # Five ids on two ranks: the padding must not get a gradient from its bias either.
    hidden, weight, bias = torch.randn(S, B, width), torch.randn(5, width), torch.randn(5)
    labels = torch.randint(0, 5, (B, S))
    local = Execution(S, vocab_unit=2 * size).padded(5) // size
    padded = [F.pad(tensor, (*[0, 0] * (tensor.ndim - 1), 0, local * size - 5)) for tensor in (weight, bias)]

    def body(group: Group) -> tuple[torch.Tensor, ...]:
        leaves = [one.chunk(size)[group.rank].clone().requires_grad_() for one in padded]
        mine = hidden.clone().requires_grad_()
        head = HeadShard(leaves[0], group, 5, leaves[1], shape, programs)
        loss = vocab_parallel_linear_cross_entropy(mine, head, labelled(labels), False)
        (loss * 3.0).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), *(leaf.grad for leaf in (mine, *leaves) if leaf.grad is not None)

    ranks = run_ranks(size, body)
    h, w, b = (one.clone().requires_grad_() for one in (hidden, weight, bias))
    logits = F.linear(h, w, b) * shape.scale
    logits = logits if shape.softcap is None else shape.softcap * torch.tanh(logits / shape.softcap)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.transpose(0, 1).flatten())
    (loss * 3.0).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ranks[0][0], loss.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ranks[-1][1], h.grad, rtol=1e-5, atol=2e-6)
    for index, grad in ((2, w.grad), (3, b.grad)):
        found = torch.cat([rank[index] for rank in ranks])
        torch.testing.assert_close(found[:5], grad, rtol=1e-5, atol=2e-6)
        assert found[5:].abs().sum() == 0


def test_a_frozen_bias_gets_no_gradient() -> None:
    hidden, weight, bias = torch.randn(S, B, H, requires_grad=True), torch.randn(6, H), torch.randn(6)
    labels = labelled(torch.zeros(B, S, dtype=torch.int64))
    head = HeadShard(weight, SingleGroup(), 6, bias)
    vocab_parallel_linear_cross_entropy(hidden, head, labels, False).backward()  # type: ignore[no-untyped-call]
    assert bias.grad is None
    assert hidden.grad is not None


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("vocab_size", [16, 5, 2])
@pytest.mark.parametrize("rows", [S * B, 7])
def test_the_programs_of_a_chunk_equal_the_kernels(
    size: int, vocab_size: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_loss, "chunk_rows", lambda *_: rows)
    hidden, weight = torch.randn(S, B, H), 2 * torch.randn(vocab_size, H)
    labels = torch.randint(0, vocab_size, (B, S))
    programs = LossPrograms(logit_sums, logit_gradient)
    losses, by_hidden, by_weight = sharded(hidden, weight, labels, size, False, programs)
    loss, grad_hidden, grad_weight = expected(hidden, weight, labels)
    torch.testing.assert_close(losses[0], loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(by_hidden, grad_hidden, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_weight[:vocab_size], grad_weight, rtol=1e-5, atol=1e-6)
    assert by_weight[vocab_size:].abs().sum() == 0


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("width", [H, S * B])
@pytest.mark.parametrize("rows", [S * B, 7])
@pytest.mark.parametrize("programs", [None, LossPrograms(logit_sums, logit_gradient)])
def test_tokens_count_by_their_labels_and_weights(
    programs: LossPrograms | None,
    rows: int,
    width: int,
    size: int,
    sequence_parallel: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_loss, "chunk_rows", lambda *_: rows)
    hidden, weight = torch.randn(S, B, width), 2 * torch.randn(13, width)
    labels, weights = torch.randint(0, 13, (B, S)), torch.rand(B, S)
    labels[0], weights[1, :2] = IGNORED, 0.0
    losses, *found = sharded(hidden, weight, labels, size, sequence_parallel, programs, weights)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    each = F.cross_entropy(F.linear(h, w).permute(1, 2, 0), labels, reduction="none", ignore_index=IGNORED)
    expected = (each * weights).sum() / weights[labels != IGNORED].sum()
    (expected * 3.0).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses[0], expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[0], h.grad, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(found[1][:13], w.grad, rtol=1e-5, atol=5e-6)
    assert found[0][:, 0].abs().sum() == found[0][:2, 1].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_micro_batch_without_a_counted_token_costs_nothing(dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(S, B, H).to(dtype), torch.randn(13, H).to(dtype)
    losses, by_hidden, by_weight = sharded(hidden, weight, torch.full((B, S), IGNORED), 2, False)
    assert [float(loss) for loss in losses] == [0.0, 0.0]
    assert by_hidden.abs().sum() == by_weight.abs().sum() == 0


COMPILED = """
import torch
import torch.nn.functional as F
from trainer.kernels.loss_programs import LOWEST, compiled_loss
for dtype in (torch.float32, torch.bfloat16):
    logits, columns = torch.randn(6, 40).to(dtype), torch.randint(0, 40, (6,))
    here = torch.tensor([True, False, True, True, False, True])
    log_sum, picked = compiled_loss().sums(logits, columns, here)
    grad = compiled_loss().gradient(logits, columns, here, log_sum)
    assert log_sum.dtype is picked.dtype is torch.float32
    assert grad.dtype is dtype
    assert picked[1] == picked[4] == LOWEST
    torch.testing.assert_close(log_sum, logits.float().logsumexp(-1), rtol=1e-6, atol=1e-6)
    wanted = logits.float().softmax(-1) - here.unsqueeze(-1) * F.one_hot(columns, 40)
    # bf16 has 4e-3 a rounding.
    torch.testing.assert_close(grad.float(), wanted, rtol=1e-5 if dtype is torch.float32 else 4e-3, atol=1e-6)
print("equal")
"""


@pytest.mark.timeout(300)
def test_compiled_programs_equal_what_they_are_made_of() -> None:
    # In a process of its own: the compiler's packages leave messages at the end of theirs.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_gradients_agree_to_a_millionth() -> None:
    hidden, weight = torch.randn(128, 2, 64), 0.05 * torch.randn(3001, 64)
    labels = torch.randint(0, 3001, (2, 128))
    losses, *found = sharded(hidden, weight, labels, 1, False)
    loss, *wanted = expected(hidden, weight, labels)
    assert losses[0].item() == pytest.approx(loss.item(), rel=1e-6)
    for mine, theirs in zip((found[0], found[1][:3001]), wanted, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-6


@pytest.mark.parametrize("size", [1, 2])
def test_large_logits_do_not_overflow(size: int) -> None:
    hidden, weight = torch.ones(2, 1, 1), torch.tensor([[1e4], [-1e4], [0.0], [0.0]])
    labels = torch.tensor([[1, 0]])
    losses, by_hidden, by_weight = sharded(hidden, weight, labels, size, False)
    assert losses[0].item() == pytest.approx(1e4)
    assert torch.isfinite(by_hidden).all()
    assert torch.isfinite(by_weight).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 2])
def test_half_precision_adds_chunks_up_in_fp32(dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_loss, "chunk_rows", lambda *_: 1)
    hidden, weight = torch.randn(64, 4, H).to(dtype), torch.randn(30, H).to(dtype)
    labels = torch.zeros(4, 64, dtype=torch.int64)
    losses, by_hidden, by_weight = sharded(hidden, weight, labels, size, False)
    loss, grad_hidden, grad_weight = expected(hidden.float(), weight.float(), labels)
    assert losses[0].item() == pytest.approx(loss.item(), rel=5e-3)
    assert by_hidden.dtype is by_weight.dtype is dtype
    for mine, theirs in ((by_hidden, grad_hidden), (by_weight[:30], grad_weight)):
        # 256 chunks summed in bf16 would be wrong by several per cent.
        assert float((mine.float() - theirs).norm() / theirs.norm()) < 1e-2


def test_communicates_two_numbers_a_row_and_the_gradient_of_hidden() -> None:
    def body(group: Group, sequence_parallel: bool) -> list[str]:
        hidden = torch.randn(4 // (2 if sequence_parallel else 1), 1, H, requires_grad=True)
        weight = torch.randn(4, H, requires_grad=True)
        labels = labelled(torch.zeros(1, 4, dtype=torch.int64))
        loss = vocab_parallel_linear_cross_entropy(hidden, HeadShard(weight, group, 8), labels, sequence_parallel)
        loss.backward()  # type: ignore[no-untyped-call]
        return cast(ThreadGroup, group).calls

    assert run_ranks(2, lambda group: body(group, False)) == [["all_gather_0", "all_reduce_sum"]] * 2
    assert run_ranks(2, lambda group: body(group, True)) == [["all_gather_0", "all_gather_0", "reduce_scatter_0"]] * 2


def test_without_gradients_it_keeps_none() -> None:
    hidden, weight = torch.randn(S, B, H), torch.randn(6, H, requires_grad=True)
    labels = torch.randint(0, 6, (B, S))
    with torch.no_grad():
        loss = vocab_parallel_linear_cross_entropy(hidden, HeadShard(weight, SingleGroup(), 6), labelled(labels), False)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(expected(hidden, weight.detach(), labels)[0].item(), rel=1e-6)


def test_a_second_backward_is_an_error() -> None:
    hidden, weight = torch.randn(S, B, H, requires_grad=True), torch.randn(6, H, requires_grad=True)
    labels = labelled(torch.zeros(B, S, dtype=torch.int64))
    loss = vocab_parallel_linear_cross_entropy(hidden, HeadShard(weight, SingleGroup(), 6), labels, False)
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="once for each forward"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_wrong_shapes_and_labels_are_errors() -> None:
    labels = torch.zeros(B, S, dtype=torch.int64)
    head = HeadShard(torch.zeros(8, H), SingleGroup(), 8)
    with pytest.raises(ValueError, match=r"hidden must be \[S, B, H\] .* \(3, 8, 5\) and \(3, 8\)"):
        vocab_parallel_linear_cross_entropy(torch.zeros(B, S, H), head, labelled(labels), False)
    with pytest.raises(DataError, match=r"token ids must be in \[0, 7\)"):
        vocab_parallel_linear_cross_entropy(
            torch.zeros(S, B, H), replace(head, vocab_size=7), labelled(labels + 7), False
        )


@pytest.mark.parametrize(("rows", "width"), [(2048, 8192), (2048, 50304), (100, 50304), (1, 10), (5000, 128256)])
def test_chunks_are_bounded(rows: int, width: int) -> None:
    step = chunk_rows(rows, width, "cpu")
    assert 1 <= step <= rows
    assert step * width <= max(fused_loss.CHUNK_ELEMENTS["cpu"], 64 * width)


MEMORY = """
import json, sys
import torch
import torch.nn.functional as F
from trainer.micro_batch import MicroBatch
from trainer.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from trainer.tensor_parallel.fused_loss import HeadShard, vocab_parallel_linear_cross_entropy
from trainer.topology.groups import SingleGroup
from pathlib import Path

torch.set_num_threads(1)
torch.manual_seed(0)
S, H, V = 2048, 64, 50257
hidden, weight = torch.randn(S, 1, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
labels, group = torch.randint(0, V, (1, S)), SingleGroup()
batch = MicroBatch.of(labels, labels)

def rss(name):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))

Path("/proc/self/clear_refs").write_text("5")
before = rss("VmRSS")
if sys.argv[1] == "fused":
    loss = vocab_parallel_linear_cross_entropy(hidden, HeadShard(weight, group, V), batch, False)
else:
    loss = vocab_parallel_cross_entropy(F.linear(hidden, weight), batch, group, V)
loss.backward()
print(json.dumps({"mib": (rss("VmHWM") - before) / 1024, "loss": loss.item(), "norm": weight.grad.norm().item()}))
"""


def test_peak_memory_is_less_than_a_quarter_of_the_unfused_loss() -> None:
    found = {}
    for kind in ("fused", "unfused"):
        command = [sys.executable, "-c", MEMORY, kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found[kind] = json.loads(done.stdout)
    assert found["fused"]["loss"] == pytest.approx(found["unfused"]["loss"], rel=1e-6)
    assert found["fused"]["norm"] == pytest.approx(found["unfused"]["norm"], rel=1e-6)
    print(found)  # noqa: T201
    assert found["fused"]["mib"] < 0.25 * found["unfused"]["mib"]
