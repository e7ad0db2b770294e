from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.config.models import make_execution, make_model
from trainer.config.schema import Dtype, ModelConfig
from trainer.kernels.attention_backend import attention_kernel

CPU = torch.device("cpu")
MODEL = ModelConfig(hidden_size=32, num_layers=1, num_attention_heads=4, num_key_value_heads=2, seq_length=16)


def kernel(model: ModelConfig, dtype: Dtype = Dtype.fp32, documents: bool = False) -> str:
    execution = replace(make_execution(model, 2), documents=documents)
    return attention_kernel(make_model(model, 64), execution, 2, dtype, CPU)


@pytest.mark.parametrize("dtype", [Dtype.fp32, Dtype.bf16])
def test_the_kernel_is_named(dtype: Dtype) -> None:
    assert kernel(MODEL, dtype) == "flash attention"
    assert kernel(replace(MODEL, sliding_window=4), dtype) == "flash attention with a mask"
    assert kernel(replace(MODEL, sliding_window=16), dtype) == "flash attention"
    apart = "flash attention, document by document or, where they are short, with a mask of them"
    assert kernel(MODEL, dtype, documents=True) == apart


def test_dropout_of_weights_has_no_kernel() -> None:
    assert "model.attention_dropout > 0" in kernel(replace(MODEL, attention_dropout=0.1))


def test_the_slow_path_is_told_from_the_fast_one() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        assert kernel(MODEL) == "unfused attention, which keeps all S x S scores"


def test_pytorch_takes_what_was_named() -> None:
    query = torch.randn(1, 2, 16, 8, requires_grad=True)
    key = torch.randn(1, 1, 16, 8, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
    assert any("flash_attention" in event.key for event in profile.key_averages())
