from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.case import CASES, Case, gpu_case
from benchmarks.contenders import kernels, kernels_loss
from benchmarks.contenders.kernels import Attention, attention_rows, libraries, matrices, product_rows, rows_of
from benchmarks.contenders.kernels_loss import UNFUSED, Head, fused, liger, loss_rows, row_of, unfused, variants
from benchmarks.stopwatch import Stopwatch
from benchmarks.worker import Unavailable
from tests.helpers.batches import labelled
from trainer.kernels.loss_programs import LossPrograms, logit_gradient, logit_sums
from trainer.micro_batch import sequence_positions
from trainer.model.attention import Attention as OfTheModel
from trainer.tensor_parallel import fused_loss
from trainer.tensor_parallel.init import TensorContext
from trainer.topology.groups import SingleGroup

CPU = torch.device("cpu")
TINY = CASES["tiny"]
WATCH = Stopwatch(CPU, warmup=0, repeats=1)


class HalfSecond(Stopwatch):
    """Everything takes half a second."""

    def seconds(self, work: Any) -> float:
        work()
        return 0.5


def broken(*_: Any) -> Any:
    raise RuntimeError("no kernel image is available\nmore of it")


@pytest.mark.parametrize("family", ["tiny", "tiny_llama"])
def test_the_products_are_all_of_the_model(family: str) -> None:
    plan = CASES[family].plan()
    block = [tensor.numel for tensor in plan.model.blocks[0].tensors("b") if tensor.is_matrix]
    sizes = {name: width_in * width_out for name, (width_in, width_out) in matrices(CASES[family]).items()}
    assert sizes.pop("head") == plan.execution.padded(plan.model.vocab_size) * plan.model.hidden_size
    assert sum(sizes.values()) == sum(block)


def test_onednn_multiplies_only_fp32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_onednn", lambda: True)
    assert list(libraries(TINY)) == ["PyTorch's choice", "oneDNN"]
    assert list(libraries(replace(TINY, dtype="bf16"))) == list(libraries(gpu_case("124m", 1024)))
    assert list(libraries(gpu_case("124m", 1024))) == ["PyTorch's choice"]
    monkeypatch.setattr(kernels, "has_onednn", lambda: False)
    assert list(libraries(TINY)) == ["PyTorch's choice"]


def test_a_rate_counts_two_operations_a_product() -> None:
    first = product_rows(TINY, CPU, HalfSecond(CPU, 0, 1))[0]
    assert (first["product"], first["rows"], first["in"], first["out"]) == ("qkv", 128, 32, 96)
    rate = pytest.approx(2 * 128 * 32 * 96 / 0.5 / 1e12)
    assert first["tflops"] == {"forward": rate, "input_gradient": rate, "weight_gradient": rate}


def test_attention_reads_what_the_model_makes() -> None:
    mine = Attention(TINY, CPU)
    plan = TINY.plan()
    context = TensorContext(SingleGroup(), False, plan.execution)
    theirs = OfTheModel("attention", plan.model.blocks[0].attention, context)._heads(
        mine.qkv, sequence_positions(TINY.seq_length, CPU)
    )
    for part, other in zip(mine.parts(), theirs, strict=True):
        assert part.stride() == other.stride()
        assert part.storage_offset() == other.storage_offset()
        assert torch.equal(part, other)


def test_backends_compute_the_same() -> None:
    attention = Attention(TINY, CPU)
    found = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend):
            found.append([attention.forward(), attention.both()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0][1].shape == attention.qkv.shape


def test_a_backend_that_does_not_run_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_OF_A_CPU", (SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH))
    cudnn, plain = attention_rows(TINY, CPU, WATCH)
    assert cudnn["backend"] == "cuDNN"
    assert cudnn["failed"].startswith("RuntimeError: ")
    assert "forward_s" not in cudnn
    assert {"forward_s", "both_s"} <= set(plain)
    assert plain["choice"] == "flash"


def test_what_fails_has_one_line_of_reason() -> None:
    assert row_of({"x": 1}, broken) == {"x": 1, "failed": "RuntimeError: no kernel image is available"}
    assert rows_of(TINY, broken) == [{"case": "tiny", "failed": "RuntimeError: no kernel image is available"}]
    assert rows_of(TINY, lambda case: [{"case": case.name}]) == [{"case": "tiny"}]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_way_to_the_loss_is_held_against_whole_logits(dtype: str) -> None:
    rows = {row["way"]: row for row in loss_rows(replace(TINY, dtype=dtype), CPU, WATCH, [1 << 12], compiles=False)}
    whole, mine = rows[UNFUSED], rows["fused, chunks of 2^12"]
    assert (whole["loss_error"], whole["gradient_error"]) == (0, 0)
    assert {"forward_s", "both_s", "peak_bytes"} <= set(mine)
    assert rows["Liger"]["failed"] in ("Liger's kernels need a GPU", "liger-kernel is not installed")


def test_a_loss_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "other loss": lambda head: unfused(head) + 0.01,
        "other gradient": lambda head: unfused(head) + (head.hidden - head.hidden.detach()).sum(),
        "none": lambda head: unfused(head) * math.nan,
        "broken": broken,
    }
    monkeypatch.setattr(kernels_loss, "variants", lambda chunks, compiles: wrong)
    whole, loss, gradient, none, failing = loss_rows(TINY, CPU, WATCH, [], compiles=False)
    assert "failed" not in whole
    assert loss["failed"].startswith("differs from whole logits: loss by 2.4e-03, gradients by 0.0e+00")
    assert gradient["failed"].startswith("differs from whole logits: loss by 0.0e+00, gradients by ")
    assert none["failed"] == "differs from whole logits: loss by nan, gradients by nan (relative)"
    assert failing["failed"] == "RuntimeError: no kernel image is available"
    assert not any("forward_s" in row for row in (loss, gradient, none, failing))


def test_without_whole_logits_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_loss, "unfused", broken)
    whole, *others = loss_rows(TINY, CPU, WATCH, [1 << 12], compiles=False)
    assert whole["failed"] == "RuntimeError: no kernel image is available"
    assert {one["failed"] for one in others} == {"whole logits, which it would be held against, do not run"}


def test_a_chunk_has_as_many_logits_as_are_asked_for() -> None:
    calls: list[int] = []

    def sums(logits: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(logits.numel())
        return logit_sums(logits, *others)

    before = dict(fused_loss.CHUNK_ELEMENTS)
    head = Head(TINY, CPU)
    loss = fused(head, 1 << 12, lambda: LossPrograms(sums, logit_gradient))
    assert calls == [1 << 12, 1 << 12]
    torch.testing.assert_close(loss, unfused(head))
    assert before == fused_loss.CHUNK_ELEMENTS
    head.batch = labelled(head.batch.input_ids[:1])
    with pytest.raises(ValueError, match="hidden must be"):
        fused(head, 1 << 12)
    assert before == fused_loss.CHUNK_ELEMENTS


def test_liger_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(TINY, CPU)
    monkeypatch.setattr(kernels_loss, "find_spec", lambda name: object())
    with pytest.raises(Unavailable, match=r"^Liger's kernels need a GPU$"):
        liger(head)
    monkeypatch.setattr(kernels_loss, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"^liger-kernel is not installed$"):
        liger(head)


def test_programs_are_compiled_only_if_asked_for() -> None:
    with_them, without = variants([1 << 20], compiles=True), variants([1 << 20], compiles=False)
    assert set(with_them) - set(without) == {"fused, compiled, chunks of 2^20"}


def test_a_cpu_is_timed_after_warming_up() -> None:
    calls: list[int] = []
    assert Stopwatch(CPU, warmup=2, repeats=3).seconds(lambda: calls.append(0)) >= 0
    assert len(calls) == 5


def test_a_gpu_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """Milliseconds from one to the next: 1, 3, 2."""

        made: list[Event] = []  # noqa: RUF012 - all of them

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.made.append(self)

        def record(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return [1.0, 3.0, 2.0][self.made.index(self) // 2]

    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device = torch.device("cuda", 0)
    assert Stopwatch(device, warmup=1, repeats=3).seconds(lambda: None) == pytest.approx(2e-3)
    assert waited == [device]


def test_a_micro_batch_is_what_goes_through_at_once() -> None:
    case = Case("x", seq_length=16, global_batch_size=8, micro_batch_size=2)
    assert case.tokens_in_micro_batch == 32
