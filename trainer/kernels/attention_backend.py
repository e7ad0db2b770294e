"""The attention kernel that PyTorch takes for a model, printed because the slow ones look like the fast ones."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend

from trainer.config.schema import Dtype
from trainer.kernels.document_attention import can_varlen
from trainer.spec.execution import Execution
from trainer.spec.model import Model
from trainer.spec.parts import Attention

DTYPES = {Dtype.fp32: torch.float32, Dtype.bf16: torch.bfloat16, Dtype.fp16: torch.float16}
_WORDS = {
    SDPBackend.FLASH_ATTENTION: "flash attention",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient attention",
    SDPBackend.CUDNN_ATTENTION: "cuDNN attention",
    SDPBackend.MATH: "unfused attention, which keeps all S x S scores",
}


def attention_kernel(
    model: Model, execution: Execution, tensor_parallel_size: int, dtype: Dtype, device: torch.device
) -> str:
    """Return the name of the kernel that training takes on `device`, e.g. "flash attention". No host sync.

    If blocks take different kernels, all of them are named, in the order of the blocks.
    """
    if execution.attention_dropout > 0:
        return "unfused attention, which keeps all S x S scores (model.attention_dropout > 0)"
    distinct = dict.fromkeys(block.attention for block in model.blocks)
    kernels = (_kernel(one, execution, tensor_parallel_size, dtype, device) for one in distinct)
    return "; ".join(dict.fromkeys(kernels))


def _kernel(
    attention: Attention, execution: Execution, tensor_parallel_size: int, dtype: Dtype, device: torch.device
) -> str:
    length = execution.seq_length
    windowed = attention.window is not None and attention.window < length
    heads = attention.num_heads // tensor_parallel_size
    if execution.documents and not attention.alibi and can_varlen(device, DTYPES[dtype], attention.head_dim):
        return "flash attention of each document"
    by_slices = execution.documents and device.type == "cpu"
    masked = windowed or attention.alibi or (execution.documents and not by_slices)
    # With a mask, keys and values are repeated before attention.
    pairs = heads if masked else max(1, attention.num_key_value_heads // tensor_parallel_size)

    def some(count: int) -> torch.Tensor:
        shape = (1, count, length, attention.head_dim)
        return torch.empty(shape, dtype=DTYPES[dtype], device=device, requires_grad=True)

    mask = None
    if masked:
        shape, of = ((1, heads, length, length), DTYPES[dtype]) if attention.alibi else ((length, length), torch.bool)
        if execution.documents and not attention.alibi:
            shape, of = (1, 1, length, length), DTYPES[dtype]
        mask = torch.ones(shape, dtype=of, device=device)
    choice = torch._fused_sdp_choice(
        some(heads), some(pairs), some(pairs), mask, 0.0, not masked, enable_gqa=heads != pairs
    )
    name = _WORDS.get(SDPBackend(choice), SDPBackend(choice).name) + (" with a mask" if masked else "")
    return f"{name}, document by document or, where they are short, with a mask of them" if by_slices else name
