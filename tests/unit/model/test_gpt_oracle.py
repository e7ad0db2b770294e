from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers.models import context_of, drawn
from tests.helpers.thread_group import local_gradients, local_weights, run_ranks, whole
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.schema import ActivationKind, ModelConfig, NormKind, OptimizerConfig, PositionKind
from trainer.micro_batch import MicroBatch
from trainer.model.gpt import GPT, ModelContext, full_logits
from trainer.oracle.reference import reference_gradients, reference_logits, train_reference
from trainer.topology.groups import FakeGroup, Group, SingleGroup

VOCABULARY = 29
MODELS = {
    "gpt2": TINY,
    "gpt2_untied": replace(TINY, tied_embeddings=False),
    "gpt2_no_bias_exact_gelu": replace(TINY, bias=False, activation=ActivationKind.gelu),
    "relu_window": replace(TINY, activation=ActivationKind.relu, sliding_window=5),
    "llama": TINY_LLAMA,
    "llama_tied_bias_layernorm": replace(TINY_LLAMA, tied_embeddings=True, bias=True, norm=NormKind.layernorm),
    "grouped_queries": replace(TINY_LLAMA, num_attention_heads=8, num_key_value_heads=4, head_dim=6),
    "mistral": replace(TINY_LLAMA, num_attention_heads=8, num_key_value_heads=4, sliding_window=5),
    "learned_swiglu": replace(TINY_LLAMA, position=PositionKind.learned),
}


def context(
    model: ModelConfig, group: Group, sequence_parallel: bool = False, vocab_size: int = VOCABULARY
) -> ModelContext:
    return context_of(model, vocab_size, group, sequence_parallel)


def built(one: ModelContext) -> GPT:
    return drawn(GPT(one), one.tensor, 17)


def lively(module: torch.nn.Module) -> None:
    """Move norms and biases off 1 and 0, the same in every layout, so that a mistake in them shows."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 if name.endswith("weight") else -0.1)
            else:
                parameter.mul_(8.0)


def tokens(length: int = 12, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(0, VOCABULARY, (batch, length + 1), generator=torch.Generator().manual_seed(1))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("size", "sequence_parallel"), [(1, False), (2, False), (2, True), (4, False), (4, True)])
def test_loss_gradients_and_logits_equal_the_oracle(model: str, size: int, sequence_parallel: bool) -> None:
    config = MODELS[model]
    input_ids, labels = tokens()

    def body(group: Group) -> tuple[GPT, float, torch.Tensor]:
        gpt = built(context(config, group, sequence_parallel))
        lively(gpt)
        loss = gpt(MicroBatch.of(input_ids, labels))
        loss.backward()
        with torch.no_grad():
            logits = full_logits(gpt(MicroBatch.of(input_ids)), gpt.context)
        return gpt, loss.item(), logits

    models, losses, logits = zip(*run_ranks(size, body), strict=True)
    weights = whole(models, [local_weights(gpt) for gpt in models])
    gradients = whole(models, [local_gradients(gpt) for gpt in models])
    expected_loss, expected = reference_gradients(config, weights, input_ids, labels)
    assert set(gradients) == set(expected)
    for loss in losses:
        assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=2e-6 * max(1.0, scale), msg=name)
    expected_logits = reference_logits(config, weights, input_ids).transpose(0, 1)
    for rank_logits in logits:
        torch.testing.assert_close(rank_logits, expected_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["gpt2", "gpt2_untied", "grouped_queries"])
def test_initial_weights_are_equal_in_every_layout_bit_for_bit(model: str) -> None:
    def weights(size: int, sequence_parallel: bool) -> dict[str, torch.Tensor]:
        contexts = [context(MODELS[model], FakeGroup(rank, size), sequence_parallel) for rank in range(size)]
        models = [built(one) for one in contexts]
        return whole(models, [local_weights(gpt) for gpt in models])

    expected = weights(1, False)
    for size, sequence_parallel in ((2, False), (4, True)):
        found = weights(size, sequence_parallel)
        assert set(found) == set(expected)
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), name


def test_initial_weights_have_the_prescribed_deviations() -> None:
    config = replace(TINY, hidden_size=64, num_layers=3, vocab_pad_multiple=1)
    gpt = built(context(config, SingleGroup(), vocab_size=500))
    for name, parameter in gpt.named_parameters():
        found = parameter.detach()
        if parameter.ndim == 1:
            assert torch.equal(found, torch.full_like(found, 1.0 if name.endswith("norm.weight") else 0.0)), name
        else:
            residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
            expected = 0.02 / math.sqrt(6) if residual else 0.02
            assert found.std().item() == pytest.approx(expected, rel=0.08), name


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_initial_loss_is_the_log_of_the_vocabulary(model: str) -> None:
    config = replace(MODELS[model], hidden_size=64, ffn_hidden_size=128, num_key_value_heads=None)
    gpt = built(context(config, SingleGroup(), vocab_size=1000))
    ids = torch.randint(0, 1000, (8, 13), generator=torch.Generator().manual_seed(2))
    assert gpt(MicroBatch.of(ids[:, :-1], ids[:, 1:])).item() == pytest.approx(math.log(1000), rel=0.02)


def test_vocabulary_padding_changes_nothing() -> None:
    input_ids, labels = tokens()
    results = []
    for multiple in (1, 8, 64):
        gpt = built(context(replace(TINY, vocab_pad_multiple=multiple), SingleGroup()))
        loss = gpt(MicroBatch.of(input_ids, labels))
        loss.backward()
        gradient = gpt.embedding.weight.grad
        assert gradient is not None
        assert gradient[VOCABULARY:].abs().sum() == 0
        assert gpt.embedding.weight[VOCABULARY:].abs().sum() == 0
        assert full_logits(gpt(MicroBatch.of(input_ids)), gpt.context).shape[-1] == VOCABULARY
        results.append((loss.item(), gradient[:VOCABULARY]))
    for loss_value, gradient in results[1:]:
        assert loss_value == pytest.approx(results[0][0], rel=1e-7)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-6, atol=1e-8)


def test_oracle_training_loop_follows_adamw_and_clips() -> None:
    config = OptimizerConfig(lr=1e-2, grad_clip=0.5)
    gpt = built(context(TINY, SingleGroup()))
    weights = whole([gpt], [local_weights(gpt)])
    input_ids, labels = tokens(batch=4)
    split = [(input_ids[:2], labels[:2]), (input_ids[2:], labels[2:])]
    run = train_reference(TINY, weights, [split] * 6, config, lambda step: 1e-2 / step)
    whole_batch = train_reference(TINY, weights, [[(input_ids, labels)]] * 6, config, lambda step: 1e-2 / step)
    assert run.losses == pytest.approx(whole_batch.losses, rel=1e-5)
    assert run.losses[-1] < run.losses[0] - 0.1
    norm = math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in run.first_gradients.values()))
    assert run.grad_norms[0] == pytest.approx(norm, rel=1e-5)
    assert run.grad_norms[0] > 0.5, "the clip must bite for this test to see it"
    unclipped = train_reference(TINY, weights, [split], replace(config, grad_clip=0.0))
    clipped = train_reference(TINY, weights, [split], replace(config, eps=1e-2))
    assert unclipped.grad_norms == clipped.grad_norms
    # Adam's first step is lr * g / (|g| + eps), plus decay of matrices.
    name = "blocks.0.mlp.up.weight"
    gradient = clipped.first_gradients[name] * (0.5 / (clipped.grad_norms[0] + 1e-6))
    expected = weights[name] * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (gradient.abs() + 1e-2)
    torch.testing.assert_close(clipped.weights[name], expected, rtol=1e-5, atol=1e-7)
