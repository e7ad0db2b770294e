"""Documents that share a sequence know nothing of each other: each is computed as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.batches import numbered
from tests.helpers.models import drawn_gpt
from tests.helpers.options import OPTIONS
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.schema import ModelConfig, QueryKeyNorm, RecomputeKind
from trainer.kernels import document_attention
from trainer.micro_batch import IGNORED, MicroBatch, Place, document_positions
from trainer.model.gpt import GPT

VOCABULARY = 29
LENGTHS = ((5, 1, 6), (3, 9))
MODELS = {
    "learned": TINY,
    "rope": TINY_LLAMA,
    "recomputed": replace(TINY_LLAMA, recompute=RecomputeKind.selective),
    "window": replace(TINY_LLAMA, num_attention_heads=8, num_key_value_heads=2, sliding_window=4),
    "alibi": OPTIONS["bloom"],
    "alibi_window": OPTIONS["alibi_window"],
    # Norms of queries and keys leave gradients that are small differences: fp32 is not exact enough for 1e-6.
    "pattern": replace(OPTIONS["gemma3"], query_key_norm=QueryKeyNorm.none),
    # Attention with dropout has a way of its own, on which nothing is dropped by so small a probability.
    "explicit": replace(TINY, attention_dropout=1e-12),
    "explicit_alibi": replace(OPTIONS["bloom"], attention_dropout=1e-12),
}


def ids() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(3))


def numbers() -> torch.Tensor:
    return torch.tensor([[n for n, length in enumerate(row) for _ in range(length)] for row in LENGTHS])


def loss_and_gradients(model: GPT, batches: list[MicroBatch]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    losses = [model(replace(batch, divisor=torch.tensor(1.0))) for batch in batches]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(sum(loss.detach() for loss in losses)), found


def placed(batch: MicroBatch) -> MicroBatch:
    return replace(batch, place=Place(1, 1, 0))


@pytest.mark.parametrize("way", ["slices", "mask"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_equal_each_of_them_alone(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_attention, "CALL_MULTIPLIES", 0 if way == "slices" else 1 << 40)
    config: ModelConfig = MODELS[name]
    model = drawn_gpt(config, VOCABULARY, 11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    tokens, documents = ids(), numbers()
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = IGNORED
    labels[:, :-1][documents[:, 1:] != documents[:, :-1]] = IGNORED
    alone = []
    for row, lengths in enumerate(LENGTHS):
        for ids_of, labels_of in zip(*(torch.split(one[row], list(lengths)) for one in (tokens, labels)), strict=True):
            alone.append(placed(MicroBatch.of(ids_of[None], labels_of[None])))
    packed = placed(MicroBatch.of(tokens, labels, documents=numbered(documents)))
    expected, gradients = loss_and_gradients(model, alone)
    found, of_packed = loss_and_gradients(model, [packed])
    assert found == pytest.approx(expected, rel=1e-6)
    for key, gradient in gradients.items():
        assert float((of_packed[key] - gradient).norm()) <= 1e-6 * float(gradient.norm()) + 1e-7, key
    # One document instead gives another loss: the mask matters.
    whole, _ = loss_and_gradients(model, [placed(MicroBatch.of(tokens, labels))])
    assert abs(whole - expected) > 1e-4 * expected


def test_positions_begin_anew_with_each_document() -> None:
    assert document_positions(numbers()).tolist() == [
        [0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 5],
        [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8],
    ]
    # Padding may have any number that is not its neighbour's.
    assert document_positions(torch.tensor([[7, 7, -1, -1, 7]])).tolist() == [[0, 1, 0, 1, 0]]
    with pytest.raises(ValueError, match=r"documents must be shaped like input_ids, \(2, 12\), but are \(2, 11\)"):
        MicroBatch.of(ids(), documents=numbered(numbers()[:, 1:]))
