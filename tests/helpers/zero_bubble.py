"""A schedule that no software here trains with, against whose published bubbles the simulator is held."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from trainer.planner.orders import Order, Pass, Work, one_forward_one_backward


@lru_cache(maxsize=32)
def zero_bubble_h1(pp: int, m: int) -> Order:
    """Return ZB-H1 without exchanges (arXiv 2401.10241): 1F1B that puts off the gradients of weights.

    Rank r puts them off by r micro-batches, so that no rank holds more than the first one, and computes the rest where
    1F1B would wait for gradients.
    """
    base = one_forward_one_backward(pp, m)
    ranks = tuple(tuple(_put_off(base.passes[rank], rank, m)) for rank in range(pp))
    return Order(ranks, tuple(range(pp)), m, is_blocking=False)


def _put_off(passes: tuple[Pass, ...], rank: int, m: int) -> Iterator[Pass]:
    late = min(rank, m - 1)
    for each in passes:
        yield each
        if each.work is Work.backward and each.micro_batch >= late:
            yield Pass(Work.weights, rank, each.micro_batch - late)
    yield from (Pass(Work.weights, rank, number) for number in range(m - late, m))
