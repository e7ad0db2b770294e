"""Searches the fastest way to train a case on a GPU: setup and micro-batch. It starts where theory says it fits.

What does not fit costs a start of the process with a model to initialise, and time on a GPU is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.arena import ContenderFailed, Turn
from benchmarks.case import Case
from benchmarks.figures import spread
from trainer.log import say
from trainer.planner.own_memory import OwnMemory

GIB = 1 << 30
_ENOUGH = 4
"""Sequences in a micro-batch from which recomputation cannot pay: the matrices are large enough."""
CONTEXT_BYTES = 2 << 30
"""Bytes that a process needs on a GPU besides tensors: CUDA's context, and workspaces of the libraries."""
_USABLE = 0.95
"""Share of a GPU's memory that theory may fill: an allocator leaves gaps."""
_DOUBTFUL = 1.3
"""Times the GPU's memory up to which one sequence is tried all the same: theory counts what is not alive at once."""


@dataclass(frozen=True)
class Setup:
    """A way in which a contender gets a model into memory."""

    name: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """A setup that trains."""

    setup: Setup
    case: Case
    turns: Sequence[Turn]

    def rates(self, steps: int) -> list[float]:
        """Return tokens/s of the timed turns, all but the first."""
        return [steps * self.case.tokens_per_step / turn.seconds for turn in self.turns[1:]]


class Search:
    """One contender's search over setups and micro-batches.

    Args:
        attempt: trains a setup with a case; raises `ContenderFailed`.
        steps: in each of its timed turns.
        memory: bytes of the GPU; None: nothing is known, and every search starts from the case's own micro-batch.
        theory: further words after `trident train` with which theory counts, beside those of the setup.
    """

    def __init__(
        self,
        attempt: Callable[[Setup, Case], Sequence[Turn]],
        steps: int,
        memory: int | None = None,
        theory: tuple[str, ...] = (),
    ) -> None:
        self._attempt = attempt
        self._steps = steps
        self._memory = memory
        self._theory = theory
        self.tried: list[dict[str, Any]] = []
        """Every attempt, and what was left out: the reason is in `failed` or `left_out`."""

    @property
    def reason(self) -> str:
        """Why the last setup does not train."""
        return str(self.tried[-1].get("failed") or self.tried[-1]["left_out"])

    def best(self, case: Case, setups: Sequence[Setup]) -> Fitted | None:
        """Return the fastest setup, each with the largest micro-batch that fits.

        Later setups are tried only while the micro-batches of earlier ones are small: they save memory and cost time.

        Args:
            case: with the largest micro-batch to try.
            setups: from the fastest to the smallest.
        """
        found: list[Fitted] = []
        for setup in setups:
            fitted = self._largest_micro_batch(case, setup)
            if fitted is not None:
                found.append(fitted)
                if fitted.case.micro_batch_size >= min(_ENOUGH, case.micro_batch_size):
                    break
            if len(found) == 2:
                break
        return max(found, key=lambda one: spread(one.rates(self._steps)).median, default=None)

    def expected(self, case: Case, setup: Setup) -> int:
        """Return the most bytes that tensors should take."""
        stage = OwnMemory(on_cpu=False).stages(case.plan((*self._theory, *setup.words)))[0]
        return stage.peak - stage.overhead

    def _largest_micro_batch(self, case: Case, setup: Setup) -> Fitted | None:
        """Halve the micro-batch until it fits; None if one sequence does not, or it fails for another reason."""
        size = self._first_size(case, setup)
        while size >= 1:
            which = replace(case, micro_batch_size=size)
            entry = {"setup": setup.name, "micro_batch_size": size, "expected_bytes": self.expected(which, setup)}
            self.tried.append(entry)
            try:
                return Fitted(setup, which, self._attempt(setup, which))
            except ContenderFailed as error:
                entry["failed"] = str(error)
                say(f"{case.name}, {case.seq_length} tokens, micro-batch {size}, {setup.name}: {error}")
                if not error.is_out_of_memory:
                    return None
            size //= 2
        return None

    def _first_size(self, case: Case, setup: Setup) -> int:
        """Return the largest half of a half of the case's micro-batch that fits by theory; 0 if not even one can."""
        size = case.micro_batch_size
        if self._memory is None:
            return size
        while True:
            tensors = self.expected(replace(case, micro_batch_size=size), setup)
            needed = tensors + CONTEXT_BYTES
            if needed <= _USABLE * self._memory:
                return size
            if size == 1:
                break
            size //= 2
        if needed <= _DOUBTFUL * self._memory:
            return 1
        reason = f"by theory: needs {needed / GIB:.1f} GiB, the GPU has {self._memory / GIB:.1f} GiB"
        self.tried.append(
            {"setup": setup.name, "micro_batch_size": 1, "expected_bytes": tensors, "left_out": reason},
        )
        say(f"{case.name}, {case.seq_length} tokens, {setup.name}: left out {reason}")
        return 0
