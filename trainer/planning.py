"""`trident plan`: what a run will need, which layouts there are, and what a budget buys. No torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config.compose import Composition, composition
from trainer.config.layout_words import LAYOUT
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import DeviceKind, Dtype, LayoutConfig, Software, TridentConfig, ZeroConfig
from trainer.config.validate import problems, validate
from trainer.dry_run import plan_without_data, vocabulary
from trainer.errors import ConfigError
from trainer.hardware import Here, look_here
from trainer.log import aside, say, write
from trainer.planner.as_json import answer_json, report_json, search_json
from trainer.planner.budget import Speed, parse_budget, spend
from trainer.planner.cluster import cluster_of, planned_ranks
from trainer.planner.layout_search import Found, nearest, search
from trainer.planner.picture import Picture, Verdict, check_picture, write_picture
from trainer.planner.plan_report import PlanReport, make_report
from trainer.planner.plan_screen import TIGHT, change, header, screen, search_screen, spent_screen, verdict
from trainer.planner.predict import Planner
from trainer.planner.refusal import COUNT, explained, too_large
from trainer.planner.shapes import Candidate, family, fixed
from trainer.planner.space import FREE


@dataclass(frozen=True)
class Asked:
    """Wishes of a person who calls `trident plan`."""

    as_json: bool = False
    searches: bool = False
    picture: str | None = None
    budget: str | None = None


def plan_verb(arguments: Sequence[str], asked: Asked, here: Here) -> int:
    """Run `trident plan <arguments>` and return the exit code.

    Raises:
        ConfigError: the config is wrong or breaks a rule; each rule with its reason, and what works.
    """
    if asked.picture is not None:
        check_picture(Path(asked.picture))
    composed = composition(list(arguments))
    if asked.budget is not None:
        return _budget(list(arguments), composed, asked, here)
    # Replicas that fill the cluster share the batch, too: rules judge as many ranks as are planned.
    config, lines = settled(composed, planned_ranks(composed.config, here), None, here)
    plan = plan_without_data(config, planned_ranks(config, here))
    planner = Planner(cluster_of(config, plan.world_size, here))
    if planner.note is not None:
        aside(f"profile {planner.note}")
    if asked.searches:
        return _search(composed, planner, plan, asked)
    report = make_report(planner, plan)
    if asked.picture is not None:
        write_picture(_picture(planner, report), Path(asked.picture))
    if asked.as_json:
        write(json.dumps(report_json(report), indent=2) + "\n")
    else:
        say("\n".join([*lines, screen(report)]))
    return 0


def calibrate_here(arguments: Sequence[str], here: Here) -> int:
    """Measure this machine into the profile that later plans use, and return the exit code.

    Raises:
        ConfigError: a word says something that is not measured, or a measured number is absurd.
        TridentError: ranks could not be started, or the profile cannot be written.
    """
    from trainer.calibration.calibrate import calibrate

    config = _alone(composition(list(arguments)).config)
    if config.cluster.device is not None:
        raise ConfigError(
            f"--calibrate measures the devices of this machine, but cluster.device is {config.cluster.device}; leave "
            "it out"
        )
    validate(config)
    devices = len(here.gpus) if here.gpus and config.runtime.device is not DeviceKind.cpu else here.cores
    calibrate(cluster_of(config, devices, here), say)
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


def _picture(planner: Planner, report: PlanReport) -> Picture:
    found = report.prediction
    lines = header(report)
    share = found.peak / found.device_bytes
    return Picture(
        title=f"{lines[0].split(maxsplit=1)[1]}; {lines[1].split(maxsplit=1)[1]}",
        layout=" ".join(report.found.words),
        verdict=verdict(report)[0],
        kind=Verdict.refused if not found.fits else Verdict.fits if share <= TIGHT else Verdict.tight,
        stages=found.stages,
        device_bytes=found.device_bytes,
        timeline=planner.timeline(report.plan),
    )


# What a budget buys.


KIND = "model=llama_7b"
"""Kind of model whose sizes a budget chooses from, where no word names a model."""
TOKENS_PER_STEP = 1 << 19
"""Tokens of a step where no word says the batch: about those of GPT-3's smaller sizes (arXiv 2005.14165, table 2.1)."""
_NAMED = ("model.hidden_size", "model.num_layers", "model.path")
"""Keys with which words name a model."""


def _budget(arguments: Sequence[str], composed: Composition, asked: Asked, here: Here) -> int:
    if asked.searches or asked.picture is not None:
        raise ConfigError("budget= chooses a model and its layout; it cannot be combined with --search or --picture")
    budget = parse_budget(str(asked.budget))
    request = composed.request
    is_named = "model" in request.choices or any(key in request.values for key in _NAMED)
    words = [*([] if is_named else [KIND]), *arguments]
    composed = composition(words)
    for word in _unsaid(composed, here):
        words.append(word)
        composed = composition(words)
    plain = _alone(composed.config)
    validate(_judged(composed.config))
    world = planned_ranks(plain, here) or len(here.gpus) or here.cores
    planner = Planner(cluster_of(plain, world, here))
    vocab_size = plan_without_data(plain).model.vocab_size
    models = fixed(plain.model, vocab_size) if is_named else family(plain.model, vocab_size)
    answer = spend(budget, planner.cluster, models, _speeds(planner, plain, world))
    if asked.as_json:
        write(json.dumps(answer_json(answer, words), indent=2) + "\n")
    else:
        say(spent_screen(answer, planner.cluster, words))
    return 0


def _unsaid(composed: Composition, here: Here) -> Iterator[str]:
    """Yield words for what no word says, and what a small test run has otherwise: the batch and the precision."""
    request, config = composed.request, composed.config
    if "batch" not in request.choices and "batch.global_batch_size" not in request.values:
        yield f"batch.global_batch_size={max(1, TOKENS_PER_STEP // config.model.seq_length)}"
    if "precision" not in request.choices and "precision.dtype" not in request.values:
        peaks = cluster_of(_alone(config), 1, here).peak_flops
        fastest = max(peaks, key=lambda dtype: (peaks[dtype].value, dtype is Dtype.bf16))
        if fastest is not config.precision.dtype:
            yield f"precision={fastest.value}"


def _speeds(planner: Planner, config: TridentConfig, world: int) -> Callable[[Candidate], Speed | None]:
    """Return a function that finds the fastest layout of a model on the cluster."""

    def speed(candidate: Candidate) -> Speed | None:
        base = make_plan(replace(config, model=candidate.config), candidate.vocab_size)
        found = search(planner, base, world, shown=1).ranked
        if not found:
            return None
        best = found[0]
        return Speed(
            tokens_per_second=best.prediction.tokens_per_second,
            tokens_per_step=best.plan.tokens_per_step,
            devices=world,
            layout=best.words_after(config),
            mfu=best.prediction.mfu,
        )

    return speed


# Layouts that are found, and layouts that are refused: also for `trident train`.


def settle(composed: Composition, world_size: int | None, device_count: int | None) -> TridentConfig:
    """Return the config that a run starts with: nothing is planned unless the layout is to be found, or is refused.

    Args:
        composed: the config as composed, `layout.data_parallel_size` filled.
        world_size: ranks that a launcher started, or None when this process will start them.
        device_count: CUDA devices of this machine.

    Raises:
        ConfigError: every broken rule with its reason; or the run does not fit; and the nearest layouts that work; or
            it is the plan of other software.
    """
    config = composed.config
    if config.cluster.engine is not Software.trident:
        raise ConfigError(
            f"cluster.engine={config.cluster.engine.value} is for plans of published runs of other software, and must "
            "be trident in a run; leave it out"
        )
    here = look_here(os.environ)
    if config.layout.auto or problems(config, world_size, device_count):
        config, lines = settled(composed, world_size, device_count, here)
        for line in lines:
            say(line)
    refuse_too_large(config, world_size, here)
    return config


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
        config, lines = chosen.config, (_reason(chosen),)
    error = explained(config, world_size, device_count, lambda: _near(config, world_size, here))
    if error is not None:
        raise error
    return config, lines


def refuse_too_large(config: TridentConfig, world_size: int | None, here: Here) -> None:
    """Refuse a run that surely does not fit into the memory of its devices, as far as that can be known beforehand.

    Args:
        config: accepted by `validate`.
        world_size: ranks that a launcher started, or None when this process will start them.
        here: this machine.

    Raises:
        ConfigError: it does not fit, with the nearest layouts that do.
    """
    vocab_size = vocabulary(config)
    if vocab_size is None:
        return
    plan = make_plan(config, vocab_size, world_size)
    try:
        planner = Planner(cluster_of(config, plan.world_size, here))
    except ConfigError:
        # A device that the planner does not know trains all the same.
        return
    error = too_large(planner, plan, config)
    if error is not None:
        raise error


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
    validate(_judged(composed.config))
    world = world_size or planned_ranks(plain, here) or len(here.gpus) or here.cores
    # Sizes that words set beside layout=auto stay.
    base = replace(plan_without_data(plain), config=composed.config)
    found = search(Planner(cluster_of(plain, world, here)), base, world, held(composed), shown=1)
    if not found.ranked:
        least = "" if found.least is None else f"; least memory: {change(found.least)}"
        raise ConfigError(
            f"layout=auto must find a layout of {world} ranks that fits, but of {found.considered:,} legal ones none "
            f"does{least}; use more or larger devices, or a smaller model.* or batch.*"
        )
    return found.ranked[0]


def held(composed: Composition) -> frozenset[str]:
    """Return the keys that a search leaves alone: a word of the command line has set them, or their group."""
    request = composed.request
    groups = {group for group in request.choices if group != LAYOUT or not composed.config.layout.auto}
    return frozenset(
        key for key in FREE if key in request.values or key.partition(".")[0] in groups - {"model", "batch"}
    )


def _reason(found: Found) -> str:
    return f"layout  {change(found)}: the fastest that fits ({found.prediction.confidence.reason})"


def _near(config: TridentConfig, world_size: int | None, here: Here) -> tuple[Found, ...]:
    """Return the nearest layouts that work; none if something else is wrong, which would have to be mended first."""
    plain = _alone(config)
    vocab_size = vocabulary(plain)
    if vocab_size is None or problems(replace(_judged(config), zero=ZeroConfig())):
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


def _alone(config: TridentConfig) -> TridentConfig:
    """Return the config with a layout that breaks no rule of its own: one rank, one sequence at a time."""
    return replace(config, layout=LayoutConfig(), batch=replace(config.batch, micro_batch_size=1))


def _judged(config: TridentConfig) -> TridentConfig:
    """Return the config whose rules say whether anything is wrong besides the layout: one rank has no stages to cut."""
    return replace(_alone(config), cluster=replace(config.cluster, virtual_stages=1))
