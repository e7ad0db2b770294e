"""The samples of a planned stream: which source, and which sample of it, stands at a place. No torch.

Each source is read in epochs of its own, every one in another order; the blend says which source is read next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from trainer.data.blending import Blending
from trainer.data.picks import Order, Picks
from trainer.data.sampler import SampleOrder
from trainer.data.stream_plan import Segment, SourceShare, StreamPlan
from trainer.errors import DataError

Indices = npt.NDArray[np.int64]
Continues = Callable[[SourceShare, SourceShare], bool]
"""(source of a plan, source of its continuation) -> whether the second begins with the samples of the first."""


class StreamOrder:
    """The samples of a stream at any place.

    Args:
        plan: says everything.
    """

    def __init__(self, plan: StreamPlan) -> None:
        self._firsts = np.array([segment.first for segment in plan.segments], dtype=np.int64)
        self._segments: list[_SegmentOrder] = []
        for segment in plan.segments:
            self._segments.append(_SegmentOrder(segment, self._segments[-1] if self._segments else None))

    def picks(self, first: int, count: int) -> Picks:
        """Return source and sample at places `first` to `first + count - 1`; a source's index is that in its segment.

        Raises:
            ValueError: `first` is negative.
        """
        if first < 0:
            raise ValueError(f"places are counted from 0, but first is {first}")
        places = np.arange(first, first + count, dtype=np.int64)
        sources, samples = np.empty_like(places), np.empty_like(places)
        of_segment = self.segments(first, count)
        for index in np.unique(of_segment):
            here = of_segment == index
            sources[here], samples[here] = self._segments[index].at(places[here])
        return Picks(sources, samples)

    def segments(self, first: int, count: int) -> Indices:
        """Return the segment of each place from `first`, [count]."""
        return np.searchsorted(self._firsts, np.arange(first, first + count), side="right") - 1

    def counts(self, segment: int, place: int) -> dict[str, int]:
        """Return how many samples of each source of a segment stand in it before a place, by name."""
        return self._segments[segment].counts(place)


def named_order(plan: StreamPlan, names: Sequence[str]) -> Order:
    """Return the order of a stream, in which a source's index is that of its name in `names`.

    Raises:
        ValueError: a source of the last segment is not among them.
    """
    order = StreamOrder(plan)
    here = {name: index for index, name in enumerate(names)}
    indices = [np.array([here.get(one.name, -1) for one in segment.sources]) for segment in plan.segments]
    if (indices[-1] < 0).any():
        raise ValueError(f"the stream must read sources of {names}, but reads others")

    def picks(first: int, count: int) -> Picks:
        found = order.picks(first, count)
        segments = order.segments(first, count)
        sources = np.empty_like(found.sources)
        for segment in np.unique(segments):
            of_it = segments == segment
            sources[of_it] = indices[segment][found.sources[of_it]]
        if (sources < 0).any():
            raise DataError("a source that the run read before its data were changed must still be there, but is not")
        return Picks(sources, found.samples)

    return picks


class _SegmentOrder:
    """The samples of one segment. Places are those of the stream."""

    def __init__(self, segment: Segment, before: _SegmentOrder | None) -> None:
        self.segment = segment
        self._before = before
        self._blending = Blending(segment.first, segment.phases)
        self._reached = {} if before is None else before.counts(segment.first)
        # The only source of a run that nothing was changed in has the order of earlier versions.
        alone = before is None and len(segment.sources) == 1
        seeds = [str(segment.seed) if alone else f"{segment.seed}:{segment.first}:{s.name}" for s in segment.sources]
        self._whole = [SampleOrder(s.samples, seed) for s, seed in zip(segment.sources, seeds, strict=True)]
        self._rest = [
            SampleOrder(s.rest, f"{seed}:rest") if s.rest else None
            for s, seed in zip(segment.sources, seeds, strict=True)
        ]

    def at(self, places: Indices) -> tuple[Indices, Indices]:
        """Return source and sample at each place [n]."""
        sources, ordinals = self._blending.at(places - self.segment.first)
        samples = np.empty_like(places)
        for source in np.unique(sources):
            here = sources == source
            samples[here] = self.samples(int(source), ordinals[here])
        return sources, samples

    def counts(self, place: int) -> dict[str, int]:
        """Return how many samples of each source stand in the segment before a place, by name."""
        found = self._blending.counts(max(0, place - self.segment.first))
        return {source.name: int(count) for source, count in zip(self.segment.sources, found, strict=True)}

    def samples(self, source: int, ordinals: Indices) -> Indices:
        """Return the samples of a source that are read as its n-th, counted from 0 since the segment began, [n]."""
        share, rest = self.segment.sources[source], self._rest[source]
        if rest is None:
            return self._whole[source].at(ordinals)
        samples = np.empty_like(ordinals)
        later = ordinals >= share.rest
        samples[later] = self._whole[source].at(ordinals[later] - share.rest)
        drawn = rest.permuted(ordinals[~later], 0)
        # Behind the samples that were left stand the appended ones, which are the source's last.
        first = drawn + (share.samples - share.rest)
        kept = drawn < share.kept
        if kept.any():
            assert self._before is not None, "a first segment has nothing left from before"
            name = share.kept_of or share.name
            index = [one.name for one in self._before.segment.sources].index(name)
            first[kept] = self._before.samples(index, self._reached[name] + drawn[kept])
        samples[~later] = first
        return samples


def continued(plan: StreamPlan, wanted: Segment, place: int, continues: Continues) -> StreamPlan:
    """Return a plan that goes on by other sources or weights from a place on.

    A source that was read before, or has the samples of one as its first ones, goes on in the epoch under way: what is
    left of it, mixed with what was appended. Any other one begins a whole epoch.

    Args:
        plan: the stream so far.
        wanted: the segment that a run which begins now with these sources would have.
        place: first place that is read anew; nothing behind it has been.
        continues: compares tokens.
    """
    if place <= plan.segments[0].first:
        return StreamPlan(plan.sample_length, (wanted,))
    kept = StreamPlan(plan.sample_length, tuple(segment for segment in plan.segments if segment.first < place))
    last, counts = kept.segments[-1], StreamOrder(kept).counts(-1, place)
    sources = tuple(_continued(source, last, counts, continues) for source in wanted.sources)
    now = [phase for phase in wanted.phases if phase.first <= place][-1]
    later = tuple(phase for phase in wanted.phases if phase.first > place)
    segment = replace(wanted, first=place, sources=sources, phases=(replace(now, first=place), *later))
    return kept.with_segment(segment)


def _continued(source: SourceShare, last: Segment, counts: Mapping[str, int], continues: Continues) -> SourceShare:
    """Return a source of a new segment, given how many samples of each source the last one has had."""
    # Of several with these tokens, that of the same name.
    by_name = sorted(last.sources, key=lambda one: one.name != source.name)
    before = next((one for one in by_name if one.samples <= source.samples and continues(one, source)), None)
    if before is None:
        return source
    had = counts[before.name]
    if had == 0 and before.rest == 0:
        return source
    left = before.rest - had if had < before.rest else -(had - before.rest) % before.samples
    rest = left + source.samples - before.samples
    return replace(source, rest=rest, kept=left, kept_of=before.name if left else "")
