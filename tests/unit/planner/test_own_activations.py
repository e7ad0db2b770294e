"""Planned activations against what autograd keeps, option by option, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from benchmarks.case import CASES, Case, gpu_case
from tests.helpers.models import drawn_gpt
from trainer.config.ds_json import reduce_bucket_size
from trainer.config.plan import RunPlan
from trainer.kernels import document_attention
from trainer.micro_batch import Documents, MicroBatch
from trainer.planner import own_activations
from trainer.planner.own_memory import OwnMemory
from trainer.planner.prediction import StageMemory
from trainer.tensor_parallel import fused_loss

SMALL = {"hidden_size": 64, "ffn_hidden_size": 224, "num_heads": 2, "vocab_size": 64, "seq_length": 128}


def small(family: str) -> Case:
    return replace(CASES[family], micro_batch_size=2, num_layers=6, **SMALL)  # type: ignore[arg-type]


def on_cpu(plan: RunPlan) -> StageMemory:
    return OwnMemory(on_cpu=True).stages(plan)[0]


def kept_bytes(case: Case, options: Sequence[str], documents: Documents | None = None) -> int:
    """Bytes of distinct tensors that forward leaves for backward, parameters aside."""
    plan = case.plan((*options,))
    model = drawn_gpt(plan.config.model, plan.model.vocab_size, 1)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.zeros(case.micro_batch_size, case.seq_length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(MicroBatch.of(ids, labels=ids, documents=documents))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("family", ["cpu", "cpu_llama"])
def test_activations_are_those_that_autograd_keeps(family: str, recompute: str) -> None:
    words = (f"model.recompute={recompute}",)
    expected = on_cpu(small(family).plan(words)).activations
    assert kept_bytes(small(family), words) == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("cpu_llama", ["query_key_norm=head"]),
        ("cpu_llama", ["query_key_norm=full", "clip_qkv=3"]),
        ("cpu_llama", ["clip_qkv=3", "wiring=sandwich", "norm_offset=1"]),
        ("cpu_llama", ["wiring=output", "activation=relu2", "gated=true"]),
        ("cpu_llama", ["sliding_window=16", "num_key_value_heads=1"]),
        ("cpu", ["query_key_norm=head", "wiring=parallel_two_norms"]),
        ("cpu", ["clip_qkv=3", "wiring=parallel", "activation=silu"]),
        ("cpu", ["wiring=post", "gated=true", "residual_scale=0.5"]),
        ("cpu", ["activation=relu", "position=alibi"]),
        ("cpu", ["activation=relu2"]),
        ("cpu", ["num_key_value_heads=1", "position=alibi"]),
    ],
)
def test_activations_with_options_are_those_that_autograd_keeps(family: str, options: list[str]) -> None:
    words = [f"model.{option}" for option in options]
    expected = on_cpu(small(family).plan((*words,))).activations
    assert kept_bytes(small(family), words) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("cpu", []),
        ("cpu_llama", []),
        ("cpu_llama", ["sliding_window=16", "num_key_value_heads=1"]),
        ("cpu", ["position=alibi"]),
    ],
)
def test_the_larger_way_of_keeping_documents_apart_is_planned(
    family: str, options: list[str], recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"model.{option}" for option in [*options, f"recompute={recompute}"]]
    case = small(family)
    plan = case.plan((*words,))
    kept_apart = replace(plan, execution=replace(plan.execution, documents=True))
    expected = on_cpu(kept_apart).activations
    begins = torch.rand(2, case.seq_length, generator=torch.Generator().manual_seed(2)) < 0.1
    found = []
    for cost in (0, 1 << 40):
        monkeypatch.setattr(document_attention, "CALL_MULTIPLIES", cost)
        found.append(kept_bytes(case, words, Documents.of(begins)))
    # With recomputation the cache alone keeps alibi's bias.
    assert max(found) == pytest.approx(expected, rel=0.03 if "position=alibi" in options else 0.02)


def test_a_fused_loss_keeps_no_logits() -> None:
    case = CASES["cpu"]
    fused, whole = (on_cpu(case.plan((f"model.fused_loss={word}",))).loss for word in ("true", "false"))
    tokens, columns = 8 * 256, 8192
    # Logits and their gradient, what the head reads, and labels, weights and normalisers.
    assert whole == tokens * (8 * columns + 4 * 384 + 16)
    assert fused < whole / 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_chunk_of_the_loss_is_as_large_as_where_it_is_computed(device: str) -> None:
    assert own_activations.CHUNK_ELEMENTS == fused_loss.CHUNK_ELEMENTS
    for rows, width in ((1, 64), (63, 50257), (2048, 8192), (100_000, 128_256), (8192, 50304)):
        assert own_activations.chunk_rows(rows, width, device) == fused_loss.chunk_rows(rows, width, device)


def test_a_gpu_computes_more_logits_at_a_time() -> None:
    case = replace(gpu_case("124m", 1024), micro_batch_size=8)
    tokens, vocab, hidden = 8 * 1024, 50304, 768
    both = 2 * tokens * hidden * 2 + 4 * vocab * hidden
    for memory, device in ((OwnMemory(on_cpu=False), "cuda"), (OwnMemory(on_cpu=True), "cpu")):
        # fp32, beside logits and gradient in bf16.
        chunk = own_activations.chunk_rows(tokens, vocab, device) * vocab
        assert memory.stages(case.plan())[0].loss == both + 8 * chunk


def test_a_gpu_has_room_for_what_zero_keeps_beside_the_states() -> None:
    case = replace(gpu_case("124m", 1024), micro_batch_size=1)

    def on_gpu(*words: str) -> StageMemory:
        return OwnMemory(on_cpu=False).stages(case.plan(words))[0]

    count = case.plan().model.parameter_count
    bf16, without = on_gpu(), on_gpu("zero=stage1_offload")
    assert (bf16.weights, bf16.gradients, bf16.master, bf16.moments) == (2 * count, 6 * count, 4 * count, 8 * count)
    # Offloaded: states are on the host, as are a place for gradients and a buffer of weights on their way.
    assert (without.master, without.moments) == (0, 0)
    assert without.host > 18 * count
    assert without.buckets > 4 * reduce_bucket_size(case.plan())
    assert without.peak < bf16.peak
    assert bf16.overhead > without.overhead > 1 << 30
