"""The ranks that share a model, asked by one of them for scores and texts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from trainer.errors import NumericsError
from trainer.evaluation.leading import Lead
from trainer.evaluation.scoring import Score, Scorer
from trainer.evaluation.windows import Window
from trainer.generation.decoder import Decoder, Request
from trainer.generation.sampling import Sampling
from trainer.inference.stage import StageModel
from trainer.progress import current
from trainer.topology.groups import ParallelGroups

T = TypeVar("T")
Decode = Callable[[Sequence[int]], str]
"""Text of ids, special tokens included."""
_BYTES_OF_A_CHARACTER = 4
"""A tokenizer writes a character with at most as many tokens as it has bytes."""

_WINDOWS_OF_A_JOB = 2048
TELL_S = 30.0
"""Seconds between lines about how far an evaluation is."""
_UNKNOWN = Score(math.nan, False)


@dataclass(frozen=True)
class Wanted:
    """A text that is to be written."""

    ids: tuple[int, ...]
    """Its beginning."""
    max_tokens: int
    stops: tuple[str, ...]
    """Strings after which nobody wants to know more."""
    seed: int = 0


@dataclass(frozen=True)
class _Scores:
    windows: Sequence[Window]


@dataclass(frozen=True)
class _Texts:
    wanted: Sequence[Wanted]
    sampling: Sampling
    ends: Collection[int]


class Team:
    """The ranks of a layout with a model. Made by all of them; asked by the leading one, rank 0, inside `led`.

    Args:
        model: this rank's layers, filled.
        groups: this rank's place.
        batch_size: largest number of sequences at once.
        decoding: returns the function that decodes; asked for with the first text.
        beat: called now and then while the ranks compute, as a sign of life.
        tell: takes a line about how far they are, now and then.
    """

    def __init__(
        self,
        model: StageModel,
        groups: ParallelGroups,
        batch_size: int,
        decoding: Callable[[], Decode],
        beat: Callable[[], object] | None = None,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self._model, self._groups, self._batch_size = model, groups, batch_size
        self._decoding = decoding
        self._decode: Decode | None = None
        self._beat = beat or current().beat
        self._tell, self._told_at = tell, time.monotonic()
        self._scorer = Scorer(model, groups, self._beat)
        self._lead = Lead(groups.control, self._do)
        self.seq_length = model.context.execution.seq_length
        """Largest number of tokens that the model reads."""

    @property
    def is_at_work(self) -> bool:
        """True while the ranks compute, and after a failure of theirs."""
        return self._lead.is_at_work

    def led(self, action: Callable[[], T]) -> T | None:
        """Run `action` on the leading rank, and return its result there; None elsewhere. Collective over the layout."""
        return self._lead.run(action)

    def score(self, windows: Sequence[Window]) -> list[Score]:
        """Return the score of each window. On the leading rank.

        Raises:
            NumericsError: one is not finite.
        """
        # Sorted as a whole: sequences of one length, and those with the same inputs, come together.
        order = sorted(range(len(windows)), key=lambda index: (-len(windows[index].inputs), windows[index].inputs))
        found: list[Score] = [_UNKNOWN] * len(windows)
        for start in range(0, len(order), _WINDOWS_OF_A_JOB):
            part = order[start : start + _WINDOWS_OF_A_JOB]
            scores = self._lead.ask(_Scores([windows[index] for index in part]))
            for index, score in zip(part, scores, strict=True):
                found[index] = score
            self._tell_now(start + len(part), len(windows))
        if not all(math.isfinite(one.log_probability) for one in found):
            raise NumericsError("the log-likelihood of a text must be finite, but is not: the weights hold NaN or Inf")
        return found

    def _tell_now(self, done: int, count: int) -> None:
        now = time.monotonic()
        if self._tell is not None and now - self._told_at >= TELL_S and done < count:
            self._told_at = now
            self._tell(f"scored {done:,} of {count:,}")

    def write(self, wanted: Sequence[Wanted], sampling: Sampling, ends: Collection[int]) -> list[list[int]]:
        """Return the tokens of each text, without one that ends it. On the leading rank.

        Args:
            wanted: the texts.
            sampling: the way in which tokens are chosen.
            ends: tokens that end a text.
        """
        found: list[list[int]] = self._lead.ask(_Texts(wanted, sampling, ends)) if wanted else []
        return found

    def _do(self, job: Any) -> Any:
        if isinstance(job, _Scores):
            return self._scorer.score(job.windows, self._batch_size)
        return self._written(job)

    def _written(self, job: _Texts) -> list[list[int]]:
        """Return the tokens of each text, on every rank; replicas share the texts."""
        if self._decode is None:
            self._decode = self._decoding()
        replica, replicas = self._groups.samples.rank, self._groups.samples.size
        mine = range(replica, len(job.wanted), replicas)
        replies = {index: _Reply(job.wanted[index], job.ends, self._decode, self._beat) for index in mine}
        requests = [
            Request(one.wanted.ids, one.wanted.max_tokens, one.wanted.seed, one.take) for one in replies.values()
        ]
        Decoder(self._model, job.sampling, self._groups.pipeline).write(requests, self._batch_size)
        reports = self._groups.place.stage == 0 and self._groups.tensor.rank == 0
        drawn = {index: one.drawn for index, one in replies.items()} if reports else {}
        found: dict[int, list[int]] = {}
        for part in self._groups.control.gather_objects(drawn):
            found |= part
        return [found[index] for index in range(len(job.wanted))]


class _Reply:
    """A text under way."""

    def __init__(self, wanted: Wanted, ends: Collection[int], decode: Decode, beat: Callable[[], object]) -> None:
        self.wanted, self._ends, self._decode, self._beat = wanted, ends, decode, beat
        longest = max((len(stop) for stop in wanted.stops), default=0)
        self._looked_at = _BYTES_OF_A_CHARACTER * (longest + 1)
        self.drawn: list[int] = []

    def take(self, token: int) -> bool:
        """Add a token; return whether the text goes on."""
        self._beat()
        if token in self._ends:
            return False
        self.drawn.append(token)
        if len(self.drawn) >= self.wanted.max_tokens:
            return False
        if not self.wanted.stops:
            return True
        end = self._decode(self.drawn[-self._looked_at :])
        return not any(stop in end for stop in self.wanted.stops)
