"""The partition of layers into stages by the plainest recurrence: an oracle for `trainer.pipeline.partition`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate


def plain_partition(costs: Sequence[float], is_block: Sequence[bool], num_stages: int) -> tuple[int, ...]:
    """Return bounds of stages: the cheapest dearest stage, then the smallest sum of squares, then the smallest bounds.

    Every stage that ends at a layer is tried in every round: the layers squared times the stages.
    """
    stops = range(len(costs) + 1)
    prefix = (0.0, *accumulate(costs))
    blocks = (0, *accumulate(map(int, is_block)))
    last_stages = [
        [(start, prefix[stop] - prefix[start]) for start in range(stop) if blocks[stop] > blocks[start]]
        for stop in stops
    ]
    dearest = [0.0] + [math.inf] * len(costs)
    for _ in range(num_stages):
        dearest = [min((max(dearest[a], cost) for a, cost in last_stages[stop]), default=math.inf) for stop in stops]
    limit = dearest[-1]
    flattest: list[tuple[float, tuple[int, ...]]] = [(0.0, (0,))] + [(math.inf, ())] * len(costs)
    for _ in range(num_stages):
        flattest = [
            min(
                ((flattest[a][0] + cost**2, (*flattest[a][1], stop)) for a, cost in last_stages[stop] if cost <= limit),
                default=(math.inf, ()),
            )
            for stop in stops
        ]
    return flattest[-1][1]
