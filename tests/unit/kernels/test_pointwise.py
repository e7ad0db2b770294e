"""Liger's kernels run on a GPU; Triton's interpreter runs the same programs on a CPU, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import copy, sys, traceback
from dataclasses import replace
import numpy as np, torch, triton.language as tl
from triton.runtime import interpreter
from liger_kernel.ops import layer_norm, rms_norm
from tests.helpers.models import context_of, drawn
from trainer.config.schema import ActivationKind, ModelConfig, NormKind
from trainer.engine.layer_kernels import use_liger
from trainer.micro_batch import MicroBatch
from trainer.model.gpt import build_layer
from trainer.kernels.pointwise import LigerPointwise
from trainer.topology.groups import SingleGroup

# What the interpreter lacks: numbers with a type, and the GPU library's function.
convert = interpreter._implicit_cvt
def typed(value):
    if type(value) is float:
        return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
    return convert(value)
interpreter._implicit_cvt = typed
layer_norm.rsqrt = rms_norm.rsqrt = lambda x: 1.0 / tl.sqrt(x)

config = ModelConfig(hidden_size=48, num_layers=1, num_attention_heads=4, ffn_hidden_size=40, seq_length=8)
llama = replace(config, norm=NormKind.rmsnorm, activation=ActivationKind.swiglu, bias=False)

def compare(dtype):
    tolerance = 1e-5 if dtype is torch.float32 else 3e-3  # fp16 has 5e-4 a rounding
    for model in (config, llama):
        plain = drawn(build_layer("blocks.0", context_of(model, 64)), SingleGroup(), 1).to(dtype)
        for parameter in plain.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        liger = copy.deepcopy(plain)
        use_liger(liger)
        assert type(liger.mlp.pointwise) is type(liger.attention_norm.pointwise) is LigerPointwise
        assert type(plain.mlp.pointwise) is not LigerPointwise
        hidden, grad = torch.randn(8, 2, 48).to(dtype), torch.randn(8, 2, 48).to(dtype)
        outcomes = []
        for block in (plain, liger):
            mine = hidden.clone().requires_grad_()
            out = block(mine, MicroBatch.of(torch.zeros(2, 8, dtype=torch.int64)))
            out.backward(grad.clone())
            outcomes.append([out, mine.grad, *(p.grad for p in block.parameters())])
        for one, other in zip(*outcomes, strict=True):
            difference = float((one.float() - other.float()).norm() / one.float().norm())
            assert difference < tolerance, difference
        assert not all(map(torch.equal, *outcomes)), "another kernel rounds otherwise"

for name in sys.argv[1:]:
    try:
        compare(getattr(torch, name))
    except Exception:
        traceback.print_exc()
    else:
        print("equal in", name)
"""
DTYPES = ("float32", "float16")


@pytest.fixture(scope="module")
def compared() -> subprocess.CompletedProcess[str]:
    """Both in one process: most of its time is for imports."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, *DTYPES]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_computes_the_same_with_ligers_kernels(dtype: str, compared: subprocess.CompletedProcess[str]) -> None:
    assert f"equal in {dtype}" in compared.stdout.splitlines(), compared.stderr[-3000:]
