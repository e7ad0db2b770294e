"""Single layers: precision, key/value cache, and every check's failing branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from tests.helpers.models import context_of, drawn
from tests.helpers.thread_group import run_ranks
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.models import make_model
from trainer.config.schema import ModelConfig, NormKind, RecomputeKind
from trainer.errors import ConfigError
from trainer.kernels.document_attention import causal_mask
from trainer.micro_batch import MicroBatch, Place
from trainer.model.gpt import (
    GPT,
    ModelContext,
    build_layer,
    tied_head,
)
from trainer.model.limits import not_computed
from trainer.model.mlp import MLP, activate
from trainer.model.norm import Norm
from trainer.model.rotary import _table_for_all, _table_of_rows, rotate
from trainer.spec.parts import Activation, FeedForward
from trainer.spec.parts import Norm as NormSpec
from trainer.spec.rope import Rope
from trainer.tensor_parallel.embedding import VocabParallelEmbedding
from trainer.tensor_parallel.shard import shard_spec
from trainer.topology.groups import FakeGroup, Group, SingleGroup

VOCABULARY = 29
PLACE = Place(seed=1, step=1, first_sample=0)
WINDOWED = replace(TINY_LLAMA, num_key_value_heads=2, sliding_window=4)


def context(model: ModelConfig, group: Group | None = None, sequence_parallel: bool = False) -> ModelContext:
    return context_of(model, VOCABULARY, group, sequence_parallel)


def built(one: ModelContext) -> GPT:
    return drawn(GPT(one), one.tensor, 1)


def ids(length: int = 12, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("model", [TINY, TINY_LLAMA])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_layers_in_a_row_are_the_whole_model(model: ModelConfig, sequence_parallel: bool) -> None:
    input_ids = ids()

    def body(group: Group) -> tuple[float, float, set[str]]:
        one = context(model, group, sequence_parallel)
        names = [layer.name for layer in one.spec.layers]
        assert names == ["embedding", "position", "blocks.0", "blocks.1", "final_norm", "head"]
        layers: list[Callable[[torch.Tensor, MicroBatch], torch.Tensor]] = []
        found: set[str] = set()
        for name in names:
            if name == "head" and one.spec.head.tied:
                embedding = layers[0]
                assert isinstance(embedding, VocabParallelEmbedding)
                layers.append(partial(tied_head, embedding))
                continue
            layer = drawn(build_layer(name, one), one.tensor, 1)
            layers.append(layer)
            found |= {shard_spec(parameter).name for parameter in layer.parameters()}
        hidden, batch = input_ids, MicroBatch.of(input_ids, input_ids)
        for name, step in zip(names, layers, strict=True):
            hidden = step(hidden, batch)
            local = 12 // group.size if sequence_parallel else 12
            assert hidden.shape[:2] == (() if name == "head" else (local, 2))
        gpt = built(one)
        assert {name for name, _ in gpt.named_parameters()} == found
        assert all(shard_spec(parameter).name == name for name, parameter in gpt.named_parameters())
        return hidden.item(), gpt(batch).item(), found

    for by_layer, at_once, found in run_ranks(2, body):
        assert by_layer == at_once
        assert ("head.weight" in found) != model.tied_embeddings


@pytest.mark.parametrize("model", [TINY_LLAMA, WINDOWED, replace(WINDOWED, attention_dropout=0.1)])
def test_inference_does_not_poison_training(model: ModelConfig) -> None:
    # Tables and masks are cached: made in inference mode they could not be saved for backward.
    for table in (_table_for_all, _table_of_rows):
        table.cache_clear()
    causal_mask.cache_clear()
    one = context(model)
    gpt = built(one).eval()
    with torch.inference_mode():
        gpt(MicroBatch.of(ids()))
        assert not causal_mask(12, 12, 4, torch.device("cpu")).is_inference()
    gpt.train()(MicroBatch.of(ids(), ids(), place=PLACE)).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", [TINY, WINDOWED, replace(TINY_LLAMA, attention_dropout=0.1, dropout=0.1)])
@pytest.mark.parametrize("recompute", [RecomputeKind.none, RecomputeKind.full])
def test_half_precision_is_close_to_fp32(model: ModelConfig, dtype: torch.dtype, recompute: RecomputeKind) -> None:
    def body(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        losses = []
        for cast in (torch.float32, dtype):
            one = context(replace(model, recompute=recompute), group, sequence_parallel=True)
            gpt = built(one).to(cast)
            loss = gpt(MicroBatch.of(ids(), ids(), place=PLACE))
            assert loss.dtype is torch.float32
            loss.backward()
            assert all(p.grad is not None and p.grad.dtype is cast for p in gpt.parameters())
            losses.append(loss.detach())
        return losses[0], losses[1]

    for exact, rounded in run_ranks(2, body):
        torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize("kind", list(NormKind))
def test_norm_takes_statistics_in_fp32(kind: NormKind) -> None:
    norm = drawn(
        Norm("n", NormSpec(kind, 1024, 1e-5, bias=kind is NormKind.layernorm), context(TINY)), SingleGroup(), 1
    )
    x = (torch.randn(4, 1024) * 30 + 100).half()
    expected = norm(x.float())
    torch.testing.assert_close(norm.half()(x).float(), expected, rtol=2e-3, atol=2e-3)


def test_rope_keeps_late_positions_apart_in_bf16() -> None:
    heads = torch.randn(4, 1, 1, 8).expand(4, 1, 1, 8)
    positions = torch.arange(4000, 4004).unsqueeze(0)
    exact = rotate(heads, Rope(10000.0, 8), positions, (0,))
    rounded = rotate(heads.bfloat16(), Rope(10000.0, 8), positions, (0,))
    assert rounded.dtype is torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=2e-2, atol=2e-2)


def test_rope_scores_depend_on_distance_only() -> None:
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    rope = Rope(100.0, 8)
    at = [torch.tensor([[start]]) for start in (0, 5, 50)]
    scores = [(rotate(query, rope, place + 3, (0,)) * rotate(key, rope, place, (0,))).sum().item() for place in at]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)
    assert scores[0] != pytest.approx((query * key).sum().item(), abs=1e-4)


def test_causal_mask_of_the_last_queries() -> None:
    mask = causal_mask(2, 4, 2, torch.device("cpu"))
    assert mask.tolist() == [[False, True, True, False], [False, False, True, True]]
    assert causal_mask(2, 3, None, torch.device("cpu")).tolist() == [[True, True, False], [True, True, True]]


def test_activations() -> None:
    x = torch.linspace(-3, 3, 8)
    assert torch.equal(activate(x, Activation.relu), x.clamp(min=0))
    assert torch.equal(activate(x, Activation.relu2), x.clamp(min=0) ** 2)
    torch.testing.assert_close(activate(x, Activation.silu), x * torch.sigmoid(x))
    torch.testing.assert_close(activate(x, Activation.gelu), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    assert not torch.equal(activate(x, Activation.gelu), activate(x, Activation.gelu_tanh))


@pytest.mark.parametrize("kind", list(Activation))
def test_a_gate_scales_what_is_up(kind: Activation) -> None:
    mlp = drawn(MLP("m", FeedForward(4, 8, kind, gated=True), context(TINY)), SingleGroup(), 1)
    hidden = torch.randn(3, 1, 4)
    gate, up = (hidden @ mlp.get_submodule("gate_up").weight.T).chunk(2, dim=-1)  # type: ignore[operator]
    torch.testing.assert_close(mlp(hidden), (activate(gate, kind) * up) @ mlp.down.weight.T)


def test_every_size_that_cannot_be_cut_is_named() -> None:
    config = replace(TINY, num_attention_heads=6, num_key_value_heads=3, head_dim=4, ffn_hidden_size=10)
    with pytest.raises(ConfigError) as caught:
        GPT(context(config, FakeGroup(0, 4)))
    assert caught.value.problems == (
        "model.num_attention_heads (6) must be divisible by layout.tensor_parallel_size (4)",
        "model.ffn_hidden_size (10) must be divisible by layout.tensor_parallel_size (4)",
        "model.num_key_value_heads (3) must be divisible by layout.tensor_parallel_size (4), or divide it",
    )
    with pytest.raises(ConfigError, match=r"num_attention_heads \(4\) must be divisible by model.num_key_value_heads"):
        build_layer("blocks.0", context(replace(TINY, num_key_value_heads=3)))


def test_options_that_no_layer_computes_are_named() -> None:
    model = make_model(TINY, VOCABULARY)
    wrong = replace(model, final_norm=NormSpec(NormKind.rmsnorm, 8, 1e-5, bias=True))
    assert list(not_computed(model)) == []
    assert list(not_computed(wrong)) == ["final_norm.bias must be False for an RMSNorm, but is True"]


def test_unknown_layers_are_an_error() -> None:
    with pytest.raises(ValueError, match="a tied head is no layer of its own"):
        build_layer("head", context(TINY))
    with pytest.raises(ValueError, match=r"layer must be one of embedding, .*head, but is blocks\.2"):
        build_layer("blocks.2", context(TINY))


def test_wrong_inputs_are_errors() -> None:
    gpt = built(context(TINY))
    with pytest.raises(ValueError, match=r"input_ids must be \[B, S\], but have shape \(12,\)"):
        gpt(MicroBatch.of(ids()[0]))
    with pytest.raises(ValueError, match=r"at most model\.seq_length \(12\) tokens .* but has 13"):
        gpt(MicroBatch.of(ids(13)))
    sharded = built(context(TINY, FakeGroup(0, 2), sequence_parallel=True))
    with pytest.raises(ConfigError, match=r"sequence length \(11\) must be divisible"):
        sharded(MicroBatch.of(ids(11)))


def test_sequence_parallel_on_one_rank_is_nothing() -> None:
    plain, sharded = built(context(TINY)), built(context(TINY, sequence_parallel=True))
    assert plain(MicroBatch.of(ids(), ids())).item() == sharded(MicroBatch.of(ids(), ids())).item()


def test_no_layer_holds_a_float_buffer() -> None:
    # `module.half()` casts buffers; a cast rotary table would be wrong.
    gpt: nn.Module = built(context(TINY_LLAMA))
    assert list(gpt.buffers()) == []
