"""CPU time in which the planner searches all legal layouts of a model on a cluster.

Every turn is a process of its own, in which nothing is known from an earlier search. What is timed is the search alone,
without the start of Python; a second search with the same planner shows what candidates have in common.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contest import load_average, written
from benchmarks.record import table
from benchmarks.settings import Settings, check_known
from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.hardware import look_here
from trainer.log import say
from trainer.planner.cluster import cluster_of
from trainer.planner.layout_search import nearest, search
from trainer.planner.predict import Planner

_TIMEOUT_S = 600.0
"""Longest time that one turn may take."""


@dataclass(frozen=True)
class SearchCase:
    """A model and a cluster."""

    name: str
    words: tuple[str, ...]
    """Words after `trident plan`; the model has a vocabulary."""
    devices: int

    def plan(self) -> RunPlan:
        """Return the plan that the search begins with."""
        config = compose(list(self.words))
        if config.model.vocab_size is None:
            raise ValueError(f"the model of {self.name} must have a vocabulary")
        return make_plan(config, config.model.vocab_size, self.devices)


@dataclass(frozen=True)
class SearchTurn:
    """Figures of one process."""

    considered: int
    """Legal layouts that were predicted."""
    fitting: int
    cold_s: float
    """Seconds of CPU time of the first search."""
    warm_s: float
    """Seconds of CPU time of the same search again."""
    nearest_s: float
    """Seconds of CPU time of a refusal: which layouts that fit are the nearest ones, by a planner of its own."""


def _case(name: str, *words: str, nodes: int, batch: int) -> SearchCase:
    sizes = (f"cluster.nodes={nodes}", f"batch.global_batch_size={batch}", "batch.micro_batch_size=1")
    return SearchCase(name, (*words, "precision=bf16", *sizes), 8 * nodes)


CASES = (
    _case("13B on 64 A100", "model=gpt3_13b", "cluster=dgx_a100", nodes=8, batch=256),
    _case("175B on 1,024 H100", "model=gpt3_175b", "cluster=dgx_h100", nodes=128, batch=1536),
    _case("175B on 1,536 H100", "model=gpt3_175b", "cluster=dgx_h100", nodes=192, batch=3072),
    _case("900B on 32 A100", "model=gpt3_175b", "model.num_layers=500", "cluster=dgx_a100", nodes=4, batch=256),
)
"""The last one fits in no layout."""


def plan_search(settings: Settings) -> Path:
    """Search the layouts of every case, each time in a fresh process.

    Raises:
        UsageError: a case that is asked for does not exist.
    """
    check_known(settings.only, [case.name for case in CASES], "--only", "case")
    before = load_average()
    rows = [_row(case, settings) for case in CASES if not settings.only or case.name in settings.only]
    body = {"load_average_before": before, "rounds": settings.rounds, "searches": rows}
    return written("plan_search", "layouts", body, text(rows), settings)


def _row(case: SearchCase, settings: Settings) -> dict[str, Any]:
    turns = []
    for _ in range(settings.rounds):
        # Leaving it ends the process, however long it would still take.
        with get_context("spawn").Pool(1) as pool:
            turns.append(pool.apply_async(timed, (case,)).get(_TIMEOUT_S))
    row = summed_up(case, turns)
    say(f"{case.name}: {row['considered']:,} layouts in {row['cold_s']:.2f} s")
    return row


def timed(case: SearchCase) -> SearchTurn:
    """Search once with a new planner and once more with the same."""
    plan, here = case.plan(), look_here(os.environ)
    cluster = cluster_of(plan.config, case.devices, here)
    start = time.process_time()
    planner = Planner(cluster)
    found = search(planner, plan, case.devices)
    cold = time.process_time() - start
    search(planner, plan, case.devices)
    warm = time.process_time() - start - cold
    plan = case.plan()
    start = time.process_time()
    nearest(Planner(cluster), plan, [case.devices])
    return SearchTurn(found.considered, found.fitting, cold, warm, time.process_time() - start)


def summed_up(case: SearchCase, turns: list[SearchTurn]) -> dict[str, Any]:
    """Return the medians of the turns of a case as plain values."""
    cold = median(turn.cold_s for turn in turns)
    return {
        "name": case.name,
        "overrides": list(case.words),
        "considered": turns[0].considered,
        "fitting": turns[0].fitting,
        "cold_s": round(cold, 3),
        "warm_s": round(median(turn.warm_s for turn in turns), 3),
        "nearest_s": round(median(turn.nearest_s for turn in turns), 3),
        "ms_per_layout": round(1000 * cold / turns[0].considered, 4),
        "turns": [asdict(turn) for turn in turns],
    }


def text(rows: list[dict[str, Any]]) -> str:
    """Return a table of the searches."""
    cells = [
        [
            row["name"],
            f"{row['considered']:,}",
            f"{row['fitting']:,}",
            f"{row['cold_s']:.2f}",
            f"{row['ms_per_layout']:.3f}",
            f"{row['warm_s']:.2f}",
            f"{row['nearest_s']:.2f}",
        ]
        for row in rows
    ]
    head = ["model and cluster", "layouts", "that fit", "CPU s", "ms a layout", "again, CPU s", "a refusal, CPU s"]
    return table(cells, head)
