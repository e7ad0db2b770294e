"""Search of layouts: every legal one is predicted, and those that fit are ranked by speed. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

from trainer.config.plan import RunPlan
from trainer.config.schema import TridentConfig
from trainer.config.validate import problems
from trainer.planner.predict import Planner
from trainer.planner.prediction import Prediction
from trainer.planner.schedule_time import is_simulated
from trainer.planner.space import config_of, distance, layout_words, variants

EXACT = 16
"""Fastest layouts whose schedules are simulated event by event; the others are ranked by the closed form."""
SHOWN = 10
NEAR_ENOUGH = 1.02
"""Gain in speed from which on a change is called faster: predictions of two layouts differ by less than they err."""


@dataclass(frozen=True)
class Found:
    """A layout, and what is predicted of it."""

    plan: RunPlan
    prediction: Prediction

    @property
    def config(self) -> TridentConfig:
        """The config that the layout makes."""
        return config_of(self.plan)

    @property
    def words(self) -> tuple[str, ...]:
        """Overrides that give the layout, with replicas that fill a cluster written out."""
        layout = replace(self.config.layout, data_parallel_size=self.plan.data_parallel_size)
        return layout_words(replace(self.config, layout=layout))

    def words_after(self, config: TridentConfig | None) -> tuple[str, ...]:
        """Return the overrides that turn another layout, or any, into this one."""
        return layout_words(self.config, config)


@dataclass(frozen=True)
class Search:
    """Result of a search."""

    ranked: tuple[Found, ...]
    """The fastest layouts that fit, the fastest first."""
    pareto: tuple[Found, ...]
    """Layouts that no other one beats in both speed and memory, the fastest first."""
    considered: int
    """Legal layouts that were predicted."""
    fitting: int
    """Number of layouts that fit with the margin."""
    least: Found | None
    """The layout that needs least memory, whether it fits or not; None if there is no legal one."""


@dataclass(frozen=True)
class _Candidate:
    plan: RunPlan
    peak: int
    fits: bool
    tokens_per_second: float

    @property
    def config(self) -> TridentConfig:
        return config_of(self.plan)


def search(planner: Planner, base: RunPlan, world: int, held: Collection[str] = (), shown: int = SHOWN) -> Search:
    """Rank all legal layouts of a model and batch on `world` devices.

    Args:
        planner: predicts.
        base: plan of the run; its model, batch and precision stay.
        world: devices.
        held: keys that stay as they are in `base`.
        shown: number of layouts that are returned.
    """
    candidates = list(_candidates(planner, variants(base, world, held)))
    fitting = sorted(
        (one for one in candidates if one.fits),
        key=lambda one: (-one.tokens_per_second, one.peak, layout_words(one.config)),
    )
    best = islice((one.plan for one in fitting if is_legal(one.plan)), max(EXACT, shown))
    ranked = sorted(
        (_exact(planner, plan) for plan in best),
        key=lambda one: (-one.prediction.tokens_per_second, one.prediction.peak, one.words),
    )
    least = min(candidates, key=lambda one: (one.peak, -one.tokens_per_second), default=None)
    return Search(
        ranked=tuple(ranked[:shown]),
        pareto=tuple(
            Found(one.plan, planner.predict(one.plan, exact=False)) for one in _pareto(fitting) if is_legal(one.plan)
        ),
        considered=len(candidates),
        fitting=len(fitting),
        least=None if least is None else _exact(planner, least.plan),
    )


def nearest(
    planner: Planner, base: RunPlan, worlds: Sequence[int], held: Collection[str] = (), count: int = 3
) -> tuple[Found, ...]:
    """Return the legal layouts that fit and change least; of those that change as much, the fastest first.

    Args:
        planner: predicts.
        base: plan of the run, which may break rules of its layout.
        worlds: numbers of devices; a later one counts only if no earlier one has a layout that fits.
        held: keys that stay as they are in `base`.
        count: number of layouts that are returned.
    """
    for world in worlds:
        found = list(islice(_by_distance(planner, base, world, held), count))
        if found:
            return tuple(found)
    return ()


def _by_distance(planner: Planner, base: RunPlan, world: int, held: Collection[str]) -> Iterator[Found]:
    """Yield legal layouts that fit, those that change least first. Only as many as are asked for are predicted."""
    plans = sorted(variants(base, world, held), key=lambda one: distance(one.config, base.config))
    for _, group in groupby(plans, key=lambda one: distance(one.config, base.config)):
        fitting = [one for one in _candidates(planner, group) if one.fits and is_legal(one.plan)]
        for one in sorted(fitting, key=lambda one: (-one.tokens_per_second, one.peak)):
            yield _exact(planner, one.plan)


def faster(planner: Planner, base: RunPlan, than: Prediction, most: float = 2.0) -> Found | None:
    """Return the fastest layout of few changes that fits on the same devices, if it is faster; otherwise None.

    Args:
        planner: predicts.
        base: plan of the run.
        than: its prediction.
        most: largest distance of the changes; see `distance`.
    """
    plans = (one for one in variants(base, base.world_size) if 0 < distance(one.config, base.config) <= most)
    near = [one for one in _candidates(planner, plans) if one.fits]
    near.sort(key=lambda one: (-one.tokens_per_second, distance(one.config, base.config)))
    for one in near[:SHOWN]:
        if one.tokens_per_second < NEAR_ENOUGH * than.tokens_per_second:
            return None
        found = _exact(planner, one.plan)
        if found.prediction.tokens_per_second >= NEAR_ENOUGH * than.tokens_per_second and is_legal(one.plan):
            return found
    return None


def is_legal(plan: RunPlan) -> bool:
    """Return whether a layout breaks no rule of the config."""
    config = config_of(plan)
    layout = replace(config.layout, data_parallel_size=plan.data_parallel_size)
    return not problems(replace(config, layout=layout))


def _candidates(planner: Planner, plans: Iterable[RunPlan]) -> Iterator[_Candidate]:
    margin = planner.profile.memory_error.value
    for plan in plans:
        stages = planner.fullest(plan)
        fits = planner.fits(plan, stages, margin)
        # The time of what does not fit is asked by nobody.
        speed = plan.tokens_per_step / planner.timed(plan, exact=False).time.total if fits else 0.0
        yield _Candidate(plan, max(stage.peak for stage in stages), fits, speed)


def _exact(planner: Planner, plan: RunPlan) -> Found:
    return Found(plan, planner.predict(plan, exact=is_simulated(plan)))


def _pareto(fitting: Sequence[_Candidate]) -> list[_Candidate]:
    """Return those that need less memory than every faster one."""
    front: list[_Candidate] = []
    for one in fitting:
        if not front or one.peak < front[-1].peak:
            front.append(one)
    return front
