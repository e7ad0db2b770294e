"""Families as data: every wiring, partial rotation and blocks that differ, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.helpers.families import toy, toy_oracle
from tests.helpers.models import context_of, drawn
from tests.helpers.thread_group import local_gradients, local_weights, run_ranks, whole
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.schema import ModelConfig, RecomputeKind
from trainer.errors import ConfigError
from trainer.inference.stage import StageModel
from trainer.micro_batch import MicroBatch
from trainer.model.cache import KeyValueCache
from trainer.model.gpt import GPT
from trainer.oracle.reference import reference_gradients
from trainer.spec.model import Block, Model, Wiring
from trainer.spec.parts import Activation, Norm, NormKind
from trainer.tensor_parallel.init import fill
from trainer.tensor_parallel.shard import shard_spec
from trainer.topology.groups import Group, SingleGroup

VOCABULARY = 29
GATED = replace(TINY_LLAMA, num_attention_heads=8, num_key_value_heads=4, head_dim=4)


def lively(module: nn.Module) -> None:
    """Move norms and biases off 1 and 0, the same in every layout, so that a mistake in them shows."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 if name.endswith("weight") else -0.1)
            else:
                parameter.mul_(8.0)


def check(
    config: ModelConfig, family: Callable[[Model], Model], oracle: ModelConfig, size: int, sequence_parallel: bool
) -> None:
    """Compare loss and gradients of a family with the oracle's."""
    text = torch.randint(0, VOCABULARY, (3, 13), generator=torch.Generator().manual_seed(1))
    ids, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()

    def body(group: Group) -> tuple[GPT, float]:
        gpt = drawn(GPT(context_of(config, VOCABULARY, group, sequence_parallel, family=family)), group, 17)
        lively(gpt)
        loss = gpt(MicroBatch.of(ids, labels))
        loss.backward()
        return gpt, loss.item()

    models, losses = zip(*run_ranks(size, body), strict=True)
    weights = whole(models, [local_weights(gpt) for gpt in models])
    gradients = whole(models, [local_gradients(gpt) for gpt in models])
    assert set(weights) == set(models[0].context.spec.tensors)
    expected_loss, expected = reference_gradients(oracle, weights, ids, labels)
    assert losses == pytest.approx([expected_loss] * size, rel=1e-6)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=2e-6 * max(1.0, scale), msg=name)


def rewired(wiring: Wiring) -> Callable[[Model], Model]:
    return lambda model: replace(model, blocks=tuple(replace(block, wiring=wiring) for block in model.blocks))


@pytest.mark.parametrize(("size", "sequence_parallel"), [(1, False), (2, True)])
@pytest.mark.parametrize("config", [TINY, GATED], ids=["gpt2", "gated"])
@pytest.mark.parametrize("wiring", list(Wiring))
def test_every_wiring_equals_the_oracle(
    wiring: Wiring, config: ModelConfig, size: int, sequence_parallel: bool
) -> None:
    check(config, rewired(wiring), replace(config, wiring=wiring), size, sequence_parallel)


@pytest.mark.parametrize("recompute", [RecomputeKind.none, RecomputeKind.full])
@pytest.mark.parametrize(("size", "sequence_parallel"), [(1, False), (2, False), (4, True)])
def test_the_toy_family_equals_the_oracle(size: int, sequence_parallel: bool, recompute: RecomputeKind) -> None:
    config = replace(TINY, num_layers=3, head_dim=8, recompute=recompute)
    check(config, toy, toy_oracle(config), size, sequence_parallel)


def test_the_toy_family_writes_from_a_cache() -> None:
    config = replace(TINY, num_layers=3, head_dim=8)
    gpt = drawn(GPT(context_of(config, VOCABULARY, family=toy)), SingleGroup(), 17).eval()
    lively(gpt)
    weights = {shard_spec(p).name: p.detach() for p in gpt.parameters()}
    model = StageModel(context_of(config, VOCABULARY, family=toy))
    fill(model, lambda spec, _: weights[spec.name].clone())
    text = torch.randint(0, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(1))
    cache = KeyValueCache(1, 12)
    with torch.inference_mode():
        expected = gpt(MicroBatch.of(text))[4:, 0, :VOCABULARY]
        found = [model(text[:, :5], cache.begin(0, text[:, :5]))]
        found += [model(one, cache.go_on(one)) for one in text[:, 5:].split(1, dim=1)]  # type: ignore[no-untyped-call]
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-5, atol=1e-5)


def blocks(change: Callable[[Block], Block]) -> Callable[[Model], Model]:
    return lambda model: replace(model, blocks=tuple(change(block) for block in model.blocks))


def outputs(family: Callable[[Model], Model]) -> tuple[GPT, torch.Tensor]:
    """Return a model of a family, and its logits for a fixed text."""
    gpt = drawn(GPT(context_of(TINY, VOCABULARY, family=family)), context_of(TINY, VOCABULARY).tensor, 17)
    with torch.no_grad():
        return gpt, gpt(MicroBatch.of(torch.arange(12).unsqueeze(0)))


def test_what_costs_nothing_is_computed() -> None:
    _, plain = outputs(lambda model: model)
    # The scale that is the default, said; 1 + w with w = 0 is w = 1; a norm without weight is one of ones.
    same: list[Callable[[Model], Model]] = [
        blocks(lambda block: replace(block, attention=replace(block.attention, scale=0.5))),
        blocks(lambda block: replace(block, norm=replace(block.norm, offset=1.0))),
        blocks(lambda block: replace(block, norm=replace(block.norm, weight=False, bias=False))),
    ]
    for family in same:
        torch.testing.assert_close(outputs(family)[1], plain)
    sharp = outputs(blocks(lambda block: replace(block, attention=replace(block.attention, scale=50.0))))[1]
    assert not torch.allclose(sharp, plain, rtol=1e-3)
    headless, logits = outputs(lambda model: replace(model, final_norm=None))
    assert headless.final_norm is None
    assert not torch.allclose(logits, plain, rtol=1e-3)


def test_biases_are_had_one_by_one() -> None:
    qwen = blocks(lambda block: replace(block, attention=replace(block.attention, output_bias=False)))
    names = set(dict(outputs(qwen)[0].named_parameters()))
    assert "blocks.0.attention.qkv.bias" in names
    assert "blocks.0.attention.output.bias" not in names
    gpt_j = blocks(lambda block: replace(block, feed_forward=replace(block.feed_forward, bias=False)))
    assert "blocks.1.mlp.up.bias" not in dict(outputs(gpt_j)[0].named_parameters())


HEAD_NORM = Norm(NormKind.rmsnorm, 4, 1e-5)
BIASED = Norm(NormKind.layernorm, 4, 1e-5, bias=True)
BARE = Norm(NormKind.layernorm, 16, 1e-5, weight=False, bias=True)


def with_norms(block: Block, query: Norm | None, key: Norm | None) -> Block:
    return replace(block, attention=replace(block.attention, query_norm=query, key_norm=key))


@pytest.mark.parametrize(
    ("family", "option"),
    [
        (blocks(lambda b: with_norms(b, HEAD_NORM, None)), "must normalise queries and keys alike"),
        (blocks(lambda b: with_norms(b, HEAD_NORM, BIASED)), r"attention\.key_norm\.bias must be False"),
        (lambda m: replace(m, embedding=replace(m.embedding, norm=BARE)), r"embedding\.norm\.bias must be False"),
        (blocks(lambda b: replace(b, norm=replace(b.norm, kind=NormKind.rmsnorm))), r"norm\.bias must be False"),
        (blocks(lambda b: replace(b, norm=replace(b.norm, weight=False))), r"norm\.bias must be False"),
        (lambda m: replace(toy(m), blocks=(replace_rope(toy(m).blocks[0], 3),)), r"rope\.dims must be even .* is 3"),
        (lambda m: replace(toy(m), blocks=(replace_rope(toy(m).blocks[0], 6),)), r"at most head_dim \(4\), but is 6"),
    ],
)
def test_what_the_layers_cannot_compute_is_refused_by_name(family: Callable[[Model], Model], option: str) -> None:
    with pytest.raises(ConfigError, match=option) as caught:
        GPT(context_of(TINY, VOCABULARY, family=family))
    assert "\n" not in str(caught.value)


def replace_rope(block: Block, dims: int) -> Block:
    assert block.attention.rope is not None
    return replace(block, attention=replace(block.attention, rope=replace(block.attention.rope, dims=dims)))


@pytest.mark.parametrize("config", [TINY, GATED], ids=["gpt2", "gated"])
@pytest.mark.parametrize("wiring", list(Wiring))
def test_a_block_keeps_for_backward_what_its_components_say(wiring: Wiring, config: ModelConfig) -> None:
    config = replace(config, seq_length=256)
    gpt = drawn(GPT(context_of(config, VOCABULARY, family=rewired(wiring))), context_of(config, VOCABULARY).tensor, 1)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in gpt.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hidden = torch.randn(256, 1, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        batch = MicroBatch.of(torch.zeros(1, 256, dtype=torch.int64))
        held = [block(hidden, batch) for block in gpt.blocks[:1]]
    # The rotary table and the statistics of norms and attention are little beside it.
    block = gpt.context.spec.blocks[0]
    assert held
    assert sum(kept.values()) / 256 / 4 == pytest.approx(block.kept.whole + block.kept.cut, rel=0.1)


@pytest.mark.parametrize("kind", [Activation.gelu_tanh, Activation.relu2])
def test_a_gate_is_no_activation(kind: Activation) -> None:
    def family(model: Model) -> Model:
        return blocks(lambda b: replace(b, feed_forward=replace(b.feed_forward, activation=kind, gated=True)))(model)

    gpt, logits = outputs(family)
    assert gpt.get_parameter("blocks.0.mlp.gate_up.weight").shape == (128, 16)
    assert bool(torch.isfinite(logits).all())
