"""Tiny models of every family, with odd sizes: transformers' class and the arguments of its config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 4099
LENGTH = 80
"""Positions: a prompt and 64 tokens behind it."""


@dataclass(frozen=True)
class Tiny:
    """One tiny model of transformers."""

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)


def _llama_sizes(**more: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": LENGTH,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**sizes, **more}


def _short_sizes(**more: Any) -> dict[str, Any]:
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
    return {**sizes, **more}


def _without(sizes: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in sizes.items() if name not in names}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 500.0, **more}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_SHORT, _LONG = [1.0, 1.1, 1.3, 1.5], [2.0, 2.5, 3.0, 4.0]

TINY: dict[str, Tiny] = {
    "llama": Tiny("LlamaForCausalLM", _llama_sizes(head_dim=10)),
    "llama_biases": Tiny(
        "LlamaForCausalLM", _llama_sizes(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
    "llama3": Tiny("LlamaForCausalLM", _llama_sizes(rope_parameters=_rope("llama3", **_LLAMA3))),
    "llama_linear": Tiny("LlamaForCausalLM", _llama_sizes(rope_parameters=_rope("linear", factor=2.0))),
    "llama_yarn": Tiny(
        "LlamaForCausalLM",
        _llama_sizes(rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0)),
    ),
    "llama_dynamic": Tiny("LlamaForCausalLM", _llama_sizes(rope_parameters=_rope("dynamic", factor=4.0))),
    "mistral": Tiny("MistralForCausalLM", _llama_sizes(head_dim=10, sliding_window=5)),
    "qwen2": Tiny("Qwen2ForCausalLM", _llama_sizes(head_dim=10, tie_word_embeddings=True)),
    "qwen2_window": Tiny(
        "Qwen2ForCausalLM",
        _llama_sizes(num_hidden_layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    "qwen3": Tiny("Qwen3ForCausalLM", _llama_sizes(head_dim=10, tie_word_embeddings=True)),
    "gpt2": Tiny("GPT2LMHeadModel", _short_sizes()),
    "gpt2_inner": Tiny("GPT2LMHeadModel", _short_sizes(n_inner=44, activation_function="gelu")),
    "gpt_neox": Tiny(
        "GPTNeoXForCausalLM",
        {
            **_without(_llama_sizes(), "num_key_value_heads"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
        },
    ),
    "gpt_neox_serial": Tiny(
        "GPTNeoXForCausalLM",
        {**_without(_llama_sizes(), "num_key_value_heads"), "use_parallel_residual": False, "attention_bias": False},
    ),
    "phi3": Tiny(
        "Phi3ForCausalLM", _llama_sizes(head_dim=10, original_max_position_embeddings=LENGTH, sliding_window=5)
    ),
    "phi3_long": Tiny(
        "Phi3ForCausalLM",
        _llama_sizes(
            original_max_position_embeddings=LENGTH,
            max_position_embeddings=4 * LENGTH,
            rope_parameters=_rope("longrope", short_factor=_SHORT, long_factor=_LONG),
        ),
    ),
    "smollm3": Tiny("SmolLM3ForCausalLM", _llama_sizes(head_dim=10, num_hidden_layers=4)),
    "olmo2": Tiny("Olmo2ForCausalLM", _llama_sizes(head_dim=10)),
    "olmo3": Tiny("Olmo3ForCausalLM", _llama_sizes(head_dim=10, num_hidden_layers=4, sliding_window=5)),
    "gemma1": Tiny("GemmaForCausalLM", _llama_sizes(head_dim=10)),
    "gemma3": Tiny(
        "Gemma3ForCausalLM",
        _llama_sizes(num_hidden_layers=6, head_dim=10, sliding_window=5, query_pre_attn_scalar=7),
    ),
    "phi": Tiny("PhiForCausalLM", _llama_sizes(head_dim=12)),
    "stablelm": Tiny("StableLmForCausalLM", _llama_sizes(use_qkv_bias=True)),
    "stablelm_parallel": Tiny("StableLmForCausalLM", _llama_sizes(use_parallel_residual=True)),
    "falcon_7b": Tiny("FalconForCausalLM", _without(_llama_sizes(), "num_key_value_heads", "intermediate_size")),
    "falcon_40b": Tiny(
        "FalconForCausalLM",
        {
            **_without(_llama_sizes(), "num_key_value_heads", "intermediate_size"),
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "ffn_hidden_size": 44,
        },
    ),
    "falcon_serial": Tiny(
        "FalconForCausalLM",
        {
            **_without(_llama_sizes(), "num_key_value_heads", "intermediate_size"),
            "parallel_attn": False,
            "multi_query": False,
            "bias": True,
        },
    ),
    "olmo1": Tiny("OlmoForCausalLM", _llama_sizes(head_dim=10, clip_qkv=0.05)),
    "cohere": Tiny("CohereForCausalLM", _llama_sizes(head_dim=10, logit_scale=0.25)),
    "gptj": Tiny("GPTJForCausalLM", _short_sizes(rotary_dim=4)),
    "gpt_neo": Tiny(
        "GPTNeoForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 5,
            "max_position_embeddings": LENGTH,
        },
    ),
    "opt": Tiny(
        "OPTForCausalLM",
        {**_without(_llama_sizes(), "num_key_value_heads", "intermediate_size"), "ffn_dim": 44},
    ),
    "gpt1": Tiny("OpenAIGPTLMHeadModel", _short_sizes()),
    "bloom": Tiny(
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": LENGTH},
    ),
    "granite": Tiny(
        "GraniteForCausalLM",
        _llama_sizes(
            head_dim=10,
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            attention_multiplier=0.25,
            logits_scaling=7.0,
        ),
    ),
}
"""Name of a case -> its model: every family at least once, and each branch of its config."""


def hf_config(tiny: Tiny) -> Any:
    """Return transformers' config of a tiny model."""
    import transformers

    model_class = getattr(transformers, tiny.architecture)
    config = model_class.config_class(**tiny.arguments)
    config.architectures = [tiny.architecture]
    return config


def hf_model(tiny: Tiny, seed: int = 5) -> Any:
    """Return a tiny model in evaluation mode, every weight moved off its start, norms and biases too."""
    import torch
    import transformers

    config = hf_config(tiny)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, tiny.architecture)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
