from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from benchmarks.case import CASES, Case, gpu_case
from tests.helpers.models import drawn_gpt
from trainer.config.ds_json import reduce_bucket_size
from trainer.micro_batch import MicroBatch
from trainer.planner import memory_theory
from trainer.planner.memory_theory import expected_bytes, gpu_bytes
from trainer.tensor_parallel import fused_loss


def kept_bytes(case: Case, recompute: str, options: Sequence[str] = ()) -> int:
    """Bytes of distinct tensors that forward leaves for backward, parameters aside."""
    plan = case.plan((f"model.recompute={recompute}", *options))
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
        model(MicroBatch.of(ids, labels=ids))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("family", ["cpu", "cpu_llama"])
def test_activations_are_those_that_autograd_keeps(family: str) -> None:
    small = {"hidden_size": 64, "ffn_hidden_size": 224, "num_heads": 2, "vocab_size": 64, "seq_length": 128}
    case = replace(CASES[family], micro_batch_size=2, num_layers=6, **small)  # type: ignore[arg-type]
    expected = expected_bytes(case.plan()).activations
    assert kept_bytes(case, "none") == pytest.approx(expected, rel=0.05)
    # What is computed again is one block more than forward keeps.
    again = expected_bytes(case.plan(("model.recompute=full",))).activations - expected // case.num_layers
    assert kept_bytes(case, "full") == pytest.approx(again, rel=0.35)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("cpu_llama", ["query_key_norm=head"]),
        ("cpu_llama", ["query_key_norm=full", "clip_qkv=3"]),
        ("cpu_llama", ["clip_qkv=3", "wiring=sandwich", "norm_offset=1"]),
        ("cpu_llama", ["wiring=output", "activation=relu2", "gated=true"]),
        ("cpu", ["query_key_norm=head", "wiring=parallel_two_norms"]),
        ("cpu", ["clip_qkv=3", "wiring=parallel", "activation=silu"]),
        ("cpu", ["wiring=post", "gated=true", "residual_scale=0.5"]),
        ("cpu", ["activation=relu", "position=alibi"]),
        ("cpu", ["activation=relu2"]),
    ],
)
def test_activations_with_options_are_those_that_autograd_keeps(family: str, options: list[str]) -> None:
    small = {"hidden_size": 64, "ffn_hidden_size": 224, "num_heads": 2, "vocab_size": 64, "seq_length": 128}
    case = replace(CASES[family], micro_batch_size=2, num_layers=6, **small)  # type: ignore[arg-type]
    words = [f"model.{option}" for option in options]
    expected = expected_bytes(case.plan((*words,))).activations
    assert kept_bytes(case, "none", words) == pytest.approx(expected, rel=0.06)


def states(*words: str, ranks: int = 2) -> tuple[float, float, float]:
    """Bytes a parameter for parameters, gradients and optimizer."""
    case = replace(CASES["cpu"], micro_batch_size=4)
    plan = case.plan(words, ranks)
    found, count = expected_bytes(plan), plan.model.parameter_count
    return found.parameters / count, found.gradients / count, found.optimizer / count


def test_states_are_shared_out_stage_by_stage() -> None:
    assert states(ranks=1) == (4, 4, 8)
    assert states("layout=dp2", "zero=stage0") == (4, 4, 8)
    # fp32 weights are their own masters, so nothing but the moments is in the optimizer.
    assert states("layout=dp2", "zero=stage1") == (4, 4, 4)
    assert states("layout=dp2", "zero=stage2") == (4, 2, 4)
    assert states("layout=dp2", "zero=stage3") == (2, 2, 4)
    assert states("layout=dp2", "zero=stage3", "precision=bf16") == (1, 2, 6)


def test_a_fused_loss_keeps_no_logits() -> None:
    case = CASES["cpu"]
    fused, whole = (expected_bytes(case.plan((f"model.fused_loss={word}",))).loss for word in ("true", "false"))
    assert whole == 8 * 256 * 8192 * 8
    assert fused < whole / 3


def test_a_chunk_of_the_loss_is_as_large_as_where_it_is_computed() -> None:
    assert memory_theory.CHUNK_ELEMENTS == fused_loss.CHUNK_ELEMENTS


def test_a_gpu_computes_more_logits_at_a_time() -> None:
    case = replace(gpu_case("124m", 1024), micro_batch_size=8)
    tokens, vocab, hidden = 8 * 1024, 50304, 768
    both = tokens * hidden * 2 + 4 * vocab * hidden
    # fp32, beside logits and gradient in bf16.
    assert expected_bytes(case.plan()).loss == both + 8 * (1 << 28)
    assert expected_bytes(replace(case, device="cpu").plan()).loss == both + 8 * (1 << 22)


def test_a_gpu_has_room_for_what_zero_keeps_beside_the_states() -> None:
    case = replace(gpu_case("124m", 1024), micro_batch_size=1)
    found = expected_bytes(case.plan())
    buckets = 8 * reduce_bucket_size(case.plan())
    assert gpu_bytes(case.plan()) == found.total + buckets
    assert gpu_bytes(case.plan(("zero=stage0",))) == expected_bytes(case.plan(("zero=stage0",))).total
    # Offloaded: the state is on the host, and so is what the update reads.
    assert gpu_bytes(case.plan(("zero=stage1_offload",))) == found.total + buckets - found.optimizer
    # Of a large model the copy for the update is more than activations and loss.
    large = replace(gpu_case("6.7b", 1024), micro_batch_size=1).plan()
    count = large.model.parameter_count
    assert gpu_bytes(large) == (2 + 4 + 12 + 4) * count
