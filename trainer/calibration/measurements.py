"""The values that a calibration measures, as ranks hand them to the process that fits them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GemmTime:
    """A matrix multiplication of `[rows, depth]` and `[depth, columns]`, as layers do it."""

    dtype: str
    rows: int
    depth: int
    columns: int
    width: int
    """Bytes of an element."""
    seconds: float

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return 2.0 * self.rows * self.depth * self.columns

    @property
    def bytes(self) -> float:
        """Bytes of the operands and the result, each once."""
        return float(self.width * (self.rows * self.depth + self.depth * self.columns + self.rows * self.columns))


@dataclass(frozen=True)
class AttentionTime:
    """Causal attention, forward and backward, of `sequences` sequences of `length` tokens in `heads` heads."""

    dtype: str
    sequences: int
    heads: int
    length: int
    head_dim: int
    seconds: float

    @property
    def forward_flops(self) -> float:
        """Operations of scores and of their product with the values, counted as if nothing were masked."""
        return 4.0 * self.sequences * self.heads * self.length**2 * self.head_dim


@dataclass(frozen=True)
class StreamTime:
    """A sum of two arrays into a third one, whose bytes together are `bytes`."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class MessageTime:
    """A collective of a group, or a message between two ranks of it."""

    kind: str
    """all_reduce | all_gather | reduce_scatter | send | to_device | to_host."""
    ranks: int
    bytes: int
    """Bytes of the whole tensor: what is reduced, what is gathered, what is scattered, what is sent."""
    seconds: float

    @property
    def wire_bytes(self) -> float:
        """Bytes that a rank sends, as in a ring."""
        share = (self.ranks - 1) / self.ranks if self.ranks > 1 else 1.0
        shares = {"all_reduce": 2 * share, "all_gather": share, "reduce_scatter": share}
        return self.bytes * shares.get(self.kind, 1.0)


@dataclass(frozen=True)
class StepSeconds:
    """Optimizer steps of a small model in the real engine, one time a round."""

    trial: str
    seconds: tuple[float, ...]

    @property
    def typical(self) -> float:
        """The lower quartile: other programs can only make a step slower."""
        return lower_quartile(self.seconds)


@dataclass(frozen=True)
class Measurements:
    """Everything that one group of ranks measured, all of them busy at the same time."""

    ranks: int
    threads: int
    """CPU threads of a rank."""
    gemms: tuple[GemmTime, ...] = ()
    attention: tuple[AttentionTime, ...] = ()
    streams: tuple[StreamTime, ...] = ()
    messages: tuple[MessageTime, ...] = ()
    steps: tuple[StepSeconds, ...] = ()
    failed: Mapping[str, str] | None = None
    """Trials that could not be run, with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as values of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurements:
        """Return what `to_dict` wrote."""
        return cls(
            ranks=values["ranks"],
            threads=values["threads"],
            gemms=tuple(GemmTime(**one) for one in values["gemms"]),
            attention=tuple(AttentionTime(**one) for one in values["attention"]),
            streams=tuple(StreamTime(**one) for one in values["streams"]),
            messages=tuple(MessageTime(**one) for one in values["messages"]),
            steps=tuple(StepSeconds(one["trial"], tuple(one["seconds"])) for one in values["steps"]),
            failed=values["failed"],
        )


def joined(parts: Sequence[Measurements]) -> Measurements:
    """Return what one group of ranks measured in several processes; a trial that failed once has no time.

    Args:
        parts: at least one, all of as many ranks.
    """
    failed = {name: reason for part in parts for name, reason in (part.failed or {}).items()}
    seconds: dict[str, tuple[float, ...]] = {}
    for step in (step for part in parts for step in part.steps if step.trial not in failed):
        seconds[step.trial] = (*seconds.get(step.trial, ()), *step.seconds)
    return Measurements(
        ranks=parts[0].ranks,
        threads=parts[0].threads,
        gemms=tuple(one for part in parts for one in part.gemms),
        attention=tuple(one for part in parts for one in part.attention),
        streams=tuple(one for part in parts for one in part.streams),
        messages=tuple(one for part in parts for one in part.messages),
        steps=tuple(StepSeconds(name, times) for name, times in seconds.items()),
        failed=failed,
    )


def lower_quartile(values: Sequence[float]) -> float:
    """Return the value that a quarter of the values are below."""
    return sorted(values)[(len(values) - 1) // 4]
