"""Trident's pipeline engine, whose passes are written down; stages compute, or sleep to last as long as they are told.

Four ranks on two cores cannot show a bubble: while one waits, another computes faster. A rank that sleeps needs no
core, so that the waits are those of the schedule, of the engine and of its messages, whatever else the machine does.
The layers of such a stage compute as well, and the sleep is shorter by what they take.

Options: `overrides`, further words after `trident train`; `micro_batches`, the numbers of them in a step, each for one
turn; `steps` of a turn, and `warmup`, those before it that are not counted; `forward_s` and `backward_s`, seconds that
a pass of each stage lasts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.case import Case
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
from trainer.pipeline.partition import stages

Layer = Callable[..., torch.Tensor]
_WORKS = {"_exec_forward_pass": "forward", "_exec_backward_pass": "backward"}


class _Ending(torch.autograd.Function):
    """The identity, whose backward pass waits for a moment."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, wait: Callable[[], None]) -> torch.Tensor:
        """Return it as it is."""
        ctx.wait = wait
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Sleep until the pass has lasted as long as it shall."""
        ctx.wait()
        return grads[0], None


class Passes:
    """Notes every pass of this rank's stages on the clock that all processes of a machine share.

    Args:
        engine: Trident's engine.
        own: this rank's stages; DualPipeV's ranks have two.
    """

    def __init__(self, engine: Any, own: Sequence[int]) -> None:
        self._engine = engine._engine
        self._own = own
        self._timed = self._engine._timed
        self.noted: list[tuple[str, int, float, float]] = []
        """Work, stage, begin and end in seconds."""
        self._engine._timed = self._note
        self._begun = 0.0

    def _note(self, name: str, **kwargs: Any) -> None:
        self._begun = time.perf_counter()
        self._timed(name, **kwargs)
        self.noted.append((_WORKS[name], self._own[kwargs.get("phase", 0)], self._begun, time.perf_counter()))

    def let_last(self, forward_s: Sequence[float], backward_s: Sequence[float]) -> None:
        """Let the passes of each stage of this rank last so long: the rank sleeps where its layers are done early.

        Forward it does so behind its last layer, backward before its first one.
        """
        module = self._engine.module
        for functions, stage in zip(getattr(module, "phase_funcs", [module.forward_funcs]), self._own, strict=True):
            functions[0] = self._ends_backward(functions[0], backward_s[stage])
            functions[-1] = self._ends_forward(functions[-1], forward_s[stage])

    def _wait(self, seconds: float) -> None:
        time.sleep(max(0.0, self._begun + seconds - time.perf_counter()))

    def _ends_forward(self, layer: Layer, seconds: float) -> Layer:
        def run(*arguments: Any) -> torch.Tensor:
            out = layer(*arguments)
            self._wait(seconds)
            return out

        return run

    def _ends_backward(self, layer: Layer, seconds: float) -> Layer:
        def run(*arguments: Any) -> torch.Tensor:
            passed: torch.Tensor = _Ending.apply(layer(*arguments), lambda: self._wait(seconds))  # type: ignore[no-untyped-call]
            return passed

        return run

    def take(self) -> list[tuple[str, int, float, float]]:
        """Return what was noted since the last call."""
        taken, self.noted = self.noted, []
        return taken


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build an engine for each number of micro-batches, and train."""
    world = find_world(os.environ)
    assert world is not None
    prepare_environment(on_cpu=True)
    groups = None
    found: dict[str, Any] = {}
    gate.extras = lambda: found
    gate.open()
    for micro_batches in options["micro_batches"]:
        sized = replace(case, global_batch_size=micro_batches * case.micro_batch_size)
        config = compose([*sized.overrides(), cache_override(), *options.get("overrides", ())])
        validate(config, world.size)
        plan = make_plan(config, case.vocab_size, world.size)
        device = choose_device(config.runtime.device, world.local_rank)
        groups = groups or start_world(plan.mesh, config.runtime, device)
        source = training_batches(prepare(config), plan, case.seq_length, groups.samples.rank, device)
        engine: Any = build_engine(plan, groups)
        own = [stage.index for stage in stages(plan) if stage.rank_index == groups.pipeline.rank]
        passes = Passes(engine, own)
        if options.get("forward_s"):
            passes.let_last(options["forward_s"], options["backward_s"])
        found["steps"] = []
        for step in count(1):
            batches = source.micro_batches((step - 1) * sized.tokens_per_step, step)
            dist.barrier()
            begun = time.perf_counter()
            loss = engine.train_step(batches, case.learning_rate(step)).loss
            float(loss)
            wall, noted, busy = time.perf_counter() - begun, passes.take(), engine.take_busy_seconds()
            if step <= options["warmup"]:
                continue
            ranks: list[Any] = [None] * world.size
            dist.all_gather_object(ranks, {"passes": noted, "idle": 1 - busy / wall})
            found["steps"].append(ranks)
            if len(found["steps"]) == options["steps"]:
                break
            gate.done([loss])
        gate.done([loss])
