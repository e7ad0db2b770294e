"""Options of a block, against the oracle: whole, and with its tensors sharded."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import cast

import pytest
import torch

from tests.helpers.generation import at_rows, cached_logits, stage_with
from tests.helpers.models import context_of, drawn
from tests.helpers.options import LONG, OPTIONS
from tests.helpers.thread_group import ThreadGroup, local_gradients, local_weights, run_ranks, whole
from tests.helpers.tiny_models import TINY
from trainer.config.schema import LayerAttention, ModelConfig, PositionKind, RecomputeKind, RopeScaling, Wiring
from trainer.config.schema import RopeScalingKind as Kind
from trainer.micro_batch import MicroBatch
from trainer.model.attention import alibi_bias, alibi_slopes
from trainer.model.gpt import GPT, full_logits
from trainer.model.rotary import attention_factor, inverse_frequencies
from trainer.oracle.reference import reference_gradients, reference_logits
from trainer.oracle.reference_rope import rotary_frequencies
from trainer.spec.rope import Rope
from trainer.topology.groups import Group, SingleGroup

VOCABULARY = 29


def built(config: ModelConfig, group: Group, sequence_parallel: bool = False) -> GPT:
    """Return a model whose norms and biases are off 1 and 0, the same in every layout, so that mistakes show."""
    gpt = drawn(GPT(context_of(config, VOCABULARY, group, sequence_parallel)), group, 17)
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 if name.endswith("weight") else -0.1)
            else:
                parameter.mul_(8.0)
    return gpt


def tokens(length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(0, VOCABULARY, (3, length + 1), generator=torch.Generator().manual_seed(1))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def check(config: ModelConfig, size: int, sequence_parallel: bool) -> None:
    """Compare loss, gradients and logits with the oracle's.

    fp32 has 6e-8 a rounding, and sums over a few dozen terms are in another order; a gradient that is not summed over
    the ranks is wrong by its own size.
    """
    ids, labels = tokens()

    def body(group: Group) -> tuple[GPT, float, torch.Tensor]:
        gpt = built(config, group, sequence_parallel)
        loss = gpt(MicroBatch.of(ids, labels))
        loss.backward()
        with torch.no_grad():
            return gpt, loss.item(), full_logits(gpt(MicroBatch.of(ids)), gpt.context)

    models, losses, logits = zip(*run_ranks(size, body), strict=True)
    weights = whole(models, [local_weights(gpt) for gpt in models])
    gradients = whole(models, [local_gradients(gpt) for gpt in models])
    assert set(weights) == set(models[0].context.spec.tensors)
    expected_loss, expected = reference_gradients(config, weights, ids, labels)
    assert losses == pytest.approx([expected_loss] * size, rel=1e-6)
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=2e-5, atol=3e-6 * max(1.0, scale), msg=name)
    for found in logits:
        theirs = reference_logits(config, weights, ids).transpose(0, 1)
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=2e-5)


UNFUSED = [name for name, config in OPTIONS.items() if config.final_softcap is not None or config.head_bias]
"""Models whose head does more than multiply."""
PLACES = [(1, False), (2, False), (2, True), (4, False), (4, True)]
"""Numbers of tensor-parallel ranks, and whether they shard the sequence."""


@pytest.mark.parametrize(("size", "sequence_parallel"), PLACES)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_equal_the_oracle(name: str, size: int, sequence_parallel: bool) -> None:
    check(OPTIONS[name], size, sequence_parallel)


@pytest.mark.parametrize(("size", "sequence_parallel"), PLACES[::2])
@pytest.mark.parametrize("name", UNFUSED)
def test_heads_with_options_equal_the_oracle_unfused(name: str, size: int, sequence_parallel: bool) -> None:
    check(replace(OPTIONS[name], fused_loss=False), size, sequence_parallel)


@pytest.mark.parametrize("recompute", [RecomputeKind.selective, RecomputeKind.full])
@pytest.mark.parametrize("name", ["gemma3", "olmo2", "cohere", "neox", "alibi_window"])
def test_options_are_recomputed(name: str, recompute: RecomputeKind) -> None:
    check(replace(OPTIONS[name], recompute=recompute), 2, True)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_write_from_a_cache(name: str, size: int) -> None:
    gpt, (text, _) = built(OPTIONS[name], SingleGroup()).eval(), tokens()
    weights = whole([gpt], [local_weights(gpt)])
    # Frequencies that depend on the length are those of the text so far, in the cache too.
    by_length = name in ("dynamic", "longrope")
    begun = (12,) * 3 if by_length else (2, 7, 5)
    with torch.inference_mode():
        expected = at_rows(gpt(MicroBatch.of(text))[..., :VOCABULARY], begun)
    for found in run_ranks(
        size, lambda group: cached_logits(stage_with(OPTIONS[name], VOCABULARY, weights, group), text, begun)
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_a_text_is_turned_by_its_own_length_whatever_that_of_others_is(name: str) -> None:
    gpt, (text, _) = built(OPTIONS[name], SingleGroup()).eval(), tokens()
    stage = stage_with(OPTIONS[name], VOCABULARY, whole([gpt], [local_weights(gpt)]))
    begun = (1, 7, 4)
    found = cached_logits(stage, text, begun)
    for row, length in enumerate(begun):
        alone = cached_logits(stage, text[row : row + 1, : length + 5], [length])
        torch.testing.assert_close(found[:, row], alone[:, 0], rtol=1e-5, atol=2e-5)


def calls_of(config: ModelConfig, sequence_parallel: bool) -> tuple[list[str], list[str]]:
    """Return the collectives of one block's forward and backward on two ranks."""

    def body(group: Group) -> tuple[list[str], list[str]]:
        gpt = built(config, group, sequence_parallel)
        hidden = torch.randn(12 // (2 if sequence_parallel else 1), 3, config.hidden_size, requires_grad=True)
        calls = cast(ThreadGroup, group).calls
        calls.clear()
        output = gpt.blocks[0](hidden, MicroBatch.of(tokens()[0]))
        forward = list(calls)
        calls.clear()
        output.sum().backward()
        return forward, list(calls)

    return run_ranks(2, body)[0]


@pytest.mark.parametrize("wiring", [Wiring.parallel, Wiring.parallel_two_norms])
def test_a_parallel_block_sends_one_message_each_way(wiring: Wiring) -> None:
    config = replace(TINY, wiring=wiring)
    assert calls_of(config, False) == (["all_reduce_sum"], ["all_reduce_sum"])
    assert calls_of(TINY, False) == (["all_reduce_sum"] * 2, ["all_reduce_sum"] * 2)
    forward, backward = calls_of(replace(config, bias=False, norm_weight=False), True)
    assert forward == ["all_gather_0", "reduce_scatter_0"]
    assert sorted(backward) == ["all_gather_0", "reduce_scatter_0"]


def test_a_parallel_block_with_dropout_still_equals_itself_whole() -> None:
    from trainer.micro_batch import Place

    config = replace(TINY, wiring=Wiring.parallel, dropout=0.3)
    ids, labels = tokens()

    def body(group: Group) -> float:
        gpt = built(config, group)
        return float(gpt(MicroBatch.of(ids, labels, place=Place(1, 2, 0))).detach())

    assert run_ranks(2, body) == pytest.approx([run_ranks(1, body)[0]] * 2, rel=1e-6)


def test_norms_over_the_full_width_send_one_message_each_way() -> None:
    forward, backward = calls_of(replace(OPTIONS["yarn"], num_key_value_heads=None), False)
    assert forward == ["all_reduce_sum"] * 3
    assert backward == ["all_reduce_sum"] * 3


def test_ranks_that_share_a_head_hold_it_whole_and_alike() -> None:
    def body(group: Group) -> tuple[tuple[int, ...], torch.Tensor, torch.Tensor]:
        gpt = built(OPTIONS["olmo2"], group)
        gpt(MicroBatch.of(*tokens())).backward()
        own, shared = (gpt.get_parameter(f"blocks.0.attention.qkv.{name}") for name in ("weight", "shared_weight"))
        assert shared.grad is not None
        return tuple(own.shape), shared.detach(), shared.grad

    shapes, weights, gradients = zip(*run_ranks(4, body), strict=True)
    # Two of eight query heads, and both key and both value heads.
    assert shapes == ((8, 16),) * 4
    assert weights[0].shape == (16, 16)
    for values in (weights, gradients):
        assert all(torch.equal(other, values[0]) for other in values)


def test_a_head_that_no_rank_can_have_whole_is_refused() -> None:
    from trainer.errors import ConfigError

    with pytest.raises(ConfigError, match=r"model.num_key_value_heads \(3\) must be divisible by layout.tensor_para"):
        run_ranks(
            2, lambda group: built(replace(TINY, num_attention_heads=6, num_key_value_heads=3, head_dim=2), group)
        )


SCALINGS = {
    "linear": RopeScaling(Kind.linear, 4.0),
    "dynamic": RopeScaling(Kind.dynamic, 2.0, original_length=32),
    "llama3": RopeScaling(Kind.llama3, 8.0, original_length=128),
    "yarn": RopeScaling(Kind.yarn, 16.0, original_length=256),
    "yarn_exact": RopeScaling(Kind.yarn, 16.0, original_length=256, truncate=False, beta_fast=20.0, beta_slow=2.0),
    "yarn_scaled": RopeScaling(Kind.yarn, 16.0, original_length=256, mscale=0.7, mscale_all_dim=1.0),
    "longrope": replace(
        LONG, short_factor=tuple(1 + 0.1 * i for i in range(16)), long_factor=tuple(2.0 + i for i in range(16))
    ),
}


@pytest.mark.parametrize("length", [8, 64])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_the_oracles_and_those_of_transformers(name: str, length: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, seq_length = SCALINGS[name], 64
    config = ModelConfig(
        hidden_size=64, num_attention_heads=2, position=PositionKind.rope, rope_theta=500.0, rope_scaling=scaling
    )
    frequencies, factor = rotary_frequencies(config, 32, False, length)
    found = inverse_frequencies(Rope(500.0, 32, scaling), length)
    torch.testing.assert_close(found.double(), torch.tensor(frequencies, dtype=torch.float64), rtol=1e-6, atol=0)
    assert attention_factor(scaling) == pytest.approx(factor, rel=1e-12)
    original = scaling.original_length or seq_length
    theirs: dict[str, object] = {
        "rope_type": scaling.kind.value,
        "rope_theta": 500.0,
        "factor": scaling.factor,
        "original_max_position_embeddings": original,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
        "short_factor": list(scaling.short_factor),
        "long_factor": list(scaling.long_factor),
    }
    if scaling.mscale is not None:
        theirs |= {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
    hugging = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=original)
    hugging.rope_parameters = theirs
    expected, their_factor = ROPE_INIT_FUNCTIONS[scaling.kind.value](hugging, torch.device("cpu"), seq_len=length)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert attention_factor(scaling) == pytest.approx(their_factor, rel=1e-12)


@pytest.mark.parametrize("heads", [1, 8, 12, 20])
def test_slopes_of_alibi_equal_those_of_transformers(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(torch.tensor(alibi_slopes(heads)), theirs, rtol=1e-6, atol=0)


def test_a_position_beyond_the_table_is_told() -> None:
    gpt = built(replace(OPTIONS["opt"], seq_length=4), SingleGroup())
    assert gpt.position.weight is not None
    assert len(gpt.position.weight) == 6
    with pytest.raises(ValueError, match=r"at most model.seq_length \(4\) tokens"):
        gpt(MicroBatch.of(torch.zeros(1, 5, dtype=torch.int64)))


def test_a_norm_with_an_offset_is_scaled_in_fp32() -> None:
    from trainer.model.norm import Norm
    from trainer.spec.parts import Norm as NormSpec
    from trainer.spec.parts import NormKind

    spec = NormSpec(NormKind.rmsnorm, 64, 1e-6, offset=1.0)
    norm = drawn(Norm("n", spec, context_of(TINY, VOCABULARY)), SingleGroup(), 1).bfloat16()
    with torch.no_grad():
        # bf16 has 8 bits: 1 + w would round to 1.
        norm.weight.fill_(1e-3)  # type: ignore[union-attr]
    hidden = torch.linspace(-2, 2, 64).bfloat16()
    values = hidden.float()
    exact = values / values.square().mean().add(1e-6).sqrt() * 1.001
    assert float((norm(hidden).detach().float() - exact).mean().abs()) < 1e-3
    assert norm(hidden).dtype is torch.bfloat16


def test_layers_without_rotation_do_not_know_positions() -> None:
    config = replace(OPTIONS["smollm3"], layer_pattern=(LayerAttention.full_no_rope,), num_layers=1)
    gpt = built(config, SingleGroup()).eval()
    ids = torch.tensor([[3, 3, 3, 3, 5]])
    with torch.no_grad():
        logits = gpt(MicroBatch.of(ids))
    torch.testing.assert_close(logits[0], logits[3], rtol=1e-5, atol=1e-5)


def test_what_alibi_adds_is_kept_once_for_layers_that_are_alike() -> None:
    slopes, like = alibi_slopes(6), (torch.float32, torch.device("cpu"))
    first, windowed = alibi_bias(slopes, 5, 5, None, like), alibi_bias(slopes, 5, 5, 2, like)
    assert alibi_bias(slopes, 5, 5, None, like) is first
    gone = weakref.ref(first)
    del first
    # A prompt of another length, as it comes in generation.
    alibi_bias(slopes, 9, 9, None, like)
    assert gone() is None
    assert alibi_bias(slopes, 5, 5, 2, like) is windowed
