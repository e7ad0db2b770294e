"""Common parts of the rules of `validate`: the case that they judge, and helpers that name legal values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trainer.config.keys import joined
from trainer.config.models import Sizes, sizes
from trainer.config.plan import data_parallel_size
from trainer.config.schema import DeviceKind, TridentConfig

MAX_LISTED = 10
"""Largest number of legal values in a message: those nearest to the value that was found."""


@dataclass(frozen=True)
class Case:
    """The case that rules judge: a config, and the machine and world it is to run on."""

    config: TridentConfig
    world_size: int | None
    """Ranks that a launcher started; None when this process will start them."""
    device_count: int | None
    """CUDA devices of this machine; None when nobody looked."""

    @property
    def dp(self) -> int:
        """Data-parallel size, as configured or as the world leaves it."""
        return data_parallel_size(self.config, self.world_size)

    @property
    def steps(self) -> float:
        """Steps of the run; infinite as long as `train.epochs` says it: rules are asked again when they are known."""
        return self.config.train.steps if self.config.train.epochs is None else math.inf

    @property
    def sizes(self) -> Sizes:
        """Values that the nulls of `model.*` stand for."""
        return sizes(self.config.model)

    @property
    def on_cpu(self) -> bool:
        """True if it is known that ranks compute on the CPU."""
        device = self.config.runtime.device
        return device is DeviceKind.cpu or (device is DeviceKind.auto and self.device_count == 0)

    @property
    def on_gpu(self) -> bool:
        """True if it is known that ranks compute on GPUs."""
        device = self.config.runtime.device
        return device is DeviceKind.cuda or (device is DeviceKind.auto and (self.device_count or 0) > 0)


Rule = Callable[[Case], Iterator[str]]
"""A rule yields one line for each thing that is wrong. It never raises, whatever the config."""


def divisors(number: int) -> list[int]:
    """Return all divisors of a positive number, ascending."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def use(values: list[int], near: int) -> str:
    """Return `use 1, 2 or 4`, with the values nearest to `near` where there are many."""
    nearest = sorted(values, key=lambda value: (abs(value - near), value))[:MAX_LISTED]
    return f"use {joined(sorted(nearest))}"


def neighbours(number: int, unit: int) -> list[int]:
    """Return the positive multiples of `unit` just below and above `number`."""
    below = number // unit * unit
    return [value for value in (below, below + unit) if value > 0]


def legal_tensor_parallel_sizes(case: Case) -> list[int]:
    """Return the sizes that shard query heads, key/value heads and the MLP (and, if sharded, the sequence) evenly."""
    model = case.config.model
    common = math.gcd(model.num_attention_heads, case.sizes.ffn_hidden_size)
    if case.config.layout.sequence_parallel:
        common = math.gcd(common, model.seq_length)
    groups = case.sizes.num_key_value_heads
    return [size for size in divisors(common) if groups % size == 0 or size % groups == 0]
