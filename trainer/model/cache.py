"""Keys and values of tokens already seen, for generation."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainer.micro_batch import MicroBatch, sequence_positions


class KeyValueCache:
    """Grows by the tokens of each forward. Holds this rank's key/value heads of all layers.

    Args:
        max_length: largest number of tokens; memory for all of them is taken at the first forward.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        """Number of tokens that every layer has seen."""
        self._layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def following(self, ids: torch.Tensor) -> MicroBatch:
        """Return ids `[B, S]` as what follows the tokens seen so far. No labels: the model returns logits."""
        return replace(MicroBatch.of(ids), positions=sequence_positions(ids.shape[1], ids.device) + self.length)

    def extend(self, layer: str, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values `[B, N, S, D]` of `layer`; return all so far, `[B, N, length + S, D]`.

        Raises:
            ValueError: there is no room for them.
        """
        batch, heads, count, head_dim = keys.shape
        end = self.length + count
        if end > self.max_length:
            raise ValueError(f"the key/value cache must hold at most {self.max_length} tokens, but would hold {end}")
        if layer not in self._layers:
            shape = (batch, heads, self.max_length, head_dim)
            self._layers[layer] = (keys.new_empty(shape), values.new_empty(shape))
        kept_keys, kept_values = self._layers[layer]
        kept_keys[:, :, self.length : end] = keys
        kept_values[:, :, self.length : end] = values
        return kept_keys[:, :, :end], kept_values[:, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` tokens as seen. Called once a forward, after all layers."""
        self.length += count
