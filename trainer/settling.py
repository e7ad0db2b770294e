"""The config that a run starts with: a layout is found if words leave it open; what cannot run is refused. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.config.compose import Composition
from trainer.config.layout_words import LAYOUT
from trainer.config.plan import make_plan
from trainer.config.schema import LayoutConfig, Software, TridentConfig, ZeroConfig
from trainer.config.validate import problems, validate
from trainer.dry_run import plan_without_data, vocabulary
from trainer.errors import ConfigError
from trainer.hardware import Here
from trainer.log import say
from trainer.planner.cluster import cluster_of, planned_ranks
from trainer.planner.foresee import Foresight
from trainer.planner.layout_search import Found, is_legal, nearest, search
from trainer.planner.offers import COUNT, change
from trainer.planner.predict import Planner
from trainer.planner.refusal import explained
from trainer.planner.space import FREE


@dataclass(frozen=True)
class Settled:
    """The run that a process starts."""

    config: TridentConfig
    """Breaks no rule, and names its layout."""
    foresight: Foresight
    """Knows what was predicted of it on the way."""


def settle(composed: Composition, world_size: int | None, device_count: int | None) -> Settled:
    """Return the config that a run starts with, and what is predicted of it.

    Where the vocabulary is known only when the data are prepared, `Beginning` predicts the run, and refuses it then.

    Args:
        composed: the config as composed, `layout.data_parallel_size` filled.
        world_size: ranks that a launcher started, or None when this process will start them.
        device_count: CUDA devices of this machine.

    Raises:
        ConfigError: every broken rule with its reason; or the run does not fit; and the nearest layouts that work; or
            it is the plan of other software.
    """
    config, foresight = composed.config, Foresight()
    if config.cluster.engine is not Software.trident:
        raise ConfigError(
            f"cluster.engine={config.cluster.engine.value} is for plans of published runs of other software, and must "
            "be trident in a run; leave it out"
        )
    if config.layout.auto or problems(config, world_size, device_count):
        config, lines = settled(composed, world_size, device_count, foresight.here)
        for line in lines:
            say(line)
    vocab_size = vocabulary(config)
    if vocab_size is not None:
        foresight.refuse_too_large(make_plan(config, vocab_size, world_size))
    return Settled(config, foresight)


def settled(
    composed: Composition, world_size: int | None, device_count: int | None, here: Here
) -> tuple[TridentConfig, tuple[str, ...]]:
    """Return a config that breaks no rule, with `layout=auto` replaced by the fastest layout; and lines about it.

    Args:
        composed: the config as composed.
        world_size: ranks that a launcher started, or None when this process will start them.
        device_count: CUDA devices of this machine, or None when nobody looked.
        here: this machine.

    Raises:
        ConfigError: every broken rule with its reason, and the nearest layouts that work.
    """
    config, lines = composed.config, tuple[str, ...]()
    if config.layout.auto:
        chosen, why = choose_layout(composed, world_size, here)
        config, lines = chosen.config, (f"layout  {change(chosen)}: {why}",)
    error = explained(config, world_size, device_count, lambda: _near(config, world_size, here))
    if error is not None:
        raise error
    return config, lines


def choose_layout(composed: Composition, world_size: int | None, here: Here) -> tuple[Found, str]:
    """Return the fastest layout that fits, and why it is taken. The same words on the same machines give the same one.

    Where none fits with room for the prediction's error, it is the one of least memory, if that may fit.

    Args:
        composed: the config as composed.
        world_size: ranks that a launcher started, or None when this process will start them.
        here: this machine.

    Raises:
        ConfigError: none may fit, or there is none.
    """
    plain = alone(composed.config)
    validate(judged(composed.config))
    world = world_size or planned_ranks(plain, here) or len(here.gpus) or here.cores
    # Sizes that words set beside layout=auto stay.
    base = replace(plan_without_data(plain), config=composed.config)
    found = search(Planner(cluster_of(plain, world, here)), base, world, held(composed), shown=1)
    if found.ranked:
        return found.ranked[0], "the fastest that fits"
    least = found.least
    if least is not None and least.prediction.may_fit and is_legal(least.plan):
        error = least.prediction.confidence.memory
        return least, f"it needs least memory, and may fit: none does with room for the error of +-{error:.0%}"
    needed = "" if least is None else f"; least memory: {change(least)}"
    raise ConfigError(
        f"layout=auto must find a layout of {world} ranks that fits, but of {found.considered:,} legal ones none "
        f"does{needed}; use more or larger devices, or a smaller model.* or batch.*"
    )


def held(composed: Composition) -> frozenset[str]:
    """Return the keys that a search leaves alone: a word of the command line has set them, or their group."""
    request = composed.request
    groups = {group for group in request.choices if group != LAYOUT or not composed.config.layout.auto}
    return frozenset(
        key for key in FREE if key in request.values or key.partition(".")[0] in groups - {"model", "batch"}
    )


def _near(config: TridentConfig, world_size: int | None, here: Here) -> tuple[Found, ...]:
    """Return the nearest layouts that work; none if something else is wrong, which would have to be mended first."""
    plain = alone(config)
    vocab_size = vocabulary(plain)
    if vocab_size is None or problems(replace(judged(config), zero=ZeroConfig())):
        return ()
    base = make_plan(plain, vocab_size)
    layout = config.layout
    replicas = layout.data_parallel_size if isinstance(layout.data_parallel_size, int) else 1
    asked = world_size or layout.pipeline_parallel_size * layout.tensor_parallel_size * replicas
    # What was asked for counts when distances are taken, legal or not.
    wanted = replace(base, config=replace(config, layout=replace(layout, auto=False)))
    found: list[Found] = []
    for world in (world for world in range(asked, 0, -1) if _is_usual(world, asked)):
        if len(found) >= COUNT:
            break
        try:
            # CPU ranks share their machine: each number of them has another cluster.
            planner = Planner(cluster_of(plain, world, here))
        except ConfigError:
            # What is wrong with the config is said all the same.
            break
        found += nearest(planner, wanted, [world], count=COUNT - len(found))
    return tuple(found)


def _is_usual(world: int, asked: int) -> bool:
    """Return whether a number of devices is worth a try: a divisor of what was asked for, or a power of two."""
    return asked % world == 0 or world & (world - 1) == 0


def alone(config: TridentConfig) -> TridentConfig:
    """Return the config with a layout that breaks no rule of its own: one rank, one sequence at a time."""
    return replace(config, layout=LayoutConfig(), batch=replace(config.batch, micro_batch_size=1))


def judged(config: TridentConfig) -> TridentConfig:
    """Return the config whose rules say whether anything is wrong besides the layout: one rank has no stages to cut."""
    return replace(alone(config), cluster=replace(config.cluster, virtual_stages=1))
