from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampler import SampleOrder
from trainer.data.stream_order import StreamOrder, continued
from trainer.data.stream_plan import Phase, Segment, SourceShare, StreamPlan


def alone(samples: int, seed: int = 7, content: str = "c") -> Segment:
    return Segment(0, seed, (SourceShare("data", content, samples),), (Phase(0, (1,)),))


def blend(*sources: tuple[str, int, int], seed: int = 7, later: tuple[Phase, ...] = ()) -> Segment:
    shares = tuple(SourceShare(name, name, samples) for name, samples, _ in sources)
    return Segment(0, seed, shares, (Phase(0, tuple(part for *_, part in sources)), *later))


def is_same(before: SourceShare, after: SourceShare) -> bool:
    return after.content.startswith(before.content)


def drawn(plan: StreamPlan, first: int, end: int) -> list[tuple[str, int]]:
    """Return name and sample of a stretch of a stream within one segment."""
    picks = StreamOrder(plan).picks(first, end - first)
    names = [source.name for source in plan.segments[plan.segment_at(first)].sources]
    return [(names[source], int(sample)) for source, sample in zip(*picks, strict=True)]


def test_one_source_is_read_as_by_earlier_versions() -> None:
    order = StreamOrder(StreamPlan(8, (alone(1000, seed=1234),)))
    sources, samples = order.picks(1990, 30)
    assert not sources.any()
    assert samples.tolist() == SampleOrder(1000, 1234).samples(1990, 30).tolist()
    with pytest.raises(ValueError, match="counted from 0"):
        order.picks(-1, 2)


def test_each_source_is_read_in_whole_epochs_of_another_order() -> None:
    plan = StreamPlan(8, (blend(("web", 40, 4), ("code", 10, 1), ("math", 10, 2)),))
    read = drawn(plan, 0, 700)
    for name, samples in (("web", 40), ("code", 10), ("math", 10)):
        mine = [sample for source, sample in read if source == name]
        epochs = [mine[first : first + samples] for first in range(0, len(mine), samples)]
        assert all(sorted(epoch) == list(range(samples)) for epoch in epochs[:-1])
        assert epochs[0] != epochs[1]
    code, math = ([sample for source, sample in read if source == name] for name in ("code", "math"))
    assert code[:10] != math[:10], "sources of one size have orders of their own"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), min_size=1, max_size=4).filter(
        lambda sources: any(part for _, part in sources)
    ),
    st.lists(st.integers(0, 200), min_size=1, max_size=8),
)
def test_any_stretch_is_that_of_the_whole(sources: list[tuple[int, int]], stops: list[int]) -> None:
    """Whoever reads it, from wherever: a restart, another rank, another batch size."""
    plan = StreamPlan(8, (blend(*((f"s{i}", samples, part) for i, (samples, part) in enumerate(sources))),))
    whole = drawn(plan, 0, 200)
    edges = sorted({0, *stops, 200})
    parts = [drawn(plan, first, end) for first, end in pairwise(edges)]
    assert [pick for part in parts for pick in part] == whole


CHANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=5)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 40), CHANGES, st.integers(1, 99))
def test_appended_data_complete_the_epoch_under_way(samples: int, changes: list[tuple[int, int]], seed: int) -> None:
    """Each sample that is due is read once before any other is; appended ones are due at once."""
    plan, place, content = StreamPlan(8, (alone(samples, seed),)), 0, "c"
    due: set[int] = set()
    for steps, appended in [*changes, (100, 0)]:
        for _, sample in drawn(plan, place, place + steps):
            due = due or set(range(samples))
            due.remove(sample)
        place += steps
        if place:
            due |= set(range(samples, samples + appended))
        samples, content = samples + appended, content + "+"
        plan = continued(plan, alone(samples, seed, content), place, is_same)
        assert plan.segments[-1].sources[0].rest in (0, len(due))


WEIGHTS = st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), WEIGHTS), min_size=1, max_size=6))
def test_other_weights_lose_and_repeat_nothing(changes: list[tuple[int, list[int]]]) -> None:
    """However often they change: every source is read in whole epochs."""
    sizes = {"a": 9, "b": 14, "c": 23}
    plan, place = StreamPlan(8, (blend(*((name, size, 1) for name, size in sizes.items())),)), 0
    read: dict[str, list[int]] = {name: [] for name in sizes}
    for steps, parts in [*changes, (60, [1, 1, 1])]:
        for name, sample in drawn(plan, place, place + steps):
            read[name].append(sample)
        place += steps
        wanted = blend(*((name, size, part) for (name, size), part in zip(sizes.items(), parts, strict=True)))
        plan = continued(plan, wanted, place, is_same)
    for name, size in sizes.items():
        for first in range(0, len(read[name]) - size + 1, size):
            assert sorted(read[name][first : first + size]) == list(range(size)), name


def test_a_plan_goes_on_from_the_place_that_was_reached() -> None:
    plan = StreamPlan(8, (alone(10),))
    assert continued(plan, alone(12, content="c+"), 0, is_same).segments == (alone(12, content="c+"),)
    grown = continued(plan, alone(12, content="c+"), 4, is_same)
    assert grown.segments[0] == plan.segments[0]
    assert grown.segments[1].sources[0] == SourceShare("data", "c+", 12, rest=8, kept=6, kept_of="data")
    # Changed once more before anything was read: the segment that nothing was read of is gone.
    again = continued(grown, alone(13, content="c++"), 4, is_same)
    assert again.segments[1].sources[0] == SourceShare("data", "c++", 13, rest=9, kept=6, kept_of="data")
    assert len(again.segments) == 2
    other = continued(plan, alone(5, content="d"), 4, is_same)
    assert other.segments[1].sources[0] == SourceShare("data", "d", 5)
    assert np.unique(StreamOrder(other).picks(4, 5).samples).tolist() == list(range(5))
    # Fewer samples than before are no continuation.
    assert continued(plan, alone(9, content="c+"), 4, is_same).segments[1].sources[0].rest == 0


def test_a_schedule_of_weights_goes_on_where_it_was() -> None:
    wanted = blend(("a", 10, 1), ("b", 10, 1), later=(Phase(20, (1, 3)), Phase(40, (0, 1))))
    plan = StreamPlan(8, (blend(("a", 10, 5), ("b", 10, 1)),))
    assert continued(plan, wanted, 30, is_same).segments[-1].phases == (Phase(30, (1, 3)), Phase(40, (0, 1)))
    assert continued(plan, wanted, 40, is_same).segments[-1].phases == (Phase(40, (0, 1)),)


def test_a_source_that_gets_a_name_goes_on() -> None:
    plan = StreamPlan(8, (alone(10),))
    wanted = blend(("c", 10, 1), ("other", 4, 1))
    first, other = continued(plan, wanted, 7, is_same).segments[-1].sources
    assert (first.rest, first.kept, first.kept_of) == (3, 3, "data")
    assert (other.rest, other.kept) == (0, 0)
