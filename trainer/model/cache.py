"""Keys and values of the tokens that texts have so far, for generation.

Each row of the cache is one text. Rows have their own lengths: the token at position p of a row is in its slot p, so no
text is padded, and what a row computes does not know of the others. A layer with a window keeps only the slots that the
window can see, and goes round in them: position p is in slot p modulo the window.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from trainer.micro_batch import MicroBatch, sequence_positions
from trainer.spec.model import Model

Layers = dict[str, tuple[torch.Tensor, torch.Tensor]]


def kept_slots(max_length: int, window: int | None) -> int:
    """Return the number of slots of one text in a layer."""
    return max_length if window is None else min(window, max_length)


def cache_elements(model: Model, tensor_parallel_size: int, names: tuple[str, ...], max_length: int) -> int:
    """Return the elements that one text of `max_length` tokens takes on a rank that holds the blocks of these names."""
    elements = 0
    for name in names:
        spec = getattr(model.layer(name).spec, "attention", None)
        if spec is not None:
            heads = max(1, spec.num_key_value_heads // tensor_parallel_size)
            elements += 2 * heads * spec.head_dim * kept_slots(max_length, spec.window)
    return elements


@dataclass(frozen=True)
class Seen:
    """Keys and values that the queries of a forward pass attend to."""

    keys: torch.Tensor
    """[B, M, K, D]."""
    values: torch.Tensor
    """[B, M, K, D]."""
    mask: torch.Tensor | None = None
    """[B, 1, 1, K] bool, keys that exist; None: all of them do."""
    steps: torch.Tensor | None = None
    """[B or 1, 1, 1, K] int64, position of each key minus that of the query, if they were asked for."""


@dataclass(eq=False)
class CachedPass:
    """One forward pass that reads and extends a cache: the whole beginning of one text, or a token each of several.

    Made by `KeyValueCache.begin` and `KeyValueCache.go_on`; used for one forward pass.
    """

    batch: MicroBatch
    """The tokens and their positions. No labels: the model returns logits."""
    max_length: int
    lengths: tuple[int, ...]
    """Tokens that each row has before this pass."""
    layers: Layers
    num_rows: int
    """Rows of the cache."""
    row: int | None = None
    """The row that begins; None: the first rows go on."""
    _places: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Slots of a layer -> (rows, slot of each row, mask of its slots), once for all layers that are alike."""

    def extend(
        self, layer: str, keys: torch.Tensor, values: torch.Tensor, window: int | None, with_steps: bool = False
    ) -> Seen:
        """Keep keys and values `[B, M, S, D]` of this pass in `layer`; return those that its queries may see.

        Memory for all rows and slots of a layer is taken at its first pass. The result of a pass that goes on is a view
        of it.

        Args:
            layer: global name of the attention.
            keys: keys of this pass.
            values: values of this pass.
            window: number of latest tokens that are attended to; None: all.
            with_steps: the result has the distances of a pass that goes on.
        """
        slots = kept_slots(self.max_length, window)
        if layer not in self.layers:
            shape = (self.num_rows, keys.shape[1], slots, keys.shape[3])
            # Not empty: a slot that is masked must hold a number, since 0 times NaN is NaN.
            self.layers[layer] = (keys.new_zeros(shape), values.new_zeros(shape))
        kept_keys, kept_values = self.layers[layer]
        if self.row is not None:
            _keep_beginning(kept_keys[self.row], keys[0])
            _keep_beginning(kept_values[self.row], values[0])
            return Seen(keys, values)
        rows, length = len(self.lengths), self.lengths[0]
        seen = min(max(self.lengths) + 1, slots)
        known_keys, known_values = kept_keys[:rows, :, :seen], kept_values[:rows, :, :seen]
        steps = self._steps(slots, seen, keys.device) if with_steps else None
        if all(other == length for other in self.lengths):
            known_keys[:, :, length % slots], known_values[:, :, length % slots] = keys[:, :, 0], values[:, :, 0]
            return Seen(known_keys, known_values, None, steps)
        each, where, mask = self._places_of(slots, seen, keys.device)
        known_keys[each, :, where], known_values[each, :, where] = keys[:, :, 0], values[:, :, 0]
        return Seen(known_keys, known_values, mask, steps)

    def _places_of(
        self, slots: int, seen: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if slots not in self._places:
            lengths = torch.tensor(self.lengths, device=device)
            mask = torch.arange(seen, device=device) <= lengths.unsqueeze(1)
            self._places[slots] = (torch.arange(len(self.lengths), device=device), lengths % slots, mask[:, None, None])
        return self._places[slots]

    def _steps(self, slots: int, seen: int, device: torch.device) -> torch.Tensor:
        """Return how many steps back the key in each slot lies: it is the newest whose position is the slot modulo."""
        newest = torch.tensor(self.lengths, device=device).unsqueeze(1)
        return -((newest - torch.arange(seen, device=device)) % slots)[:, None, None]


def _keep_beginning(kept: torch.Tensor, new: torch.Tensor) -> None:
    """Put the keys or values `[M, S, D]` of a text's first tokens where they belong in `[M, slots, D]`."""
    slots, length = kept.shape[1], new.shape[1]
    first = max(0, length - slots)
    where = torch.arange(first, length, device=new.device) % slots
    kept.index_copy_(1, where, new[:, first:])


class KeyValueCache:
    """Keys and values of some texts in the layers of this rank.

    Args:
        num_rows: largest number of texts at once.
        max_length: largest number of tokens of a text that are read again.
    """

    def __init__(self, num_rows: int, max_length: int) -> None:
        self.num_rows = num_rows
        self.max_length = max_length
        self.lengths: list[int] = [0] * num_rows
        """Tokens of each row."""
        self._layers: Layers = {}

    def begin(self, row: int, ids: torch.Tensor) -> CachedPass:
        """Return the pass of the first tokens `[1, S]` of a new text in a row, which forgets the text before.

        Raises:
            ValueError: there is no room for them.
        """
        self._check(ids.shape[1])
        self.lengths[row] = ids.shape[1]
        return CachedPass(MicroBatch.of(ids), self.max_length, (0,), self._layers, self.num_rows, row)

    def go_on(self, ids: torch.Tensor) -> CachedPass:
        """Return the pass of the next token `[B, 1]` of each of the first B rows.

        Raises:
            ValueError: there is no room for one of them.
        """
        rows = ids.shape[0]
        before = tuple(self.lengths[:rows])
        self._check(max(before) + 1)
        self.lengths[:rows] = [length + 1 for length in before]
        if min(before) == max(before):
            positions = sequence_positions(1, ids.device) + before[0]
        else:
            positions = torch.tensor(before, device=ids.device).unsqueeze(1)
        batch = replace(MicroBatch.of(ids), positions=positions)
        return CachedPass(batch, self.max_length, before, self._layers, self.num_rows)

    def _check(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(
                f"a text in the key/value cache must have at most {self.max_length} tokens, but would have {length}"
            )

    def move(self, source: int, target: int) -> None:
        """Put the text of a row into another one, whose text is forgotten."""
        if source == target:
            return
        for tensors in self._layers.values():
            for tensor in tensors:
                tensor[target] = tensor[source]
        self.lengths[target] = self.lengths[source]
