from __future__ import annotations

import pytest
import torch

from trainer.micro_batch import MicroBatch, Place
from trainer.tensor_parallel.init import stable_hash
from trainer.tensor_parallel.random import attention_dropout, hidden_dropout, keep_mask, sequence_rows
from trainer.topology.groups import FakeGroup

PLACE = Place(seed=11, step=3, first_sample=4)
ROWS = torch.arange(8)
LOW = 0xFFFFFFFF


def mixed(word: int) -> int:
    word ^= word >> 16
    word = word * 0x85EBCA6B & LOW
    word ^= word >> 13
    word = word * 0xC2B2AE35 & LOW
    return word ^ word >> 16


def kept(place: Place, name: str, probability: float, indices: list[int], column: int) -> bool:
    """The same hash in Python's integers, unsigned."""
    key = stable_hash(place.seed, place.step, name)
    row = mixed((indices[0] + place.first_sample) ^ (key & LOW))
    for index in indices[1:]:
        row = mixed((row + index * 0x9E3779B1) & LOW)
    word = (row + column * 0x9E3779B1) & LOW
    word = (word ^ word >> 16) * 0x85EBCA6B & LOW
    word = (word + mixed(row ^ (key >> 32))) & LOW
    word = (word ^ word >> 13) * 0xC2B2AE35 & LOW
    # The tensors are signed: flipping the top bit orders unsigned words like them.
    return (word ^ word >> 16) ^ 0x80000000 >= round(probability * 2**32)


def test_mask_equals_the_hash_in_plain_integers() -> None:
    samples, positions = torch.arange(3).view(1, 3), torch.arange(7, 12).view(5, 1)
    mask = keep_mask(PLACE, "layer", 0.3, (samples, positions), 33)
    expected = [[[kept(PLACE, "layer", 0.3, [b, s], c) for c in range(33)] for b in range(3)] for s in range(7, 12)]
    assert mask.tolist() == expected


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_of_kept_elements_and_their_independence(probability: float) -> None:
    def mask(place: Place, name: str) -> torch.Tensor:
        rows = (torch.arange(16).view(1, -1), torch.arange(64).view(-1, 1))
        return keep_mask(place, name, probability, rows, 256).float()

    one = mask(PLACE, "a")
    deviation = (probability * (1 - probability) / one.numel()) ** 0.5
    assert abs(one.mean().item() - (1 - probability)) < 5 * deviation
    centred = one - one.mean()
    others = {
        "next column": centred.roll(1, 2),
        "next sample": centred.roll(1, 1),
        "next position": centred.roll(1, 0),
        "next step": mask(Place(11, 4, 4), "a") - one.mean(),
        "other layer": mask(PLACE, "b") - one.mean(),
        "other seed": mask(Place(12, 3, 4), "a") - one.mean(),
    }
    for name, other in others.items():
        correlation = (centred * other).mean() / (probability * (1 - probability))
        assert abs(correlation.item()) < 5 / one.numel() ** 0.5, name


def test_kept_elements_are_scaled_and_gradients_follow_the_mask() -> None:
    x = torch.randn(8, 2, 32, requires_grad=True)
    y = hidden_dropout(x, 0.25, PLACE, "a", ROWS)
    y.sum().backward()  # type: ignore[no-untyped-call]
    zero = y.detach() == 0
    assert 0.15 < zero.float().mean().item() < 0.35
    torch.testing.assert_close(y.detach(), torch.where(zero, 0.0, x.detach() / 0.75))
    torch.testing.assert_close(x.grad, torch.where(zero, 0.0, 1 / 0.75))


def test_nothing_happens_outside_training_or_without_probability() -> None:
    x = torch.randn(4, 2, 8)
    assert hidden_dropout(x, 0.5, None, "a", ROWS[:4]) is x
    assert hidden_dropout(x, 0.0, PLACE, "a", ROWS[:4]) is x
    weights = torch.randn(1, 2, 3, 3)
    assert attention_dropout(weights, 0.5, None, "a", 0) is weights
    assert attention_dropout(weights, 0.0, PLACE, "a", 0) is weights


def test_a_sequence_shard_drops_what_the_whole_sequence_drops() -> None:
    x = torch.ones(8, 2, 16)
    full = hidden_dropout(x, 0.5, PLACE, "a", ROWS)
    batch = MicroBatch.of(torch.zeros(2, 8, dtype=torch.int64))
    rows = [sequence_rows(batch, FakeGroup(rank, 2), sequence_parallel=True) for rank in range(2)]
    assert torch.equal(sequence_rows(batch, FakeGroup(1, 2), sequence_parallel=False), ROWS)
    shards = [hidden_dropout(part, 0.5, PLACE, "a", rows[rank]) for rank, part in enumerate(x.chunk(2))]
    assert torch.equal(torch.cat(shards), full)


def test_a_head_shard_drops_what_all_heads_drop() -> None:
    x = torch.ones(2, 4, 6, 6)
    full = attention_dropout(x, 0.5, PLACE, "a", 0)
    shards = [attention_dropout(part, 0.5, PLACE, "a", 2 * rank) for rank, part in enumerate(x.chunk(2, dim=1))]
    assert torch.equal(torch.cat(shards, dim=1), full)


def global_batch_mask(micro_batch_size: int, samples: int = 8) -> torch.Tensor:
    """Drop ones over a whole global batch, a micro-batch at a time."""
    parts = []
    for first in range(0, samples, micro_batch_size):
        parts.append(hidden_dropout(torch.ones(4, micro_batch_size, 16), 0.5, Place(11, 2, first), "a", ROWS[:4]))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_every_split_of_the_global_batch_drops_the_same(micro_batch_size: int) -> None:
    assert torch.equal(global_batch_mask(micro_batch_size), global_batch_mask(8))
