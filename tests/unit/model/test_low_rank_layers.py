"""Adapters against the oracle, which computes with W + scale x B A; its gradient gives those of A and B."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.lora import Read
from tests.helpers.models import context_of, drawn
from tests.helpers.options import OPTIONS
from tests.helpers.thread_group import local_gradients, local_weights, run_ranks, whole
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.checkpoint.held_weights import MergedWeights, linears_by_weight
from trainer.config.lora import without_lora
from trainer.config.models import make_execution, make_model
from trainer.config.schema import LoraConfig, LoraTarget, ModelConfig
from trainer.micro_batch import MicroBatch
from trainer.model.gpt import GPT
from trainer.oracle.reference import reference_gradients
from trainer.spec.model import Model
from trainer.tensor_parallel.init import Drawn, initial_of
from trainer.tensor_parallel.shard import shard_spec_of
from trainer.topology.groups import Group, SingleGroup

VOCABULARY = 29
Target = LoraTarget
ALL = LoraConfig(rank=2, alpha=3.0)
FEW_HEADS = replace(TINY_LLAMA, num_attention_heads=8, num_key_value_heads=2, head_dim=4)
"""Fewer key/value heads than four ranks, which share them."""
ADAPTED: dict[str, ModelConfig] = {
    "biases": replace(TINY, lora=ALL),
    "heads that ranks share": replace(FEW_HEADS, lora=ALL),
    "one adapter for shared heads and others": replace(
        FEW_HEADS, lora=LoraConfig(2, targets=(Target.qkv, Target.gate_up, Target.down), rank_stabilised=True)
    ),
    "nothing before, between and behind": replace(
        FEW_HEADS, lora=LoraConfig(2, targets=(Target.k, Target.up, Target.output))
    ),
    "joined branches": replace(OPTIONS["neox"], lora=ALL),
    "joined branches of one norm": replace(OPTIONS["cohere"], lora=replace(ALL, targets=(Target.v, Target.gate))),
}


def merged(weights: dict[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    found = MergedWeights(Read(lambda name: weights[name].clone()), model)
    return {name: found.read("weight", name) for name in model.base_tensors}


def with_adapters(dense: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], model: Model) -> None:
    """Add the gradients of the adapters to those of the merged weights."""
    for name, (layer, linear) in linears_by_weight(model).items():
        blocks = torch.split(dense[name], list(linear.sections))
        for one in linear.adapters:
            rows = torch.cat(blocks[one.first : one.first + one.count])
            a, b = (tensor.name for tensor in linear.adapter_tensors(layer, one))
            dense[a] = one.scale * weights[b].T @ rows
            dense[b] = one.scale * rows @ weights[a].T


@pytest.mark.parametrize(("size", "sequence_parallel"), [(1, False), (2, False), (2, True), (4, False), (4, True)])
@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_equal_the_oracle(name: str, size: int, sequence_parallel: bool) -> None:
    config = ADAPTED[name]
    text = torch.randint(0, VOCABULARY, (3, 13), generator=torch.Generator().manual_seed(1))
    ids, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()

    def body(group: Group) -> tuple[GPT, float]:
        gpt = drawn(GPT(context_of(config, VOCABULARY, group, sequence_parallel)), group, 17)
        with torch.no_grad():
            for parameter_name, parameter in gpt.named_parameters():
                # B begins at 0, where neither A nor an error in its place has an effect.
                if parameter_name.endswith("b"):
                    parameter.add_(0.3)
        loss = gpt(MicroBatch.of(ids, labels))
        loss.backward()
        return gpt, loss.item()

    models, losses = zip(*run_ranks(size, body), strict=True)
    model = models[0].context.spec
    weights = whole(models, [local_weights(gpt) for gpt in models])
    gradients = whole(models, [local_gradients(gpt) for gpt in models])
    assert set(weights) == set(model.tensors)
    loss, expected = reference_gradients(without_lora(config), merged(weights, model), ids, labels)
    with_adapters(expected, weights, model)
    assert losses == pytest.approx([loss] * size, rel=1e-6)
    for tensor, gradient in gradients.items():
        scale = max(1.0, expected[tensor].abs().max().item())
        # fp32 sums in another order; a gradient that is not summed over the ranks is wrong by its own size.
        torch.testing.assert_close(gradient, expected[tensor], rtol=2e-5, atol=3e-6 * scale, msg=tensor)


def test_an_adapter_begins_as_peft_draws_it_and_adds_nothing() -> None:
    config = replace(TINY, lora=replace(ALL, targets=(Target.down,)))
    tensors = make_model(config, VOCABULARY).tensors
    a, b = (tensors[f"blocks.1.mlp.down.lora.down.{part}"] for part in "ab")
    source, execution = Drawn(3, SingleGroup()), make_execution(config, 1)
    drawn_a, drawn_b = (source(shard_spec_of(one, 1, 1), initial_of(one, execution)) for one in (a, b))
    bound = torch.nn.init.calculate_gain("leaky_relu", 5**0.5) * (3 / a.shape[1]) ** 0.5
    assert bound * 0.9 < drawn_a.abs().max() <= bound
    assert abs(drawn_a.mean()) < bound / 3
    assert not drawn_b.any()


def test_adapters_count_in_parameters_work_and_memory() -> None:
    plain, one = (make_model(replace(TINY, lora=lora), VOCABULARY) for lora in (LoraConfig(), replace(ALL, rank=3)))
    width, inner = one.hidden_size, one.blocks[0].feed_forward.inner_size
    added = 3 * (3 * (width + width) + (width + width) + 2 * (width + inner))
    assert one.parameter_count - plain.parameter_count == len(one.blocks) * added
    assert one.blocks[0].forward_flops(8) - plain.blocks[0].forward_flops(8) == 2 * added
    assert one.blocks[0].kept.whole - plain.blocks[0].kept.whole == 6 * 3
