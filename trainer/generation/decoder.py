"""Writing several texts at once: each step draws one token of every text, over the ranks of a layout.

Every rank of a layout runs the same loop over the same requests. Stages hand hidden states on; the last one draws, from
generators that belong to the texts, and tells all stages the tokens. So each rank knows all texts, and all agree on
when one ends without a further message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trainer.generation.sampling import Sampling, next_token
from trainer.inference.stage import StageModel
from trainer.model.cache import CachedPass, KeyValueCache
from trainer.topology.groups import Group, SingleGroup

BATCH_SIZE = 8
"""Texts that are written at once unless the user says otherwise."""


@dataclass(frozen=True, eq=False)
class Request:
    """A text that is to be written."""

    ids: tuple[int, ...]
    """Its beginning; at least one token."""
    max_tokens: int
    """Largest number of tokens that follow, at least 1."""
    seed: int
    takes: Callable[[int], bool]
    """Is given each token as it is drawn; returns whether the text goes on, which it does not after `max_tokens`. It
    must answer alike on every rank."""

    @property
    def read_again(self) -> int:
        """Largest number of its tokens that go into the model: the last one that is drawn does not."""
        return len(self.ids) + self.max_tokens - 1


class _Row:
    """A text under way."""

    def __init__(self, request: Request, device: torch.device, used: torch.Tensor | None) -> None:
        self.request = request
        self.generator = torch.Generator(device).manual_seed(request.seed)
        self.used = used
        """[V] bool, its tokens; None where nobody asks."""
        self.last = request.ids[-1]

    def take(self, token: int) -> bool:
        """Hand on a token; return whether the text goes on."""
        self.last = token
        if self.used is not None:
            self.used[token] = True
        return self.request.takes(token)


class Decoder:
    """Writes texts with the stage of this rank. A text is the same whichever others are written with it.

    (Up to the last bits of a matrix product, which may depend on the number of its rows.)

    Args:
        model: this rank's layers, filled.
        sampling: the way in which tokens are chosen.
        pipeline: the ranks that hand hidden states on to each other; None: this rank holds all layers.
    """

    def __init__(self, model: StageModel, sampling: Sampling, pipeline: Group | None = None) -> None:
        self._model = model
        self._sampling = sampling
        self._pipeline = pipeline or SingleGroup()

    @torch.inference_mode()
    def write(self, requests: Sequence[Request], batch_size: int = BATCH_SIZE) -> None:
        """Write all texts, `batch_size` at once; the next one begins when one ends. Collective over the layout."""
        if not requests:
            return
        cache = KeyValueCache(min(batch_size, len(requests)), max(request.read_again for request in requests))
        waiting, rows = deque(requests), list[_Row]()
        while waiting or rows:
            while waiting and len(rows) < cache.num_rows:
                row = self._begun(cache, len(rows), waiting.popleft())
                rows += [] if row is None else [row]
            if rows:
                self._go_on(cache, rows)

    def _begun(self, cache: KeyValueCache, place: int, request: Request) -> _Row | None:
        """Read the beginning of a text into a row of the cache and draw a token; None if the text ends with it."""
        device = self._model.device
        ids = torch.tensor([request.ids], device=device)
        row = _Row(request, device, self._used(ids))
        (token,) = self._drawn(cache.begin(place, ids), [row])
        return row if row.take(token) else None

    def _used(self, ids: torch.Tensor) -> torch.Tensor | None:
        if self._sampling.repetition_penalty == 1 or not self._model.is_last:
            return None
        none = torch.zeros(self._model.context.spec.vocab_size, dtype=torch.bool, device=ids.device)
        return none.index_fill_(0, ids[0], True)

    def _go_on(self, cache: KeyValueCache, rows: list[_Row]) -> None:
        """Draw a token of every text under way, and take away those that end."""
        ids = torch.tensor([[row.last] for row in rows], device=self._model.device)
        tokens = self._drawn(cache.go_on(ids), rows)
        ended = [place for place, (row, token) in enumerate(zip(rows, tokens, strict=True)) if not row.take(token)]
        # From the end, so that the last row, which takes the place of an ended one, goes on.
        for place in reversed(ended):
            cache.move(len(rows) - 1, place)
            rows[place] = rows[-1]
            rows.pop()

    def _drawn(self, one: CachedPass, rows: Sequence[_Row]) -> list[int]:
        """Return the token after each row, on every rank."""
        logits = self._logits(one)
        if logits is None:
            tokens = torch.zeros(len(rows), dtype=torch.int64, device=self._model.device)
        else:
            used = [row.used for row in rows if row.used is not None]
            generators = [row.generator for row in rows]
            tokens = next_token(logits, self._sampling, generators, torch.stack(used) if used else None)
        found: list[int] = self._pipeline.all_reduce(tokens).tolist()
        return found

    def _logits(self, one: CachedPass) -> torch.Tensor | None:
        """Return the logits after each row, [B, V]; None on all stages but the last."""
        hidden, stage = one.batch.input_ids, self._pipeline.rank
        if not self._model.is_first:
            batch, length = hidden.shape
            width = self._model.context.spec.hidden_size
            empty = torch.empty(length, batch, width, dtype=torch.float32, device=hidden.device)
            hidden = self._pipeline.receive(empty, stage - 1)
        result: torch.Tensor = self._model(hidden, one)
        if self._model.is_last:
            return result
        self._pipeline.send(result, stage + 1)
        return None
