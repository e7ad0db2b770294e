"""Orders in which the ranks of a pipeline compute their passes and exchange messages, software by software. No torch.

`planner.timeline` plays an order on a clock. Two kinds of orders differ in how results travel:

- Without exchanges a result is sent the moment it is there, and nobody waits for its arrival but the pass that needs
  it. That is how the zero-bubble paper (arXiv 2401.10241) counts, and what Megatron's interleaved schedule comes near.
- With exchanges both ends must have come to a message before it starts, and wait until it is over: blocking sends and
  receives. That is how this product runs: DeepSpeed's `p2p.send` and `p2p.recv` wait (`runtime/pipe/engine.py`), and
  gloo and NCCL begin a message when both ends are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import NamedTuple

from trainer.config.schema import PipelineSchedule


class Work(IntEnum):
    """Kinds of passes."""

    forward = 0
    backward = 1
    """The whole backward pass, or the gradient of the input alone in an order that has `weights`."""
    weights = 2
    """The gradient of the weights, where an order puts it off."""


class Pass(NamedTuple):
    """A computation of one micro-batch in one stage. It also names the message that carries its result."""

    work: Work
    stage: int
    micro_batch: int


class Exchange(NamedTuple):
    """Messages that a rank starts together, and waits for until all are over."""

    sends: tuple[Pass, ...] = ()
    """Passes of this rank whose results leave."""
    receives: tuple[Pass, ...] = ()
    """Passes of other ranks whose results arrive."""


@dataclass(frozen=True, eq=False)
class Order:
    """The instructions of every rank, in the order in which it runs them."""

    ranks: tuple[tuple[Pass | Exchange, ...], ...]
    owners: tuple[int, ...]
    """The rank that holds each stage."""
    micro_batches: int
    is_blocking: bool
    """True if results travel in exchanges alone, and both ends wait for them."""

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.owners)

    @cached_property
    def passes(self) -> tuple[tuple[Pass, ...], ...]:
        """The passes of every rank, in order, without the exchanges."""
        return tuple(tuple(each for each in rank if isinstance(each, Pass)) for rank in self.ranks)

    @cached_property
    def in_flight(self) -> tuple[int, ...]:
        """Largest number of forward passes of every rank that wait for their backward pass, over all its stages.

        Where the gradient of the weights is put off, a pass is over with it: it needs the activations as well.
        """
        return tuple(round(most) for most in self.most_held([1.0] * self.stages))

    def most_held(self, sizes: Sequence[float]) -> list[float]:
        """Return the most that every rank holds at once, if a pass of stage s in flight holds `sizes[s]`."""
        last = Work.weights if any(each.work is Work.weights for each in self.passes[0]) else Work.backward
        found = []
        for passes in self.passes:
            held = most = 0.0
            for each in passes:
                if each.work is Work.forward:
                    held += sizes[each.stage]
                    most = max(most, held)
                elif each.work is last:
                    held -= sizes[each.stage]
            found.append(most)
        return found


def needs(each: Pass, stages: int) -> Pass | None:
    """Return the pass of another stage whose result a pass needs; None for the first forward and the last backward."""
    if each.work is Work.forward:
        return Pass(Work.forward, each.stage - 1, each.micro_batch) if each.stage else None
    if each.work is Work.backward and each.stage + 1 < stages:
        return Pass(Work.backward, each.stage + 1, each.micro_batch)
    return None


def _one_forward_one_backward(pp: int, m: int, rank: int) -> Iterator[Pass]:
    """Yield the passes of a rank: as many forward as it takes to fill the ranks behind it, then in turns."""
    ahead = min(pp - rank, m)
    yield from (Pass(Work.forward, rank, number) for number in range(ahead))
    for number in range(m):
        yield Pass(Work.backward, rank, number)
        if number + ahead < m:
            yield Pass(Work.forward, rank, number + ahead)


@lru_cache(maxsize=32)
def one_forward_one_backward(pp: int, m: int) -> Order:
    """Return 1F1B without exchanges, `m` micro-batches through `pp` ranks (arXiv 2104.04473, section 2.2)."""
    ranks = tuple(tuple(_one_forward_one_backward(pp, m, rank)) for rank in range(pp))
    return Order(ranks, tuple(range(pp)), m, is_blocking=False)


@lru_cache(maxsize=32)
def deepspeed_1f1b(pp: int, m: int) -> Order:
    """Return 1F1B as DeepSpeed's `TrainSchedule` runs it: the same passes, with blocking messages between them.

    A rank that is about to compute forward first hands over the gradient that it has just made and then takes its
    input, both with the rank before it. One that is about to compute backward first takes the gradient from the rank
    behind it and then hands over what it has just computed: later than it could, but so both ends agree on the order.
    """
    return Order(tuple(tuple(_deepspeed(pp, m, rank)) for rank in range(pp)), tuple(range(pp)), m, is_blocking=True)


def _deepspeed(pp: int, m: int, rank: int) -> Iterator[Pass | Exchange]:
    # DeepSpeed counts in steps, of which every other one is a forward step: micro-batch i is computed in step
    # 2 i + rank forward and in step 2 i + 2 pp - 1 - rank backward.
    last_backward = 2 * pp - 1 - rank
    for step in range(rank, 2 * (m + pp - 1) + 1):
        if (step - rank) % 2 == 0:
            before, now = (step - 1 - last_backward) // 2, (step - rank) // 2
            if rank and 0 <= before < m:
                yield Exchange(sends=(Pass(Work.backward, rank, before),))
            if now < m:
                if rank:
                    yield Exchange(receives=(Pass(Work.forward, rank - 1, now),))
                yield Pass(Work.forward, rank, now)
        else:
            before, now = (step - 1 - rank) // 2, (step - last_backward) // 2
            if 0 <= now < m and rank + 1 < pp:
                yield Exchange(receives=(Pass(Work.backward, rank + 1, now),))
            if before < m and rank + 1 < pp:
                yield Exchange(sends=(Pass(Work.forward, rank, before),))
            if 0 <= now < m:
                yield Pass(Work.backward, rank, now)


@lru_cache(maxsize=32)
def megatron_1f1b(pp: int, m: int) -> Order:
    """Return 1F1B as Megatron's non-interleaved schedule runs it: what leaves and what arrives is exchanged at once.

    It waits for both (`batch_isend_irecv` and then `wait`), so that this is an order with exchanges as well.
    """
    return Order(tuple(tuple(_megatron(pp, m, rank)) for rank in range(pp)), tuple(range(pp)), m, is_blocking=True)


def _megatron(pp: int, m: int, rank: int) -> Iterator[Pass | Exchange]:
    passes = list(_one_forward_one_backward(pp, m, rank))
    leaving: tuple[Pass, ...] = ()
    # While the pipeline fills and drains, neighbours in the order are of one kind, and messages go one by one.
    for each in passes:
        arriving = tuple(one for one in (needs(each, pp),) if one is not None)
        if leaving and arriving and leaving[0].work is not arriving[0].work:
            yield Exchange(leaving, arriving)
        else:
            yield from (Exchange(sends=leaving) for _ in leaving)
            yield from (Exchange(receives=arriving) for _ in arriving)
        yield each
        is_sent = rank + 1 < pp if each.work is Work.forward else rank > 0
        leaving = (each,) if is_sent else ()
    yield from (Exchange(sends=leaving) for _ in leaving)


@lru_cache(maxsize=32)
def interleaved_1f1b(pp: int, m: int, chunks: int) -> Order:
    """Return Megatron's interleaved 1F1B without exchanges (arXiv 2104.04473, section 2.2).

    Rank r holds the stages r, r + pp, r + 2 pp, and so on, `chunks` of them. Micro-batches go through a stage in
    groups of `pp`.

    Raises:
        ValueError: `m` is no multiple of `pp`, which Megatron needs.
    """
    if m % pp:
        raise ValueError(f"interleaved 1F1B needs a multiple of {pp} micro-batches, but there are {m}")
    ranks = tuple(tuple(_interleaved(pp, m, chunks, rank)) for rank in range(pp))
    return Order(ranks, tuple(stage % pp for stage in range(pp * chunks)), m, is_blocking=False)


def _interleaved(pp: int, m: int, chunks: int, rank: int) -> Iterator[Pass]:
    def numbered(work: Work, number: int) -> Pass:
        group, place = divmod(number, pp * chunks)
        chunk = place // pp
        if work is Work.backward:
            chunk = chunks - 1 - chunk
        return Pass(work, chunk * pp + rank, group * pp + place % pp)

    total = m * chunks
    ahead = min(2 * (pp - rank - 1) + (chunks - 1) * pp + 1, total)
    yield from (numbered(Work.forward, number) for number in range(ahead))
    for number in range(total):
        yield numbered(Work.backward, number)
        if number + ahead < total:
            yield numbered(Work.forward, number + ahead)


@lru_cache(maxsize=32)
def dualpipev(pp: int, m: int) -> Order:
    """Return DualPipeV as DeepSpeed's `DualPipeVSchedule` runs it: rank r holds the stages r and 2 pp - 1 - r.

    https://github.com/deepseek-ai/DualPipe; DeepSpeed puts off no gradient of weights.

    Raises:
        ValueError: there are fewer than 2 pp micro-batches.
    """
    if m < 2 * pp:
        raise ValueError(f"DualPipeV needs at least {2 * pp} micro-batches, but there are {m}")
    owners = tuple(min(stage, 2 * pp - 1 - stage) for stage in range(2 * pp))
    return Order(tuple(tuple(_Folded(pp, m, rank).instructions()) for rank in range(pp)), owners, m, is_blocking=True)


class _Folded:
    """A rank of DualPipeV. Messages queue up, and go together before the next pass that may need one of them."""

    def __init__(self, pp: int, m: int, rank: int) -> None:
        self._pp, self._m, self._rank = pp, m, rank
        self._stages = (rank, 2 * pp - 1 - rank)
        self._counts: dict[tuple[str, Work, int], int] = {}
        self._sends: list[Pass] = []
        self._receives: list[Pass] = []

    def _next(self, what: str, work: Work, half: int) -> Pass:
        """Return the next pass of its kind in this rank's first or second stage."""
        number = self._counts.get((what, work, half), 0)
        self._counts[what, work, half] = number + 1
        return Pass(work, self._stages[half], number)

    def _take(self, work: Work, half: int) -> None:
        """Queue what the next pass of its kind needs, if another rank makes it."""
        needed = needs(self._next("take", work, half), 2 * self._pp)
        if needed is not None and needed.stage not in self._stages:
            self._receives.append(needed)

    def _give(self, work: Work, half: int) -> None:
        """Queue the oldest result of its kind that has not left, if another rank needs it."""
        made = self._next("give", work, half)
        goes_to = made.stage + (1 if work is Work.forward else -1)
        if 0 <= goes_to < 2 * self._pp and goes_to not in self._stages:
            self._sends.append(made)

    def _run(self, *works: tuple[Work, int]) -> Iterator[Pass | Exchange]:
        """Let the queue go, and compute."""
        if self._sends or self._receives:
            yield Exchange(tuple(self._sends), tuple(self._receives))
            self._sends, self._receives = [], []
        yield from (self._next("run", work, half) for work, half in works)

    def _each(self, work: Work, half: int) -> Iterator[Pass | Exchange]:
        """Take, compute and give one pass."""
        self._take(work, half)
        yield from self._run((work, half))
        self._give(work, half)

    def _both(self, half: int, takes: bool = True) -> Iterator[Pass | Exchange]:
        """Compute forward in one half and backward in the other, with one exchange for both."""
        if takes:
            self._take(Work.forward, half)
        self._take(Work.backward, 1 - half)
        yield from self._run((Work.forward, half), (Work.backward, 1 - half))
        self._give(Work.forward, half)
        self._give(Work.backward, 1 - half)

    def instructions(self) -> Iterator[Pass | Exchange]:
        """Yield them: the pipeline fills from its first half, runs both ways at once, and drains."""
        forward, backward = Work.forward, Work.backward
        behind, is_last = self._pp - 1 - self._rank, self._rank == self._pp - 1
        for _ in range(2 * behind):
            yield from self._each(forward, 0)
        self._take(forward, 0)
        for turn in range(self._rank + 1):
            yield from self._run((forward, 0))
            self._take(forward, 0)
            self._take(forward, 1)
            yield from self._run((forward, 1))
            # The last rank, where the fold is, keeps its last result until it has gone on.
            if not is_last or turn < self._rank:
                self._give(forward, 1)
            self._give(forward, 0)
        for _ in range(behind):
            yield from self._each(backward, 1)
            self._take(forward, 1)
            yield from self._run((forward, 1))
            self._give(forward, 1)
        for turn in range(self._m - 2 * self._pp + self._rank + 1):
            if turn == 0 and is_last:
                yield from self._run((forward, 0))
                self._give(forward, 1)
                self._take(backward, 1)
                yield from self._run((backward, 1))
                self._give(forward, 0)
                self._give(backward, 1)
            else:
                yield from self._both(0, takes=turn > 0)
            yield from self._both(1)
        for _ in range(behind):
            yield from self._each(backward, 1)
            yield from self._both(1)
        for _ in range(self._rank + 1):
            yield from self._each(backward, 1)
            yield from self._each(backward, 0)
        for _ in range(behind):
            yield from self._run()
            yield from self._each(backward, 0)
        yield from self._run()


def trained_order(kind: PipelineSchedule, pp: int, m: int) -> Order:
    """Return the order in which this product trains."""
    return {PipelineSchedule.f1b1: deepspeed_1f1b, PipelineSchedule.dualpipev: dualpipev}[kind](pp, m)
