"""The monotonic clocks of several machines compared, with a bound for the error that is left.

Only rank 0 and the ranks that it asks talk, one after the other, however many others there are.
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from trainer.topology.groups import Group

T = TypeVar("T")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = "/proc/self/ns/time"
ROUNDS = 16
"""Messages there and back between two ranks: the quickest one bounds the error."""


def clock_name() -> str:
    """Return a name of this process's monotonic clock: processes with the same one share it. Empty: it is not known."""
    try:
        # All processes of a booted machine have one, unless they were given a time of their own.
        return f"{_BOOT.read_text(encoding='utf-8').strip()} {os.readlink(_NAMESPACE)}"
    except OSError:
        return ""


def collected(control: Group, ranks: Sequence[int], mine: T) -> list[T]:
    """Return the values of some ranks on rank 0, which is one of them, in their order; elsewhere nothing.

    For these ranks to call, with the same ranks.

    Args:
        control: a group on CPU over the whole world.
        ranks: the ranks.
        mine: this rank's value, which can be pickled.
    """
    if control.rank != 0:
        packed = torch.frombuffer(bytearray(pickle.dumps(mine)), dtype=torch.uint8)
        control.send(torch.tensor([packed.numel()]), 0)
        control.send(packed, 0)
        return []
    found = []
    for peer in ranks:
        if peer == 0:
            found.append(mine)
            continue
        size = int(control.receive(torch.empty(1, dtype=torch.int64), peer))
        packed = control.receive(torch.empty(size, dtype=torch.uint8), peer)
        found.append(pickle.loads(packed.numpy().tobytes()))
    return found


def told_by_rank_0(control: Group, ranks: Sequence[int], answer: bool) -> bool:
    """Return rank 0's answer on it and on some ranks, which call this together."""
    told = torch.tensor([float(answer)])
    if control.rank != 0:
        return bool(control.receive(told, 0).item())
    for peer in ranks:
        if peer != 0:
            control.send(told, peer)
    return answer


def clock_offsets(
    control: Group, ranks: Sequence[int], now: Callable[[], float] = time.perf_counter
) -> tuple[list[float], list[float]]:
    """Compare the clocks of some ranks with that of rank 0. For rank 0 and these ranks to call, with the same ranks.

    A message of rank 0 arrives after it was sent, and so does its answer: each round bounds the offset from both sides,
    and the middle of what all rounds leave is taken (Cristian, "Probabilistic clock synchronization", Distributed
    Computing 3, 1989).

    Args:
        control: a group on CPU over the whole world.
        ranks: the ranks; rank 0 may be among them.
        now: the clock of this rank.

    Returns:
        On rank 0 the seconds by which each rank's clock is ahead of its own, and the largest error of each of these;
        elsewhere zeros.
    """
    offsets, errors = [0.0] * len(ranks), [0.0] * len(ranks)
    for place, peer in enumerate(ranks):
        if peer != 0 and control.rank == 0:
            offsets[place], errors[place] = _asked(control, peer, now)
        elif peer != 0 and control.rank == peer:
            _answer(control, now)
    return offsets, errors


def _asked(control: Group, peer: int, now: Callable[[], float]) -> tuple[float, float]:
    least, most = -math.inf, math.inf
    for _ in range(ROUNDS):
        sent = now()
        control.send(torch.zeros(2, dtype=torch.float64), peer)
        arrived, answered = control.receive(torch.empty(2, dtype=torch.float64), peer).tolist()
        received = now()
        least, most = max(least, answered - received), min(most, arrived - sent)
    # Clocks of different speed may leave nothing between the bounds.
    return (least + most) / 2, abs(most - least) / 2


def _answer(control: Group, now: Callable[[], float]) -> None:
    for _ in range(ROUNDS):
        control.receive(torch.empty(2, dtype=torch.float64), 0)
        arrived = now()
        control.send(torch.tensor([arrived, now()], dtype=torch.float64), 0)
