"""Trident as its users run it: engine, loop, data, metrics. Only the checkpoints are off.

Options: `overrides`, further words after `trident train`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.case import Case
from benchmarks.contenders.common import cache_override
from benchmarks.gate import Gate
from trainer.checkpoint.resume import starting_state
from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.config.validate import validate
from trainer.data.batches import training_batches
from trainer.data.prepare import prepare
from trainer.data.prepared import stream_identity
from trainer.description import describe
from trainer.engine.build import build_engine
from trainer.engine.face import Engine, StepResult
from trainer.engine.world import choose_device, start_world
from trainer.kernels.attention_backend import attention_kernel
from trainer.launcher.environment import find_world, prepare_environment
from trainer.log import say
from trainer.loop.events import Hook, StepReport
from trainer.loop.session import Session
from trainer.loop.state import TrainState
from trainer.loop.stop import StopRequest
from trainer.loop.train import Batches, Loop
from trainer.metrics.sinks import build_metrics
from trainer.micro_batch import MicroBatch


class _Recording:
    """An engine that keeps every step's loss, unread."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.losses: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = math.inf
    ) -> StepResult:
        """Run the engine's step."""
        result: StepResult = self._engine.train_step(micro_batches, learning_rate, loss_limit)
        self.losses.append(result.loss.detach().clone())
        return result


class _GateHook(Hook):
    """The last hook of the loop: a step is done when everything else has heard of it."""

    def __init__(self, engine: _Recording, gate: Gate, facts: Mapping[str, Any], theory: float) -> None:
        self._engine = engine
        self._gate = gate
        self._facts = facts
        self._theory = theory
        self._bubble: float | None = None
        gate.extras = self._extras

    def _extras(self) -> Mapping[str, Any]:
        if self._bubble is None:
            return {}
        return {"bubble_fraction": self._bubble, "bubble_in_theory": self._theory}

    def on_start(self, first_step: int) -> None:
        """Wait for the first turn."""
        self._gate.open(**self._facts)

    def on_report(self, report: StepReport) -> None:
        """Keep what the report says of the pipeline."""
        self._bubble = report.bubble_fraction

    def on_step(self, step: int) -> None:
        """Count the step."""
        losses, self._engine.losses = self._engine.losses, []
        self._gate.done(losses)


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and train."""
    world = find_world(os.environ)
    assert world is not None
    prepare_environment(on_cpu=case.device == "cpu")
    folder = Path.cwd() / f"{os.getpid()}_run"  # among the logs, which the parent removes
    words = [*case.overrides(), cache_override(), f"run_dir={folder}", *options.get("overrides", ())]
    config = compose(words)
    validate(config, world.size)
    plan = make_plan(config, case.vocab_size, world.size)
    device = choose_device(config.runtime.device, world.local_rank)
    groups = start_world(plan.mesh, config.runtime, device)
    prepared = prepare(config)
    gate.meter.start()
    engine = _Recording(build_engine(plan, groups))
    say(describe(plan))
    state = starting_state(None, plan, stream_identity(prepared, config))
    kernel = attention_kernel(
        plan.model, plan.execution, plan.tensor_parallel_size, plan.config.precision.dtype, device
    )
    facts = {
        "overrides": words,
        "plan": describe(plan).splitlines(),
        "attention_kernel": kernel,
        "threads": torch.get_num_threads(),
    }
    hooks: list[Hook] = [
        build_metrics(plan, folder, state, groups, ("here",) * plan.world_size),
        _GateHook(engine, gate, facts, plan.bubble_in_theory),
    ]
    source = training_batches(prepared, plan, state.sample_length, groups.samples.rank, device)
    session = Session(plan=plan, groups=groups, hosts=("here",) * plan.world_size)
    Loop(session, cast(Engine, engine), Batches(source), state, hooks, StopRequest(groups.control), _never).run()


def _never() -> TrainState:
    raise AssertionError("a benchmark goes back to no checkpoint")
