"""Log-probabilities of the targets of windows, computed by the ranks of a layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from trainer.evaluation.windows import Window
from trainer.inference.stage import StageModel
from trainer.micro_batch import MicroBatch
from trainer.spec.model import Block
from trainer.tensor_parallel.cross_entropy import CHUNK_ELEMENTS
from trainer.tensor_parallel.token_scores import token_scores
from trainer.topology.groups import ParallelGroups


class Score(NamedTuple):
    """The score of a window's targets."""

    log_probability: float
    """Sum over them, in nats."""
    is_greedy: bool
    """True if each of them is the likeliest token at its place."""


class _Row(NamedTuple):
    """A sequence that the model reads once, for all windows with these inputs."""

    inputs: tuple[int, ...]
    windows: tuple[int, ...]
    """Indices of the windows."""


class Scorer:
    """Scores windows with the stage of this rank.

    A score depends on its window alone, up to the last bits of a matrix product. Sequences in a batch are padded at
    their end, which no token before it sees.

    Args:
        model: this rank's layers, filled.
        groups: this rank's place.
        beat: called after each batch.
    """

    def __init__(self, model: StageModel, groups: ParallelGroups, beat: Callable[[], object]) -> None:
        self._model, self._groups, self._beat = model, groups, beat
        self._needs_equal_lengths = _depends_on_length(model)

    @torch.inference_mode()
    def score(self, windows: Sequence[Window], batch_size: int) -> list[Score]:
        """Return the score of each window, on every rank. Collective over the layout; replicas share the batches.

        Args:
            windows: the same on every rank.
            batch_size: largest number of sequences at once.
        """
        replica, replicas = self._groups.samples.rank, self._groups.samples.size
        mine: dict[int, Score] = {}
        for number, rows in enumerate(self._batches(windows, batch_size)):
            if number % replicas == replica:
                mine |= self._score(rows, windows)
            self._beat()
        reports = self._groups.tensor.rank == 0 and self._model.is_last
        found: dict[int, Score] = {}
        for part in self._groups.control.gather_objects(mine if reports else {}):
            found |= part
        return [found[index] for index in range(len(windows))]

    def _batches(self, windows: Sequence[Window], batch_size: int) -> Iterator[list[_Row]]:
        """Yield batches of sequences, the longest first; windows with the same inputs are one sequence."""
        known: dict[tuple[int, ...], list[int]] = {}
        for index, window in enumerate(windows):
            known.setdefault(window.inputs, []).append(index)
        batch: list[_Row] = []
        for inputs in sorted(known, key=lambda inputs: (-len(inputs), inputs)):
            is_other = self._needs_equal_lengths and batch and len(batch[0].inputs) != len(inputs)
            if len(batch) == batch_size or is_other:
                yield batch
                batch = []
            batch.append(_Row(inputs, tuple(known[inputs])))
        if batch:
            yield batch

    def _score(self, rows: Sequence[_Row], windows: Sequence[Window]) -> dict[int, Score]:
        """Return index of a window -> its score, on the last stage; nothing on the others."""
        device, length = self._model.device, len(rows[0].inputs)
        padded = [[*row.inputs, *[0] * (length - len(row.inputs))] for row in rows]
        batch = MicroBatch.of(torch.tensor(padded, device=device))
        hidden, pipeline = batch.input_ids, self._groups.pipeline
        if not self._model.is_first:
            shape = (length, len(rows), self._model.context.spec.hidden_size)
            hidden = pipeline.receive(torch.empty(shape, device=device), pipeline.rank - 1)
        hidden = self._model.through_blocks(hidden, batch)
        if not self._model.is_last:
            pipeline.send(hidden, pipeline.rank + 1)
            return {}
        return self._scores(hidden, batch, rows, windows)

    def _scores(
        self, hidden: torch.Tensor, batch: MicroBatch, rows: Sequence[_Row], windows: Sequence[Window]
    ) -> dict[int, Score]:
        """Ask the head at the places of targets alone, a bounded number of logits at a time."""
        context, device = self._model.context, hidden.device
        wanted = [(row, len(one.inputs), index) for row, one in enumerate(rows) for index in one.windows]
        places = sorted(
            {(row, end - back) for row, end, index in wanted for back in range(1, _count(windows, index) + 1)}
        )
        at = {place: number for number, place in enumerate(places)}
        # Of each target: its place, its window, itself.
        targets = [
            (at[row, end - _count(windows, index) + step], index, target)
            for row, end, index in wanted
            for step, target in enumerate(windows[index].targets)
        ]
        targets.sort()
        size = max(1, CHUNK_ELEMENTS // (context.spec.vocab_size // context.tensor.size + 1))
        sums = {index: 0.0 for _, _, index in wanted}
        greedy = dict.fromkeys(sums, True)
        for start in range(0, len(places), size):
            chunk = torch.tensor(places[start : start + size], device=device)
            here = [one for one in targets if start <= one[0] < start + size]
            logits = self._model.local_logits(hidden[chunk[:, 1], chunk[:, 0]].unsqueeze(1), batch)[:, 0]
            numbers = torch.tensor([(place - start, target) for place, _, target in here], device=device)
            found, best = token_scores(logits, numbers[:, 0], numbers[:, 1], context.tensor, context.spec.vocab_size)
            for (_, index, _), value, is_best in zip(here, found.tolist(), best.tolist(), strict=True):
                sums[index] += value
                greedy[index] &= is_best
        return {index: Score(total, greedy[index]) for index, total in sums.items()}


def _count(windows: Sequence[Window], index: int) -> int:
    return len(windows[index].targets)


def _depends_on_length(model: StageModel) -> bool:
    """Return whether a token may see how long its sequence is, as with some ways to scale rotary frequencies."""
    blocks = [layer.spec for layer in model.context.spec.layers if isinstance(layer.spec, Block)]
    ropes = [block.attention.rope for block in blocks]
    return any(rope is not None and rope.scaling is not None and rope.scaling.depends_on_length for rope in ropes)
