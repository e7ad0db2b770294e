"""The plan of a stream of samples, as a value: a checkpoint holds it, and every rank reads by it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.errors import CheckpointError


@dataclass(frozen=True)
class SourceShare:
    """A source in a segment."""

    name: str
    content: str
    """Hash of its tokens."""
    samples: int
    """Training samples that are used of it."""
    rest: int = 0
    """Samples that the first epoch of this segment has: those which the epoch under way had left, and appended ones.
    0: the segment begins with a whole epoch."""
    kept: int = 0
    """Number of the samples of `rest` that were left, drawn as the segment before would have drawn them."""
    kept_of: str = ""
    """Name of the source of the segment before that they were left of; empty if nothing was left."""


@dataclass(frozen=True)
class Phase:
    """Weights that hold from a place of the stream on."""

    first: int
    parts: tuple[int, ...]
    """Whole parts, one a source; a source's share is its part of their sum."""


@dataclass(frozen=True)
class Segment:
    """The plan of the stream from a place on, until the next segment's."""

    first: int
    seed: int
    sources: tuple[SourceShare, ...]
    phases: tuple[Phase, ...]
    """The phases in order; the first begins where the segment does."""


@dataclass(frozen=True)
class StreamPlan:
    """The sample at each place, as a function of this value alone. Places are counted in samples."""

    sample_length: int
    segments: tuple[Segment, ...]

    def segment_at(self, place: int) -> int:
        """Return the index of the segment that a place belongs to."""
        return max(index for index, segment in enumerate(self.segments) if segment.first <= place)

    def with_segment(self, segment: Segment) -> StreamPlan:
        """Return the plan that goes on by another segment, which begins behind the last one's first place."""
        if segment.first <= self.segments[-1].first:
            raise ValueError(f"a segment must begin behind {self.segments[-1].first}, but begins at {segment.first}")
        return StreamPlan(self.sample_length, (*self.segments, segment))

    def begun_between(self, start: int, end: int) -> list[dict[str, Any]]:
        """Return, as plain values, the segments but the first one that begin in a stretch of the stream, in tokens."""
        firsts = range(-(-start // self.sample_length), -(-end // self.sample_length))
        return [asdict(segment) for segment in self.segments[1:] if segment.first in firsts]

    def to_list(self) -> list[dict[str, Any]]:
        """Return the segments as plain values."""
        return [asdict(segment) for segment in self.segments]

    @classmethod
    def from_list(cls, sample_length: int, values: Sequence[Mapping[str, Any]]) -> StreamPlan:
        """Return the plan of plain values.

        Raises:
            CheckpointError: they are not those that `to_list` returned.
        """
        try:
            segments = tuple(
                Segment(
                    **{
                        **held,
                        "sources": tuple(SourceShare(**one) for one in held["sources"]),
                        "phases": tuple(Phase(one["first"], tuple(one["parts"])) for one in held["phases"]),
                    }
                )
                for held in values
            )
            if not segments:
                raise ValueError("there must be a segment")
            for segment in segments:
                _check(segment)
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's segments must be a plan of its data, but are not: {error}"
            ) from error
        return cls(sample_length, segments)


def _check(segment: Segment) -> None:
    """Raise a ValueError if a segment that was read cannot be drawn by."""
    sources, phases = segment.sources, segment.phases
    if not sources or not phases:
        raise ValueError("a segment must have sources and phases")
    texts = [text for source in sources for text in (source.name, source.content, source.kept_of)]
    counts = [count for source in sources for count in (source.samples, source.rest, source.kept)]
    counts += [segment.first, *(phase.first for phase in phases), *(part for phase in phases for part in phase.parts)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("names must be texts")
    if not all(type(count) is int and count >= 0 for count in counts) or type(segment.seed) is not int:
        raise ValueError("counts must be whole numbers from 0 on")
    if not all(len(phase.parts) == len(sources) and any(phase.parts) for phase in phases):
        raise ValueError("a phase must have a weight for each source, and one that is not 0")
