"""Times of kernels alone, on the device of this rank: matrix multiplication, attention, sums of arrays, messages.

Ranks that measure at the same time share the memory of their machine, as ranks that train do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from trainer.calibration.measurements import AttentionTime, GemmTime, MessageTime, StreamTime, lower_quartile
from trainer.config.plan import RunPlan
from trainer.kernels.attention_backend import DTYPES
from trainer.kernels.gemm import Products, multiply_by_onednn, products_of
from trainer.kernels.processor import multiplies_by_onednn
from trainer.topology.groups import Group

_FEWEST, _MOST = 3, 200
_SHORTEST_S = 2e-3
"""Seconds that one reading of the clock covers at least: launches and other programs weigh less in it."""
_CPU_GEMMS = (
    (128, 256, 1024),
    (512, 256, 768),
    (2048, 256, 1024),
    (512, 512, 2048),
    (1024, 768, 768),
    (256, 1024, 4096),
)
_CUDA_GEMMS = ((512, 1024, 4096), (2048, 1024, 1024), (4096, 2048, 8192), (8192, 4096, 4096), (16384, 4096, 16384))
"""Rows, depth and columns of a layer's products: tokens, width, and another width."""
_CPU_ATTENTION = ((2, 4, 128, 64), (2, 4, 256, 64), (1, 8, 512, 64))
_CUDA_ATTENTION = ((8, 16, 1024, 64), (4, 16, 2048, 128), (1, 32, 8192, 128))
"""Sequences, heads, length, width of a head."""
_CPU_STREAMS = (3 << 20, 12 << 20, 96 << 20)
_CUDA_STREAMS = (48 << 20, 768 << 20)
MESSAGE_BYTES = (1 << 12, 1 << 15, 1 << 17, 1 << 19, 1 << 21, 1 << 23, 1 << 25, 1 << 27)


class Clock:
    """Times short work: repeats until enough of it is timed, and returns the lower quartile.

    Args:
        device: of the work.
        budget_s: seconds of repeats that are enough.
    """

    def __init__(self, device: torch.device, budget_s: float) -> None:
        self._device = device
        self._budget_s = budget_s

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of one call. Local; every rank of a collective must call it with `times`."""
        work()
        once = self._timed(work, 1)
        return self.seconds_of(work, max(1, int(_SHORTEST_S / max(once, 1e-9))), self.repeats(once))

    def repeats(self, once_s: float) -> int:
        """Return how many readings the budget allows of work that takes so long."""
        return max(_FEWEST, min(_MOST, int(self._budget_s / max(once_s, _SHORTEST_S))))

    def seconds_of(self, work: Callable[[], object], calls: int, readings: int) -> float:
        """Return the seconds of one call, by so many readings of so many calls each."""
        return lower_quartile([self._timed(work, calls) for _ in range(readings)])

    def _timed(self, work: Callable[[], object], calls: int) -> float:
        self._wait()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        self._wait()
        return (time.perf_counter() - started) / calls


def gemm_times(plan: RunPlan, device: torch.device, clock: Clock) -> Iterator[GemmTime]:
    """Yield the times of forward and both backward multiplications of layers, by the library that `plan` takes."""
    dtype = DTYPES[plan.dtype]
    for rows, depth, columns in _CPU_GEMMS if device.type == "cpu" else _CUDA_GEMMS:
        weight = torch.nn.Parameter(torch.randn(columns, depth, dtype=dtype, device=device) / depth**0.5)
        if multiplies_by_onednn(plan, device):
            multiply_by_onednn([weight])
        products: Products = products_of(weight)
        inputs, grad = (torch.randn(rows, size, dtype=dtype, device=device) for size in (depth, columns))
        with torch.no_grad():
            works: Sequence[tuple[tuple[int, int, int], Callable[[], object]]] = (
                ((rows, depth, columns), partial(products.forward, inputs, weight)),
                ((rows, columns, depth), partial(products.input_gradient, grad, weight)),
                ((columns, rows, depth), partial(products.weight_gradient, grad, inputs)),
            )
            for (m, k, n), work in works:
                yield GemmTime(plan.dtype.value, m, k, n, weight.element_size(), clock.seconds(work))


def attention_times(plan: RunPlan, device: torch.device, clock: Clock) -> Iterator[AttentionTime]:
    """Yield the times of causal attention, forward and backward together."""
    for sequences, heads, length, width in _CPU_ATTENTION if device.type == "cpu" else _CUDA_ATTENTION:
        shape = (sequences, heads, length, width)
        query, key, value, grad = (torch.randn(shape, dtype=DTYPES[plan.dtype], device=device) for _ in range(4))
        yield AttentionTime(
            plan.dtype.value, sequences, heads, length, width, clock.seconds(partial(_attend, query, key, value, grad))
        )


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grad: torch.Tensor) -> None:
    inputs = [one.requires_grad_() for one in (query, key, value)]
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.autograd.grad(out, inputs, grad)


def stream_times(device: torch.device, clock: Clock) -> Iterator[StreamTime]:
    """Yield the times of sums of fp32 arrays that fit into caches, and of some that do not."""
    for size in _CPU_STREAMS if device.type == "cpu" else _CUDA_STREAMS:
        left, right, out = (torch.zeros(size // 12, device=device) for _ in range(3))
        yield StreamTime(size // 12 * 12, clock.seconds(partial(torch.add, left, right, out=out)))


def copy_times(device: torch.device, clock: Clock) -> Iterator[MessageTime]:
    """Yield the times of copies between the device and pinned memory of the host; none for ranks on a CPU."""
    if device.type == "cpu":
        return
    for size in MESSAGE_BYTES[3:]:
        here = torch.zeros(size, dtype=torch.uint8, device=device)
        there = torch.zeros(size, dtype=torch.uint8).pin_memory()
        yield MessageTime("to_device", 1, size, clock.seconds(partial(here.copy_, there, non_blocking=True)))
        yield MessageTime("to_host", 1, size, clock.seconds(partial(there.copy_, here, non_blocking=True)))


def message_times(group: Group, device: torch.device, clock: Clock) -> Iterator[MessageTime]:
    """Yield the times of a group's collectives, and of messages from its first rank to its second and back.

    Collective over the group; every rank yields as many.
    """
    for size in MESSAGE_BYTES if group.size > 1 else ():
        count = size // 4 // group.size * group.size
        whole = torch.zeros(count, device=device)
        part = torch.zeros(count // group.size, device=device)
        works: dict[str, Callable[[], object]] = {
            "all_reduce": partial(group.all_reduce, whole),
            "all_gather": partial(group.all_gather, part),
            "reduce_scatter": partial(group.reduce_scatter, whole),
            "send": partial(_there_and_back, group, whole),
        }
        for kind, work in works.items():
            seconds = _collective_seconds(group, device, clock, work)
            yield MessageTime(kind, group.size, 4 * count, seconds / 2 if kind == "send" else seconds)


def _there_and_back(group: Group, tensor: torch.Tensor) -> None:
    if group.rank == 0:
        group.send(tensor, 1)
        group.receive(tensor, 1)
    elif group.rank == 1:
        group.receive(tensor, 0)
        group.send(tensor, 0)


def _collective_seconds(group: Group, device: torch.device, clock: Clock, work: Callable[[], object]) -> float:
    """Return the time of one call; all ranks agree on how often it is repeated, and on the slowest one's time."""
    clock.seconds_of(work, 1, 2)
    once = torch.tensor([clock.seconds_of(work, 1, 1)], dtype=torch.float64, device=device)
    longest = float(group.all_reduce(once, "max"))
    calls = max(1, int(_SHORTEST_S / max(longest, 1e-9)))
    found = torch.tensor([clock.seconds_of(work, calls, clock.repeats(longest * calls))], dtype=torch.float64)
    return float(group.all_reduce(found.to(device), "max"))
