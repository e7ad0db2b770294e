"""One rank of a calibration: `python -m trainer.calibration.measuring_rank SPEC`, started by `measuring.py`.

SPEC is JSON: `device`, `rounds`, `budget_s`, `trials` (name, ranks, words), and the descriptor `answers`, over which
rank 0 sends a line of JSON for each part that is done and one with all that was measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainer.calibration.kernel_times import Clock, attention_times, copy_times, gemm_times, message_times, stream_times
from trainer.calibration.measurements import Measurements, StepSeconds
from trainer.calibration.trials import Trial
from trainer.config.plan import RunPlan
from trainer.config.schema import DeviceKind, RuntimeConfig
from trainer.engine.build import build_engine
from trainer.engine.face import Engine
from trainer.engine.world import choose_device, start_world, stop_world
from trainer.errors import first_line
from trainer.launcher.environment import find_world
from trainer.micro_batch import MicroBatch, Place
from trainer.topology.agreement import gather
from trainer.topology.groups import Group, ParallelGroups

_WARM_UP = 2
_RATE = 1e-4


class MeasuredEngine:
    """A trial's engine with the micro-batches of one step, which it trains on again and again."""

    def __init__(self, plan: RunPlan, groups: ParallelGroups) -> None:
        self._engine: Engine = build_engine(plan, groups)
        self._device = groups.device
        shape = (plan.micro_batch_size, plan.execution.seq_length)
        numbers = torch.Generator().manual_seed(plan.seed + groups.samples.rank)
        self._micro_batches = []
        for index in range(plan.num_micro_batches):
            ids = torch.randint(0, plan.model.vocab_size, shape, generator=numbers).to(groups.device)
            place = Place(plan.seed, step=1, first_sample=index * plan.micro_batch_size)
            self._micro_batches.append(MicroBatch.of(ids, labels=ids, place=place))

    def step_seconds(self) -> float:
        """Train a step, wait for it, and return its seconds on this rank. Collective over the world."""
        started = time.perf_counter()
        float(self._engine.train_step(self._micro_batches, _RATE).loss)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started


def measure(
    trials: Mapping[str, RunPlan], device: torch.device, rounds: int, budget_s: float, told: Callable[[str], None]
) -> Measurements:
    """Measure everything that these trials' ranks can. Collective over the world of their plans, one after another.

    Args:
        trials: plans by name, all of as many ranks as there are.
        device: this rank's device.
        rounds: timed steps of each trial, in turns, so that a busy moment of the machine falls on all.
        budget_s: seconds for one kernel.
        told: told what is measured next.
    """
    plans = list(trials.values())
    groups = start_world(plans[0].mesh, RuntimeConfig(), device)
    world, clock = groups.world, Clock(device, budget_s)
    by_dtype = {plan.dtype: plan for plan in plans}
    told("matrix multiplication, attention, memory")
    gemms = [one for plan in by_dtype.values() for one in gemm_times(plan, device, clock)]
    attention = [one for plan in by_dtype.values() for one in attention_times(plan, device, clock)]
    streams = list(stream_times(device, clock))
    if world.size > 1 or device.type == "cuda":
        told("messages")
    messages = [*message_times(world, device, clock), *copy_times(device, clock)]
    engines, failed = _build(trials, device, told)
    told(f"{rounds} steps of each: {', '.join(engines)}")
    return Measurements(
        ranks=world.size,
        threads=torch.get_num_threads(),
        gemms=tuple(gemms),
        attention=tuple(attention),
        streams=tuple(streams),
        messages=tuple(messages),
        steps=_steps(engines, rounds, world),
        failed=failed,
    )


def _build(
    trials: Mapping[str, RunPlan], device: torch.device, told: Callable[[str], None]
) -> tuple[dict[str, MeasuredEngine], dict[str, str]]:
    engines: dict[str, MeasuredEngine] = {}
    failed: dict[str, str] = {}
    for name, plan in trials.items():
        told(f"building {name}")
        groups = start_world(plan.mesh, RuntimeConfig(), device)
        problem = None
        try:
            engine = MeasuredEngine(plan, groups)
            for _ in range(_WARM_UP):
                engine.step_seconds()
        except Exception as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
        # Only a trial that every rank can run has a time.
        problems = [one for one in gather(groups.control, problem) if one is not None]
        if problems:
            failed[name] = problems[0]
        else:
            engines[name] = engine
    return engines, failed


def _steps(engines: Mapping[str, MeasuredEngine], rounds: int, world: Group) -> tuple[StepSeconds, ...]:
    found: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds):
        for name in list(engines) if number % 2 == 0 else reversed(list(engines)):
            found[name].append(max(gather(world, engines[name].step_seconds())))
    return tuple(StepSeconds(name, tuple(seconds)) for name, seconds in found.items())


def main(text: str) -> int:
    """Measure as SPEC says, and answer."""
    spec: dict[str, Any] = json.loads(text)
    world = find_world(os.environ)
    rank = 0 if world is None else world.rank
    answers = os.fdopen(spec["answers"], "w", buffering=1) if rank == 0 else None

    def answer(**values: object) -> None:
        if answers is not None:
            answers.write(json.dumps(values) + "\n")

    kind = DeviceKind(spec["device"])
    device = choose_device(kind, 0 if world is None else world.local_rank)
    plans = {name: Trial(name, ranks, tuple(words)).plan(kind) for name, ranks, words in spec["trials"]}
    found = measure(plans, device, spec["rounds"], spec["budget_s"], lambda part: answer(part=part))
    answer(measured=found.to_dict())
    stop_world()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
