"""Attention inside documents: every way gives what a loop over documents, written out, gives."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import varlen

from trainer.kernels import document_attention
from trainer.kernels.document_attention import Way, added_mask_of_documents, attend, can_varlen, way_on_cpu
from trainer.micro_batch import Documents

HEADS, GROUPS, LENGTH, WIDTH = 4, 2, 24, 8
CASES = {"plain": (None, None, False), "window": (5, 0.3, False), "bias": (None, None, True), "both": (5, None, True)}
"""Window, scale, and whether there is a bias."""


def documents() -> Documents:
    begins = torch.zeros(2, LENGTH, dtype=torch.bool)
    begins[0, [1, 2, 14]] = True
    begins[1, 9] = True
    return Documents.of(begins)


def heads(device: str = "cpu", dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Queries, keys and values as the layer hands them over: [S, B, N, D] in memory."""
    generator = torch.Generator().manual_seed(4)
    shapes = [(LENGTH, 2, count, WIDTH) for count in (HEADS, GROUPS, GROUPS)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]
    return [one.permute(1, 2, 0, 3).requires_grad_() for one in drawn]


def bias_of(window: int | None, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Slope x distance, and -inf where a key is not seen, [1, N, S, S]."""
    back = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None]
    seen = (back >= 0) & (back < (window or LENGTH))
    slopes = torch.tensor([0.5**head for head in range(HEADS)], dtype=dtype).view(1, HEADS, 1, 1)
    return (-slopes * back).masked_fill(~seen, -torch.inf)


def written_out(window: int | None, scale: float | None, bias: torch.Tensor | None) -> list[torch.Tensor]:
    """The output, and gradients of queries, keys and values."""
    query, key, value = heads()
    output = torch.zeros_like(query)
    places = documents().numbers
    for row, head, token in ((r, h, t) for r in range(2) for h in range(HEADS) for t in range(LENGTH)):
        seen = [k for k in range(token + 1) if places[row, k] == places[row, token] and token - k < (window or LENGTH)]
        group = head * GROUPS // HEADS
        scores = key[row, group, seen] @ query[row, head, token] * (1 / math.sqrt(WIDTH) if scale is None else scale)
        if bias is not None:
            scores = scores + bias[0, head, token, seen]
        output[row, head, token] = scores.softmax(0) @ value[row, group, seen]
    return [output, *torch.autograd.grad((output * weight()).sum(), [query, key, value])]


def weight() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * HEADS * LENGTH * WIDTH, dtype=torch.float64).view(2, HEADS, LENGTH, WIDTH)


@pytest.mark.parametrize("way", ["by_slices", "by_mask"])
@pytest.mark.parametrize("case", CASES)
def test_a_way_equals_what_is_written_out(case: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_attention, "CALL_MULTIPLIES", 0 if way == "by_slices" else 1 << 40)
    # The other way is not taken.
    monkeypatch.setattr(document_attention, "by_mask" if way == "by_slices" else "by_slices", None)
    window, scale, has_bias = CASES[case]
    bias = bias_of(window) if has_bias else None
    query, key, value = heads()
    output = attend(query, key, value, documents(), window, scale, bias)
    found = [output, *torch.autograd.grad((output * weight()).sum(), [query, key, value])]
    for one, expected in zip(found, written_out(window, scale, bias), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-12)


def test_long_documents_go_by_themselves_and_short_ones_with_a_mask() -> None:
    def begins_every(length: int) -> Documents:
        return Documents.of(torch.arange(2048).remainder(length).eq(0).expand(2, -1))

    assert way_on_cpu(begins_every(512), num_heads=8, head_dim=64) is Way.slices
    # A row that is one document is causal attention, which takes half of a mask's time.
    assert way_on_cpu(begins_every(2048), num_heads=8, head_dim=64) is Way.slices
    assert way_on_cpu(begins_every(1), num_heads=1, head_dim=16) is Way.mask


def test_layers_that_are_alike_share_a_mask() -> None:
    own = documents()
    masks = [added_mask_of_documents(own, window, torch.float32) for window in (None, 5, None, 5)]
    assert masks[0] is masks[2]
    assert masks[1] is masks[3]
    assert not masks[0].is_inference()
    # Of another micro-batch they are other ones, even where documents are the same.
    assert added_mask_of_documents(documents(), None, torch.float32) is not masks[0]


CUDA = torch.device("cuda")


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    document_attention._has_flash_attention.cache_clear()
    yield
    document_attention._has_flash_attention.cache_clear()


@pytest.mark.usefixtures("ampere")
def test_the_kernel_of_several_lengths_is_for_halves_on_cuda() -> None:
    assert can_varlen(CUDA, torch.bfloat16, 64)
    assert not can_varlen(CUDA, torch.float32, 64)
    assert not can_varlen(CUDA, torch.bfloat16, 60)
    assert not can_varlen(CUDA, torch.bfloat16, 512)
    assert not can_varlen(torch.device("cpu"), torch.bfloat16, 64)


def test_an_older_gpu_has_no_such_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    document_attention._has_flash_attention.cache_clear()
    assert not can_varlen(CUDA, torch.float16, 64)
    document_attention._has_flash_attention.cache_clear()


@pytest.mark.usefixtures("ampere")
def test_an_older_kernel_of_several_lengths_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, is_causal: None)
    document_attention._varlen_takes_windows.cache_clear()
    try:
        assert not can_varlen(CUDA, torch.bfloat16, 64)
    finally:
        document_attention._varlen_takes_windows.cache_clear()


def test_what_the_kernel_of_several_lengths_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *words: object, **more: object) -> object:
        told.update(shapes=[tuple(one.shape) for one in (query, key, value)], words=words, more=more)
        # Each token's own value, as if no other were seen.
        return value.repeat_interleave(HEADS // GROUPS, dim=1)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    query, key, value = heads()
    own = documents()
    found = document_attention._by_varlen(query, key, value, own, 5, 0.3)
    assert torch.equal(found, value.repeat_interleave(HEADS // GROUPS, dim=1))
    assert told["shapes"] == [(2 * LENGTH, count, WIDTH) for count in (HEADS, GROUPS, GROUPS)]
    assert told["words"] == (own.starts, own.starts, LENGTH, LENGTH)
    assert told["more"] == {"scale": 0.3, "window_size": (4, 0), "enable_gqa": True}


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernel_of_several_lengths_equals_what_is_written_out(dtype: torch.dtype, window: int | None) -> None:
    query, key, value = heads("cuda", dtype)
    assert can_varlen(query.device, dtype, WIDTH)
    output = attend(query, key, value, documents().to(torch.device("cuda")), window, 0.3, None)
    found = [output, *torch.autograd.grad((output.double() * weight().cuda()).sum(), [query, key, value])]
    for one, expected in zip(found, written_out(window, 0.3, None), strict=True):
        error = (one.double().cpu() - expected).norm() / expected.norm()
        # Some roundings of 8 or 11 bits; a window that is off by one key changes a tenth.
        assert error < (0.02 if dtype is torch.bfloat16 else 0.003)


def test_programs_are_not_compiled_again_for_other_lengths() -> None:
    """Documents of other lengths in each step: a compiled layer is left for attention and entered again behind it."""

    def layer(hidden: torch.Tensor, own: Documents) -> torch.Tensor:
        return (attend(hidden * 2, hidden, hidden, own, None, None, None) + 1).relu()

    torch._dynamo.reset()
    compiled = torch.compile(layer, dynamic=False, backend="eager")
    hidden = heads(dtype=torch.float32)[0].detach()
    counter = torch._dynamo.utils.counters["stats"]
    graphs = []
    for first in (1, 7, 13):
        begins = torch.zeros(2, LENGTH, dtype=torch.bool)
        begins[:, :first] = True
        own = Documents.of(begins)
        torch.testing.assert_close(compiled(hidden, own), layer(hidden, own))
        graphs.append(counter["unique_graphs"])
    assert graphs[0] == graphs[-1] > 0
    torch._dynamo.reset()
