"""`trident plan`: what a run will need, which layouts there are, and what a budget buys. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.config.compose import Composition, composition
from trainer.config.keys import flatten
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import LayoutConfig, TridentConfig
from trainer.config.validate import problems, validate
from trainer.dry_run import plan_without_data, vocabulary
from trainer.errors import ConfigError
from trainer.log import say, write
from trainer.planner.as_json import report_json, search_json
from trainer.hardware import Here
from trainer.planner.cluster import cluster_of, planned_ranks
from trainer.planner.predict import Planner
from trainer.planner.refusal import explained
from trainer.planner.report import make_report
from trainer.planner.screen import change, screen, search_screen
from trainer.planner.search import Found, nearest, search
from trainer.planner.space import FREE, MESH


@dataclass(frozen=True)
class Asked:
    """What `trident plan` is asked for."""

    as_json: bool = False
    searches: bool = False
    picture: str | None = None
    budget: str | None = None


def plan_verb(arguments: Sequence[str], asked: Asked, here: Here) -> int:
    """Run `trident plan <arguments>` and return the exit code.

    Raises:
        ConfigError: the config is wrong, breaks a rule, or does not fit; each rule with its reason, and what works.
    """
    composed = composition(list(arguments))
    config, lines = settled(composed, None, None, here)
    plan = plan_without_data(config, planned_ranks(config, here))
    planner = Planner(cluster_of(config, plan.world_size, here))
    if asked.searches:
        return _search(composed, planner, plan, asked)
    report = make_report(planner, plan)
    if asked.picture is not None:
        from trainer.planner.picture import draw

        draw(report, asked.picture)
    if asked.as_json:
        write(json.dumps(report_json(report), indent=2) + "\n")
    else:
        say("\n".join([*lines, screen(report)]))
    return 0


def _search(composed: Composition, planner: Planner, plan: RunPlan, asked: Asked) -> int:
    begun = time.monotonic()
    found = search(planner, plan, plan.world_size, held(composed))
    seconds = time.monotonic() - begun
    if asked.as_json:
        write(json.dumps({**search_json(found), "seconds": seconds}, indent=2) + "\n")
    else:
        say(search_screen(found, composed.config, seconds))
    return 0


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
        chosen = choose_layout(composed, world_size, here)
        config, lines = chosen.plan.config, (_reason(chosen),)
    error = explained(config, world_size, device_count, lambda: _near(config, world_size, here))
    if error is not None:
        raise error
    return config, lines


def choose_layout(composed: Composition, world_size: int | None, here: Here) -> Found:
    """Return the fastest layout that fits. The same words on the same machines give the same layout.

    Args:
        composed: the config as composed.
        world_size: ranks that a launcher started, or None when this process will start them.
        here: this machine.

    Raises:
        ConfigError: none fits, or there is none.
    """
    plain = _alone(composed.config)
    validate(plain)
    world = world_size or planned_ranks(plain, here) or len(here.gpus) or here.cores
    base = plan_without_data(plain)
    found = search(Planner(cluster_of(plain, world, here)), base, world, held(composed), shown=1)
    if not found.ranked:
        least = "" if found.least is None else f"; least memory: {change(found.least)}"
        raise ConfigError(
            f"layout=auto must find a layout of {world} ranks that fits, but of {found.considered:,} legal ones none "
            f"does{least}; use more or larger devices, or a smaller model.* or batch.*"
        )
    return found.ranked[0]


def held(composed: Composition) -> frozenset[str]:
    """Return the keys that a search leaves alone: a word or a file has set them."""
    config = composed.config
    values, fresh = flatten(config), flatten(TridentConfig())
    chosen = {key for key in FREE if key in composed.request.values or values[key] != fresh[key]}
    return frozenset(chosen - set(MESH) if config.layout.auto else chosen)


def _reason(found: Found) -> str:
    return f"layout  {change(found)}: the fastest that fits ({found.prediction.confidence.reason})"


def _near(config: TridentConfig, world_size: int | None, here: Here) -> tuple[Found, ...]:
    """Return the nearest layouts that work; none if something else is wrong, which would have to be mended first."""
    plain = _alone(config)
    vocab_size = vocabulary(plain)
    if vocab_size is None or problems(plain):
        return ()
    base = make_plan(plain, vocab_size)
    layout = config.layout
    replicas = layout.data_parallel_size if isinstance(layout.data_parallel_size, int) else 1
    asked = world_size or layout.pipeline_parallel_size * layout.tensor_parallel_size * replicas
    # What was asked for counts when distances are taken, legal or not.
    wanted = replace(base, config=replace(config, layout=replace(layout, auto=False)))
    planner = Planner(cluster_of(plain, asked, here))
    return nearest(planner, wanted, [world for world in range(asked, 0, -1) if _is_usual(world, asked)])


def _is_usual(world: int, asked: int) -> bool:
    """Return whether a number of devices is worth a try: a divisor of what was asked for, or a power of two."""
    return asked % world == 0 or world & (world - 1) == 0


def _alone(config: TridentConfig) -> TridentConfig:
    """Return the config with a layout that breaks no rule of its own: one rank, one sequence at a time."""
    return replace(config, layout=LayoutConfig(), batch=replace(config.batch, micro_batch_size=1))
