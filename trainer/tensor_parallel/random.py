"""Dropout whose mask is a pure function of global indices, so that every layout drops the same elements.

A library generator depends on the order and the shape of its calls: both change with the layout. Here each element's
bits are a hash of (seed, step, layer, sample in the global batch, position, channel). Nothing is stored and nothing
has to be restored, so recomputation and resume see the same mask for free.
Source: counter-based random numbers, Salmon et al., SC'11; the mixing function is MurmurHash3's 32-bit finaliser.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.tensor_parallel.init import stable_hash

_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1
_MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)


@dataclass(frozen=True)
class MicroBatchPlace:
    """Which samples of which step a layer is looking at: the part of a dropout key that all its elements share."""

    seed: int
    step: int
    first_sample: int
    """Index in the global batch of the micro-batch's first sample; the others follow it."""


class StepClock:
    """Tells layers where in the run they are. One per model, started by the engine before each step.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._step: int | None = None
        self._dp_rank = 0
        self._data_parallel_size = 1
        self._micro_batch_size = 1
        self._seen: dict[str, int] = {}

    def start_step(self, step: int, dp_rank: int, data_parallel_size: int, micro_batch_size: int) -> None:
        """Begin optimizer step `step`; every layer's next micro-batch is the step's first."""
        self._step = step
        self._dp_rank = dp_rank
        self._data_parallel_size = data_parallel_size
        self._micro_batch_size = micro_batch_size
        self._seen.clear()

    def next_micro_batch(self, layer: str) -> MicroBatchPlace:
        """Return the place of the micro-batch that `layer` is about to compute, and count it.

        Call once a forward, in training mode only, outside a recomputed region. Micro-batch m of data-parallel rank d
        begins at sample (m * dp + d) * micro_batch_size of the global batch.

        Raises:
            RuntimeError: no step was started.
        """
        if self._step is None:
            raise RuntimeError(f"start_step must be called before {layer} trains with dropout, but was not")
        index = self._seen.get(layer, 0)
        self._seen[layer] = index + 1
        first = (index * self._data_parallel_size + self._dp_rank) * self._micro_batch_size
        return MicroBatchPlace(self.seed, self._step, first)


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
    place: MicroBatchPlace, name: str, probability: float, indices: tuple[torch.Tensor, ...], width: int
) -> torch.Tensor:
    """Return which elements dropout keeps: bool `[*rows, width]`.

    Args:
        place: step and first sample.
        name: of this dropout, unique in the model.
        probability: of dropping, in [0, 1).
        indices: int64 global indices that identify a row (sample first, counted from the micro-batch's first), all
            broadcastable to `[*rows]`.
        width: elements in a row, all on this rank.
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


def _dropped(tensor: torch.Tensor, keep: torch.Tensor, probability: float) -> torch.Tensor:
    zero = torch.zeros((), dtype=tensor.dtype, device=tensor.device)
    return torch.where(keep, tensor, zero) * (1.0 / (1.0 - probability))


def hidden_dropout(
    hidden: torch.Tensor, probability: float, place: MicroBatchPlace | None, name: str, first_position: int
) -> torch.Tensor:
    """Zero elements of hidden `[S, B, H]` and scale the rest by 1 / (1 - probability). No collective.

    Args:
        hidden: whole rows; S may be a shard.
        probability: of zeroing, in [0, 1).
        place: None: not training, return `hidden`.
        name: of this dropout.
        first_position: global position of hidden[0].
    """
    if place is None or probability == 0.0:
        return hidden
    length, batch, width = hidden.shape
    samples = torch.arange(batch, device=hidden.device).unsqueeze(0)
    positions = torch.arange(first_position, first_position + length, device=hidden.device).unsqueeze(1)
    return _dropped(hidden, keep_mask(place, name, probability, (samples, positions), width), probability)


def attention_dropout(
    weights: torch.Tensor, probability: float, place: MicroBatchPlace | None, name: str, first_head: int
) -> torch.Tensor:
    """Zero attention weights `[B, N, S, K]` and scale the rest by 1 / (1 - probability). No collective.

    Args:
        weights: of this rank's heads.
        probability: of zeroing, in [0, 1).
        place: None: not training, return `weights`.
        name: of this dropout.
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
