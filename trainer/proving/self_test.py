"""`runtime.self_test`: before step 1 the run's own ranks train a small model in its layout, and so does the oracle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

from trainer.config.layout_words import spelled
from trainer.config.models import sizes
from trainer.config.pipeline_schedules import SCHEDULES
from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype, PipelineSchedule
from trainer.engine.world import start_world
from trainer.errors import TridentError
from trainer.mesh import Mesh
from trainer.proving.expectation import Expectation, expectation_of, settled_optimizer
from trainer.proving.faults import faults_of
from trainer.proving.rank_outcome import train_trial
from trainer.proving.scaled_model import Extent
from trainer.proving.scaled_run import scaled_run
from trainer.proving.trials import Setting, sharded, trial_of
from trainer.proving.verdict import Verdict, judged
from trainer.topology.agreement import gather
from trainer.topology.groups import ParallelGroups

STEPS = 2
"""The second step sees what the first one did to the weights."""
_MOST_HEADS = 2
"""Query heads for one key/value head: each tensor-parallel rank has one of the latter."""
_SHOWN = 3


class SelfTestFailed(TridentError):
    """The ranks of a run do not compute what the oracle computes."""


def self_test(plan: RunPlan, groups: ParallelGroups) -> str:
    """Train a small model in the run's layout, compare it with the oracle, and return a line about what was proved.

    Collective over the world. On the run's devices, in fp32 and in the run's precision, through the run's schedule,
    ZeRO stage and offload. Nothing of it stays.

    Args:
        plan: of the run.
        groups: this rank's place.

    Raises:
        SelfTestFailed: something differs; names tensor and axis. On every rank.
    """
    begun = time.monotonic()
    chosen = _settings(plan)
    tested = _Tested(plan, groups, chosen[0].dp * chosen[0].micro_batches)
    verdicts = [tested.verdict(one, groups) for one in chosen]
    wrong = gather(groups.control, any(not one.agrees for one in verdicts if one is not None))[0]
    if not wrong:
        return gather(groups.control, _told(verdicts, time.monotonic() - begun))[0]
    error = gather(groups.control, _failure([*verdicts, *_around(plan, groups, chosen[0])]))[0]
    assert error is not None
    raise error


def _settings(plan: RunPlan) -> list[Setting]:
    """Return the run's layout in fp32, and in the run's precision."""
    config = plan.config
    fewest = SCHEDULES[config.layout.pipeline_schedule].fewest_micro_batches(plan.pipeline_parallel_size)
    several = max(2, fewest) if plan.num_micro_batches > 1 else fewest
    one = Setting(
        plan.pipeline_parallel_size,
        plan.tensor_parallel_size,
        plan.data_parallel_size,
        several if plan.pipeline_parallel_size > 1 else min(2, plan.num_micro_batches),
        plan.sequence_parallel,
        config.layout.pipeline_schedule,
        recompute=config.model.recompute,
    )
    return [sharded(replace(one, dtype=dtype), plan.zero) for dtype in dict.fromkeys((Dtype.fp32, plan.dtype))]


class _Tested:
    """The scaled run, and on rank 0 what the oracle makes of it. Made collectively.

    Args:
        plan: of the run.
        groups: this rank's place.
        sequences: global batch.
        tied: false for the same model with its tie undone.
    """

    def __init__(self, plan: RunPlan, groups: ParallelGroups, sequences: int, tied: bool = True) -> None:
        config = plan.config
        tensor, stages = plan.tensor_parallel_size, plan.schedule.stages(plan.pipeline_parallel_size)
        shares = 1 < sizes(config.model).num_key_value_heads < tensor
        extent = Extent(tensor, max(stages, plan.pipeline_parallel_size), shares, _MOST_HEADS)
        base = scaled_run(config, plan.model.vocab_size, extent, sequences).config
        runtime = replace(config.runtime, compile=False, threads_per_rank=config.runtime.threads_per_rank)
        model = replace(base.model, tied_embeddings=base.model.tied_embeddings and tied)
        base = replace(base, runtime=runtime, model=model)
        self._is_judge, self._control = groups.is_reporting_rank, groups.control
        optimizer = gather(groups.control, settled_optimizer(base).optimizer if self._is_judge else None)[0]
        assert optimizer is not None
        self._base = replace(base, optimizer=optimizer)
        self._expected: Expectation | None = None
        if self._is_judge:
            self._expected = expectation_of(self._base, STEPS, tuple(dict.fromkeys((Dtype.fp32, plan.dtype))))

    def verdict(self, one: Setting, groups: ParallelGroups) -> Verdict | None:
        """Train a setting and judge it, on rank 0; None on the others. Collective over the world."""
        trial = trial_of(self._base, one, is_chosen=True)
        outcomes = gather(self._control, train_trial(trial.config, STEPS, groups))
        return None if self._expected is None else judged(trial, outcomes, self._expected)


def _around(plan: RunPlan, groups: ParallelGroups, chosen: Setting) -> list[Verdict | None]:
    """Try layouts of the same ranks in which fewer axes are used, to find the one at fault. Collective."""
    world, micro_batches = plan.world_size, max(2, chosen.micro_batches)
    plain = Setting(dp=world, micro_batches=micro_batches)
    settings = [plain, replace(plain, micro_batches=1)]
    pipeline = replace(plain, pp=chosen.pp, dp=world // chosen.pp)
    if chosen.pp > 1:
        settings += [pipeline, replace(pipeline, micro_batches=1)]
    if chosen.tp > 1:
        tensor = replace(plain, tp=chosen.tp, dp=world // chosen.tp, micro_batches=1)
        settings += [tensor, *([replace(tensor, sequence_parallel=True)] if chosen.sequence_parallel else [])]
    if chosen.zero_stage or plan.zero_stage:
        settings.append(sharded(plain, plan.zero))
    if chosen.schedule is not PipelineSchedule.f1b1:
        settings.append(replace(pipeline, schedule=chosen.schedule))
    tested = _Tested(plan, groups, world * micro_batches)
    found = [tested.verdict(one, _placed(one, plan, groups)) for one in dict.fromkeys(settings)]
    if chosen.pp > 1 and plan.config.model.tied_embeddings:
        untied = _Tested(plan, groups, world * micro_batches, tied=False)
        one = replace(pipeline, untied=True)
        found.append(untied.verdict(one, _placed(one, plan, groups)))
    return found


def _placed(one: Setting, plan: RunPlan, groups: ParallelGroups) -> ParallelGroups:
    """Return this rank's place in another layout of the same ranks. Collective over the world."""
    return start_world(Mesh(one.pp, one.dp, one.tp), plan.config.runtime, groups.device)


def _told(verdicts: Sequence[Verdict | None], seconds: float) -> str:
    """Return what was proved, in one line; empty where nobody judges."""
    known = [one for one in verdicts if one is not None]
    if not known:
        return ""
    names = "; ".join(one.trial.name for one in known)
    worst = ", ".join(f"{name} {value:.0e}" for name, value in known[0].errors.items())
    return (
        f"self-test  {names}: {STEPS} steps of a small model of this structure, with {known[0].tensors} tensors, equal "
        f"the oracle's (largest relative differences in fp32: {worst}; {seconds:.1f} s)"
    )


def _failure(verdicts: Sequence[Verdict | None]) -> SelfTestFailed | None:
    """Return the error that names tensor and axis; None where nobody judges."""
    known = [one for one in verdicts if one is not None]
    if not known:
        return None
    fault = faults_of(known)[0]
    one = fault.verdict
    found = "; ".join(finding.text for finding in one.findings[:_SHOWN]) or one.failure
    more = f"; and {len(one.findings) - _SHOWN} more" if len(one.findings) > _SHOWN else ""
    return SelfTestFailed(
        f"DeepSpeed {version('deepspeed')} must compute here what one plain process computes, but with "
        f"{one.trial.name} {found}{more}; the axis at fault: {fault.title}",
        hints=[
            "install the tested version of DeepSpeed (constraints.txt), or use a layout without that axis",
            f"`trident parity` with the same words shows every layout around {spelled(known[0].trial.config.layout)}",
        ],
    )
