"""Trident's engine, whose memory is told by its owners.

Options: `overrides`, further words after `trident train`; `census`, the step in which every live tensor is counted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import count
from typing import Any

import torch

from benchmarks.case import Case
from benchmarks.census import Census
from benchmarks.contenders.common import cache_override
from benchmarks.gate import Gate
from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.config.validate import validate
from trainer.data.batches import training_batches
from trainer.data.prepare import prepare
from trainer.engine.build import build_engine
from trainer.engine.world import choose_device, start_world
from trainer.launcher.environment import find_world, prepare_environment


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and train."""
    world = find_world(os.environ)
    assert world is not None
    prepare_environment(on_cpu=case.device == "cpu")
    config = compose([*case.overrides(), cache_override(), *options.get("overrides", ())])
    validate(config, world.size)
    plan = make_plan(config, case.vocab_size, world.size)
    device = choose_device(config.runtime.device, world.local_rank)
    groups = start_world(plan.mesh, config.runtime, device)
    source = training_batches(prepare(config), plan, case.seq_length, groups.samples.rank, device)

    def fullest() -> int:
        """Return the peak of the fullest rank. Collective over the world."""
        peak = torch.tensor(gate.meter.peak_bytes() / 1024, dtype=torch.float64, device=device)
        return int(groups.world.all_reduce(peak, op="max")) * 1024

    gate.meter.start()
    engine: Any = build_engine(plan, groups)
    found: dict[str, Any] = {"start_bytes": fullest(), "held_before_bytes": gate.meter.base_bytes}
    gate.extras = lambda: found
    gate.open()
    for step in count(1):
        gate.meter.forget_peak()
        batches = source.micro_batches((step - 1) * case.tokens_per_step, step)
        is_counted = step == options["census"]
        with Census(engine._engine, device) if is_counted else nullcontext() as census:
            result = engine.train_step(batches, case.learning_rate(step))
        found["step_bytes"] = fullest()
        if census is not None:
            found["owners"] = census.owners
        gate.done([result.loss])
