"""Second oracle: Hugging Face's own models, built from a config with random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.helpers.models import drawn_gpt
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.schema import ModelConfig
from trainer.kernels import document_attention
from trainer.micro_batch import Documents, MicroBatch
from trainer.model.gpt import GPT, full_logits

VOCABULARY = 61


def build(model: ModelConfig) -> GPT:
    return drawn_gpt(model, VOCABULARY, 3).eval()


def fill(gpt: GPT, weights: dict[str, torch.Tensor]) -> None:
    parameters = dict(gpt.named_parameters())
    assert set(weights) == set(parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            weight = weights[name]
            assert weight.shape[1:] == parameter.shape[1:], name
            parameter.zero_()[: weight.shape[0]].copy_(weight)


def gpt2_weights(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    weights = {
        "embedding.weight": state["transformer.wte.weight"],
        "position.weight": state["transformer.wpe.weight"],
        "final_norm.weight": state["transformer.ln_f.weight"],
        "final_norm.bias": state["transformer.ln_f.bias"],
    }
    for index in range(layers):
        theirs, ours = f"transformer.h.{index}", f"blocks.{index}"
        for kind in ("weight", "bias"):
            weights[f"{ours}.attention_norm.{kind}"] = state[f"{theirs}.ln_1.{kind}"]
            weights[f"{ours}.mlp_norm.{kind}"] = state[f"{theirs}.ln_2.{kind}"]
            for mine, name in {
                "attention.qkv": "attn.c_attn",
                "attention.output": "attn.c_proj",
                "mlp.up": "mlp.c_fc",
                "mlp.down": "mlp.c_proj",
            }.items():
                # GPT-2's Conv1D holds [in, out]; .T leaves a bias alone.
                tensor = state[f"{theirs}.{name}.{kind}"]
                weights[f"{ours}.{mine}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
    return weights


def llama_weights(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    weights = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "final_norm.weight": state["model.norm.weight"],
        "head.weight": state["lm_head.weight"],
    }
    for index in range(layers):
        theirs, ours = f"model.layers.{index}", f"blocks.{index}"
        weights[f"{ours}.attention_norm.weight"] = state[f"{theirs}.input_layernorm.weight"]
        weights[f"{ours}.mlp_norm.weight"] = state[f"{theirs}.post_attention_layernorm.weight"]
        weights[f"{ours}.attention.qkv.weight"] = torch.cat(
            [state[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv"]
        )
        weights[f"{ours}.attention.output.weight"] = state[f"{theirs}.self_attn.o_proj.weight"]
        weights[f"{ours}.mlp.gate_up.weight"] = torch.cat(
            [state[f"{theirs}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
        )
        weights[f"{ours}.mlp.down.weight"] = state[f"{theirs}.mlp.down_proj.weight"]
    return weights


def randomised(model: Any) -> Any:
    """Move every weight off its start, norms and biases too."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def assert_same_logits(gpt: GPT, model: Any, length: int) -> None:
    ids = torch.randint(0, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = full_logits(gpt(MicroBatch.of(ids)), gpt.context).transpose(0, 1)
        theirs = model(ids).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for cost in (0, 1 << 40):
        assert_same_packed_logits(gpt, model, ids[:1], cost)


def assert_same_packed_logits(gpt: GPT, model: Any, ids: torch.Tensor, cost: int) -> None:
    """Hold packed documents against transformers, which keeps them apart where positions restart and no mask is given.

    Args:
        gpt: our model.
        model: transformers', with the same weights.
        ids: one row: it looks for documents in no more.
        cost: of a document by itself: 0 takes that way, a large one a mask.
    """
    begins = torch.zeros_like(ids, dtype=torch.bool)
    begins[0, [3, 4, 9]] = True
    batch = MicroBatch.of(ids, documents=Documents.of(begins))
    with torch.no_grad(), patch.object(document_attention, "CALL_MULTIPLIES", cost):
        ours = full_logits(gpt(batch), gpt.context).transpose(0, 1)
        theirs, whole = (
            model(ids, position_ids=positions, use_cache=False).logits for positions in (batch.positions, None)
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert (whole - theirs).abs().max() > 0.01, "documents are not kept apart"


def test_gpt2() -> None:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=12, n_embd=16, n_layer=2, n_head=4)
    model = randomised(GPT2LMHeadModel(config))
    gpt = build(TINY)
    fill(gpt, gpt2_weights(model.state_dict(), 2))
    assert_same_logits(gpt, model, 12)


LLAMA_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}


@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_llama(theta: float) -> None:
    rope = {"rope_type": "default", "rope_theta": theta}
    model = randomised(LlamaForCausalLM(LlamaConfig(**LLAMA_SHAPE, rms_norm_eps=1e-6, rope_parameters=rope)))
    gpt = build(replace(TINY_LLAMA, num_key_value_heads=2, norm_eps=1e-6, rope_theta=theta))
    fill(gpt, llama_weights(model.state_dict(), 2))
    assert_same_logits(gpt, model, 40)


def test_mistral_with_a_window_shorter_than_the_text() -> None:
    config = MistralConfig(**LLAMA_SHAPE, sliding_window=6, head_dim=8, rms_norm_eps=1e-5)
    model = randomised(MistralForCausalLM(config))
    gpt = build(replace(TINY_LLAMA, num_key_value_heads=2, sliding_window=6, head_dim=8))
    fill(gpt, llama_weights(model.state_dict(), 2))
    assert_same_logits(gpt, model, 40)
    whole_window = build(replace(TINY_LLAMA, num_key_value_heads=2, head_dim=8))
    fill(whole_window, llama_weights(model.state_dict(), 2))
    with pytest.raises(AssertionError, match="not close"):
        assert_same_logits(whole_window, model, 40)
