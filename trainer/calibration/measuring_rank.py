"""One rank of a calibration: `python -m trainer.calibration.measuring_rank SPEC`, started by `measuring.py`.

SPEC is JSON: `device`, `rounds`, `budget_s`, `trials` (name, ranks, words), `ports` (one for the kernels and one for
each time that a trial is run), and the descriptor `answers`, over which rank 0 sends a line of JSON for each part that
begins and one with what was measured in it. Each part runs in a process of its own, forked from this one, which has
imported everything: so the memory of a trial is that of a run, without the leavings of the trials before.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from trainer.calibration.kernel_times import Clock, attention_times, copy_times, gemm_times, message_times, stream_times
from trainer.calibration.measurements import Measurements, StepSeconds
from trainer.calibration.trials import PASSES, Trial
from trainer.config.plan import RunPlan
from trainer.config.schema import DeviceKind, RuntimeConfig
from trainer.engine.build import build_engine
from trainer.engine.face import Engine
from trainer.engine.world import choose_device, start_world, stop_world
from trainer.errors import first_line
from trainer.launcher.environment import find_world
from trainer.micro_batch import MicroBatch, Place
from trainer.topology.agreement import gather
from trainer.topology.groups import ParallelGroups

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


def kernels(plans: Sequence[RunPlan], device: torch.device, budget_s: float) -> Measurements:
    """Measure kernels and messages in the number formats of some plans. Collective over the world of the first.

    Args:
        plans: runs of as many ranks as there are.
        device: this rank's device.
        budget_s: seconds for one kernel.
    """
    world, clock = start_world(plans[0].mesh, RuntimeConfig(), device).world, Clock(device, budget_s)
    by_dtype = {plan.dtype: plan for plan in plans}
    return Measurements(
        ranks=world.size,
        threads=torch.get_num_threads(),
        gemms=tuple(one for plan in by_dtype.values() for one in gemm_times(plan, device, clock)),
        attention=tuple(one for plan in by_dtype.values() for one in attention_times(plan, device, clock)),
        streams=tuple(stream_times(device, clock)),
        messages=(*message_times(world, device, clock), *copy_times(device, clock)),
    )


def steps(name: str, plan: RunPlan, device: torch.device, rounds: int) -> Measurements:
    """Measure steps of a trial, or say why it cannot be run. Collective over the world of its plan.

    Args:
        name: of the trial.
        plan: its run, of as many ranks as there are.
        device: this rank's device.
        rounds: number of steps.
    """
    groups = start_world(plan.mesh, RuntimeConfig(), device)
    engine, problem = None, None
    try:
        engine = MeasuredEngine(plan, groups)
        for _ in range(_WARM_UP):
            engine.step_seconds()
    except Exception as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
    # Only a trial that every rank can run has a time.
    problems = [one for one in gather(groups.control, problem) if one is not None]
    found = Measurements(groups.world.size, torch.get_num_threads())
    if problems or engine is None:
        return replace(found, failed={name: problems[0]})
    seconds = tuple(max(gather(groups.world, engine.step_seconds())) for _ in range(rounds))
    return replace(found, steps=(StepSeconds(name, seconds),))


def _parts(spec: Mapping[str, Any], kind: DeviceKind) -> Iterator[tuple[str, Callable[[torch.device], Measurements]]]:
    """Yield what is measured, and how: kernels, and all trials PASSES times, so that a busy moment falls on all."""
    trials = [Trial(name, ranks, tuple(words)) for name, ranks, words in spec["trials"]]
    plans = [trial.plan(kind) for trial in trials]
    yield (
        "matrix multiplication, attention, memory, messages",
        lambda device: kernels(plans, device, spec["budget_s"]),
    )
    for number in range(PASSES):
        for trial, plan in zip(trials, plans, strict=True):
            measured = partial(steps, trial.name, plan, rounds=-(-spec["rounds"] // PASSES))
            yield f"steps of {trial.name}, {number + 1} of {PASSES}", measured


def _forked(work: Callable[[], None]) -> None:
    """Do some work in a process of its own, and end with it if it fails."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(1)


def main(text: str) -> int:
    """Measure as SPEC says, and answer."""
    spec: dict[str, Any] = json.loads(text)
    world = find_world(os.environ)
    rank, local_rank = (0, 0) if world is None else (world.rank, world.local_rank)
    answers = os.fdopen(spec["answers"], "w", buffering=1) if rank == 0 else None

    def answer(**values: object) -> None:
        if answers is not None:
            answers.write(json.dumps(values) + "\n")

    kind = DeviceKind(spec["device"])
    for port, (part, measured) in zip(spec["ports"], _parts(spec, kind), strict=True):
        answer(part=part)
        os.environ["MASTER_PORT"] = str(port)

        def work(measured: Callable[[torch.device], Measurements] = measured) -> None:
            answer(measured=measured(choose_device(kind, local_rank)).to_dict())
            stop_world()

        _forked(work)
    answer(ended=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
