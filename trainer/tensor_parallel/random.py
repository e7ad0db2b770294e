"""Dropout whose mask is a pure function of global indices, so that every layout drops the same elements.

A library generator depends on the order and the shape of its calls: both change with the layout. Here each element's
bits are a hash of (seed, step, layer, sample in the global batch, position, channel). Nothing is stored and nothing
has to be restored, so recomputation and resume see the same mask for free.
Source: counter-based random numbers, Salmon et al., SC'11; the mixing function is MurmurHash3's 32-bit finaliser.
"""

from __future__ import annotations

import torch

from trainer.micro_batch import MicroBatch, Place, sequence_positions
from trainer.tensor_parallel.init import stable_hash
from trainer.topology.groups import Group

_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1
_MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)


def _mix(words: torch.Tensor) -> torch.Tensor:
    """Mix 32-bit words held in int64: MurmurHash3's finaliser. int64 products wrap, their low halves are right."""
    words = words ^ (words >> 16)
    words = (words * _MULTIPLIERS[0]) & _LOW
    words = words ^ (words >> 13)
    words = (words * _MULTIPLIERS[1]) & _LOW
    return words ^ (words >> 16)


def _signed(word: int) -> int:
    """Return the int32 with the same bits as the 32-bit `word`."""
    return word - (1 << 32) if word >= 1 << 31 else word


def _shift_right(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of int32 words, whose own shift copies the sign."""
    return (words >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def keep_mask(
    place: Place, name: str, probability: float, indices: tuple[torch.Tensor, ...], width: int
) -> torch.Tensor:
    """Return a mask of the elements that dropout keeps: bool `[*rows, width]`.

    Args:
        place: step and first sample.
        name: name of this dropout, unique in the model.
        probability: probability of dropping, in [0, 1).
        indices: int64 global indices that identify a row (sample first, counted from the micro-batch's first), all
            broadcastable to `[*rows]`.
        width: number of elements in a row, all on this rank.
    """
    key = stable_hash(place.seed, place.step, name)
    row = _mix((indices[0] + place.first_sample) ^ (key & _LOW))
    for index in indices[1:]:
        row = _mix((row + index * _GOLDEN) & _LOW)
    second = _mix(row ^ (key >> 32))
    columns = torch.arange(width, device=row.device, dtype=torch.int64).mul_(_GOLDEN).bitwise_and_(_LOW)
    # int32 from here: these are the large tensors. The second row key, added half-way, keeps two rows from ever
    # running through the same sequence.
    words = row.to(torch.int32).unsqueeze(-1) + columns.to(torch.int32)
    words.bitwise_xor_(_shift_right(words, 16)).mul_(_signed(_MULTIPLIERS[0]))
    words.add_(second.to(torch.int32).unsqueeze(-1))
    words.bitwise_xor_(_shift_right(words, 13)).mul_(_signed(_MULTIPLIERS[1]))
    words.bitwise_xor_(_shift_right(words, 16))
    return words >= round(probability * (1 << 32)) - (1 << 31)


def training_place(batch: MicroBatch, name: str) -> Place:
    """Return the place in the run of a micro-batch that the layer `name` trains on with dropout.

    Raises:
        RuntimeError: the micro-batch has no place.
    """
    if batch.place is None:
        raise RuntimeError(f"a micro-batch must have a place for {name} to train with dropout, but has none")
    return batch.place


def sequence_rows(batch: MicroBatch, group: Group, sequence_parallel: bool) -> torch.Tensor:
    """Return the place of each of this rank's rows in its sequence, `[S]`, or `[S/tp]` sequence-parallel. Local.

    These are not `batch.positions`: two tokens of one sequence never share a row, whatever their positions.
    """
    rows = sequence_positions(batch.input_ids.shape[1], batch.input_ids.device).squeeze(0)
    return rows.chunk(group.size)[group.rank] if sequence_parallel else rows


def _dropped(tensor: torch.Tensor, keep: torch.Tensor, probability: float) -> torch.Tensor:
    zero = torch.zeros((), dtype=tensor.dtype, device=tensor.device)
    return torch.where(keep, tensor, zero) * (1.0 / (1.0 - probability))


def hidden_dropout(
    hidden: torch.Tensor, probability: float, place: Place | None, name: str, rows: torch.Tensor
) -> torch.Tensor:
    """Zero elements of hidden `[S, B, H]` and scale the rest by 1 / (1 - probability). No collective.

    Args:
        hidden: whole rows; S may be a shard.
        probability: probability of zeroing, in [0, 1).
        place: None: not training, return `hidden`.
        name: name of this dropout.
        rows: place of each row of hidden in its sequence, [S] int64; see `sequence_rows`.
    """
    if place is None or probability == 0.0:
        return hidden
    _, batch, width = hidden.shape
    samples = torch.arange(batch, device=hidden.device).unsqueeze(0)
    return _dropped(hidden, keep_mask(place, name, probability, (samples, rows.unsqueeze(1)), width), probability)


def attention_dropout(
    weights: torch.Tensor, probability: float, place: Place | None, name: str, first_head: int
) -> torch.Tensor:
    """Zero attention weights `[B, N, S, K]` and scale the rest by 1 / (1 - probability). No collective.

    Args:
        weights: attention weights of this rank's heads.
        probability: probability of zeroing, in [0, 1).
        place: None: not training, return `weights`.
        name: name of this dropout.
        first_head: global index of weights[:, 0].
    """
    if place is None or probability == 0.0:
        return weights
    batch, heads, queries, keys = weights.shape
    device = weights.device
    samples = torch.arange(batch, device=device).view(-1, 1, 1)
    head = torch.arange(first_head, first_head + heads, device=device).view(1, -1, 1)
    query = torch.arange(queries, device=device).view(1, 1, -1)
    return _dropped(weights, keep_mask(place, name, probability, (samples, head, query), keys), probability)
