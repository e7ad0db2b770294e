"""Time of a pipeline's step in a closed form, for a search among thousands of layouts. No torch.

`planner.timeline` plays the order itself; what is here is held against it in the tests, on random costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from trainer.planner.timeline import Costs

_UNTIL_SETTLED = 1.25
"""DualPipeV: micro-batches for each rank until its slowest rank sets the pace. Fitted to the simulated order."""


class Messages(Enum):
    """Ways in which the messages of 1F1B travel: the values name orders of `planner.orders`."""

    free = "one_forward_one_backward"
    """A message leaves at once, and nobody waits but the pass that needs the result."""
    one_by_one = "deepspeed_1f1b"
    """Both ends wait for every message."""
    together = "megatron_1f1b"
    """Both ends wait, but messages that cross go at once."""


def estimate_1f1b(costs: Costs, m: int, messages: Messages = Messages.one_by_one) -> float:
    """Return the seconds of `m` micro-batches under 1F1B.

    The time of a schedule is its longest path. Tried here are the paths that stay in one stage: from the first pass to
    the last; from the moment the first micro-batch has been to the end of the pipeline and back; until the last one
    goes there; and between the two. Where messages are free, paths that go round between two stages as well.
    """
    pp = len(costs.forward)
    backward = _backward(costs)
    ahead, behind = [0.0, *_messages(costs, pp)], [*_messages(costs, pp), 0.0]
    whole = [f + b for f, b in zip(costs.forward, backward, strict=True)]
    there_and_back = [0.0] * (pp + 1)
    """Seconds of one micro-batch alone from each stage to the last one and back."""
    for stage in reversed(range(pp)):
        there_and_back[stage] = whole[stage] + 2 * behind[stage] + there_and_back[stage + 1]
    free = messages is Messages.free
    longest, before = there_and_back[0], 0.0
    for stage in range(pp):
        one_way = 0.0 if free else ahead[stage] + behind[stage]
        both_ways = one_way * (2 if messages is Messages.one_by_one else 1)
        depth, rest = pp - stage, there_and_back[stage]
        after = rest - whole[stage]
        turns = m - depth
        forward, back = costs.forward[stage] + one_way, backward[stage] + one_way
        if turns < 0:
            stays = m * whole[stage] + 2 * (m - 1) * one_way + 2 * behind[stage]
            paths = [stays, rest + (m - 1) * max(forward, back)]
        else:
            pace = turns * (whole[stage] + both_ways)
            stays = depth * whole[stage] + 2 * (depth - 1) * one_way + (0.0 if free else 2 * behind[stage])
            paths = [pace + stays, pace + rest + (depth - 1) * max(forward, back)]
            if turns or messages is Messages.one_by_one:
                paths.append(pace + rest + after)
            if free and turns and any(behind):
                paths.append(rest + after + _rounds(whole, behind, stage, turns))
        longest = max(longest, before + max(paths))
        before += whole[stage] + 2 * behind[stage]
    return longest


def _rounds(whole: Sequence[float], behind: Sequence[float], stage: int, turns: int) -> float:
    """Return the longest time of going round between a stage and one behind it until `turns` micro-batches are over."""
    longest = turns * whole[stage]
    around = whole[stage]
    for length, last in enumerate(range(stage + 1, len(whole)), start=2):
        around += 2 * behind[last - 1] + whole[last]
        rounds, left = divmod(turns, length)
        longest = max(longest, rounds * around + left * whole[stage])
    return longest


def estimate_dualpipev(costs: Costs, m: int) -> float:
    """Return the seconds of `m` micro-batches under DualPipeV: the work of the slowest rank, and the filling.

    With equal stages the pipeline fills in (p - 1)(F + 2 B) - F: see `config.pipeline_schedules`.
    """
    stages = len(costs.forward)
    pp, backward = stages // 2, _backward(costs)
    works = [
        costs.forward[rank] + backward[rank] + costs.forward[stages - 1 - rank] + backward[stages - 1 - rank]
        for rank in range(pp)
    ]
    forward, back = sum(costs.forward) / stages, sum(backward) / stages
    settling = min(m, _UNTIL_SETTLED * pp)
    filling = (pp - 1) * (forward + 2 * back) - forward
    slowest = max(_messages(costs, stages))
    return (m - settling) * max(works) + settling * sum(works) / pp + filling + 2 * (m + pp - 1) * slowest


def estimate_interleaved(costs: Costs, pp: int, m: int) -> float:
    """Return the seconds of `m` micro-batches under interleaved 1F1B of `pp` ranks: (m v + p - 1)(F + B) if all alike.

    F and B are those of one of the v stages of a rank (arXiv 2104.04473, section 2.2).
    """
    stages, backward = len(costs.forward), _backward(costs)
    whole = [f + b for f, b in zip(costs.forward, backward, strict=True)]
    slowest = max(sum(whole[rank::pp]) for rank in range(pp))
    filling = (pp - 1) * sum(whole) / stages
    return m * slowest + filling + 2 * (pp - 1) * (stages // pp) * max(_messages(costs, stages))


def _messages(costs: Costs, stages: int) -> list[float]:
    return list(costs.message) or [0.0] * (stages - 1)


def _backward(costs: Costs) -> list[float]:
    """Return the whole backward pass of each stage."""
    weights = costs.weights or [0.0] * len(costs.backward)
    return [one + other for one, other in zip(costs.backward, weights, strict=True)]
