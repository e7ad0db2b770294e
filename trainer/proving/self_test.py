"""`runtime.self_test`: before step 1 the run's own ranks train a small model in its layout, and so does the oracle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version

from trainer.config.layout_words import spelled
from trainer.config.models import sizes
from trainer.config.pipeline_schedules import SCHEDULES
from trainer.config.schema import Dtype, TridentConfig
from trainer.engine.world import start_world
from trainer.errors import TridentError
from trainer.mesh import Mesh
from trainer.proving.expectation import Expectation, expectation_of, settled_optimizer
from trainer.proving.faults import faults_of, vectors_at_fault
from trainer.proving.proof_trials import Setting, sharded, trial_of
from trainer.proving.proof_weights import vector_kinds
from trainer.proving.rank_outcome import plan_of_trial, train_trial
from trainer.proving.scaled_model import Extent
from trainer.proving.scaled_run import scaled_run
from trainer.proving.verdict import FIRST_LOSS, Verdict, judged
from trainer.topology.agreement import gather
from trainer.topology.groups import ParallelGroups

STEPS = 2
"""The second step sees what the first one did to the weights."""
_MOST_HEADS = 2
"""Query heads for one key/value head: each tensor-parallel rank has one of the latter."""
_SHOWN = 2


class SelfTestFailed(TridentError):
    """The ranks of a run do not compute what the oracle computes."""


def self_test(config: TridentConfig, vocab_size: int, groups: ParallelGroups) -> str:
    """Train a small model in the run's layout, compare it with the oracle, and return a line about what was proved.

    Collective over the world. On the run's devices, in fp32 and in the run's precision, through the run's schedule,
    ZeRO stage and offload. Nothing of it stays.

    Args:
        config: of the run.
        vocab_size: number of token ids.
        groups: this rank's place.

    Raises:
        SelfTestFailed: something differs; names tensor and axis. On every rank.
    """
    begun = time.monotonic()
    chosen = _settings(config, groups.mesh)
    tested = _Tested(config, vocab_size, groups, chosen[0].dp * chosen[0].micro_batches)
    verdicts = [tested.verdict(one, groups) for one in chosen]
    wrong = gather(groups.control, any(not one.agrees for one in verdicts if one is not None))[0]
    if not wrong:
        return gather(groups.control, _told(verdicts, time.monotonic() - begun))[0]
    known = [one for one in verdicts if one is not None]
    is_of_forward = any(finding.what == FIRST_LOSS for one in known[:1] for finding in one.findings)
    vectors = tested.vectors(chosen[0], groups) if gather(groups.control, is_of_forward)[0] else ()
    verdicts += _around(config, vocab_size, groups, chosen[0])
    error = gather(groups.control, _failure(verdicts, vectors))[0]
    assert error is not None
    raise error


def _settings(config: TridentConfig, mesh: Mesh) -> list[Setting]:
    """Return the run's layout in fp32, and in the run's precision."""
    pp, tp, dp = mesh.pipeline_parallel_size, mesh.tensor_parallel_size, mesh.data_parallel_size
    schedule = config.layout.pipeline_schedule
    fewest = SCHEDULES[schedule].fewest_micro_batches(pp) if pp > 1 else 1
    is_one = config.batch.global_batch_size == config.batch.micro_batch_size * dp
    one = Setting(
        pp,
        tp,
        dp,
        1 if is_one else max(2, fewest),
        config.layout.sequence_parallel,
        schedule,
        recompute=config.model.recompute,
    )
    dtypes = dict.fromkeys((Dtype.fp32, config.precision.dtype))
    return [sharded(replace(one, dtype=dtype), config.zero) for dtype in dtypes]


class _Tested:
    """The scaled run, and on rank 0 the oracle's numbers of it. Made collectively.

    Args:
        config: of the run.
        vocab_size: number of token ids.
        groups: this rank's place.
        sequences: global batch.
        tied: false for the same model with its tie undone.
    """

    def __init__(
        self, config: TridentConfig, vocab_size: int, groups: ParallelGroups, sequences: int, tied: bool = True
    ) -> None:
        tensor, pp = groups.mesh.tensor_parallel_size, groups.mesh.pipeline_parallel_size
        stages = SCHEDULES[config.layout.pipeline_schedule].stages(pp) if pp > 1 else 1
        shares = 1 < sizes(config.model).num_key_value_heads < tensor
        base = scaled_run(config, vocab_size, Extent(tensor, stages, shares, _MOST_HEADS), sequences).config
        runtime = replace(config.runtime, compile=False)
        model = replace(base.model, tied_embeddings=base.model.tied_embeddings and tied)
        base = replace(base, runtime=runtime, model=model)
        self._control = groups.control
        optimizer = gather(self._control, settled_optimizer(base).optimizer if groups.is_reporting_rank else None)[0]
        assert optimizer is not None
        self._base = replace(base, optimizer=optimizer)
        self._expected: Expectation | None = None
        if groups.is_reporting_rank:
            self._expected = expectation_of(self._base, STEPS, tuple({Dtype.fp32, config.precision.dtype}))

    def verdict(self, one: Setting, groups: ParallelGroups) -> Verdict | None:
        """Train a setting and judge it, on rank 0; None on the others. Collective over the world."""
        trial = trial_of(self._base, one, is_chosen=True)
        outcomes = gather(self._control, train_trial(trial.config, STEPS, groups))
        return None if self._expected is None else judged(trial, outcomes, self._expected)

    def vectors(self, one: Setting, groups: ParallelGroups) -> tuple[str, ...]:
        """Return the vectors that make a setting disagree; see `Fault.vectors`. Collective over the world."""
        trial = trial_of(self._base, one)

        def agrees(only: str) -> bool:
            outcomes = gather(self._control, train_trial(trial.config, 1, groups, only))
            fine = True
            if self._expected is not None:
                fine = judged(trial, outcomes, expectation_of(trial.config, 1, (one.dtype,), only)).agrees
            return gather(self._control, fine)[0]

        return vectors_at_fault(agrees, vector_kinds(plan_of_trial(trial.config)))


def _around(
    config: TridentConfig, vocab_size: int, groups: ParallelGroups, chosen: Setting
) -> Iterator[Verdict | None]:
    """Try layouts of the same ranks in which fewer axes are used, to find the one at fault. Collective."""
    world, micro_batches = groups.mesh.size, max(2, chosen.micro_batches)

    def placed(one: Setting) -> ParallelGroups:
        return start_world(Mesh(one.pp, one.dp, one.tp), config.runtime, groups.device)

    tested = _Tested(config, vocab_size, groups, world * micro_batches)
    for one in _fewer_axes(config, chosen, world, micro_batches):
        yield tested.verdict(one, placed(one))
    if chosen.pp > 1 and config.model.tied_embeddings:
        untied = _Tested(config, vocab_size, groups, world * micro_batches, tied=False)
        one = Setting(chosen.pp, dp=world // chosen.pp, micro_batches=micro_batches, untied=True)
        yield untied.verdict(one, placed(one))


def _fewer_axes(config: TridentConfig, chosen: Setting, world: int, micro_batches: int) -> list[Setting]:
    plain = Setting(dp=world, micro_batches=micro_batches)
    # Without ZeRO, a layout with it: replicas are averaged by other means. Stage 1 beside stage 2 would say less, since
    # both are ZeRO and not always wrong together.
    other_way = sharded(plain, config.zero, 1) if config.zero.stage == 0 else sharded(plain, config.zero)
    found = [plain, replace(plain, micro_batches=1), other_way]
    pipeline = replace(plain, pp=chosen.pp, dp=world // chosen.pp)
    tensor = replace(plain, tp=chosen.tp, dp=world // chosen.tp, micro_batches=1)
    if chosen.pp > 1:
        found += [pipeline, replace(pipeline, micro_batches=1), replace(pipeline, schedule=chosen.schedule)]
    if chosen.tp > 1:
        found += [tensor, replace(tensor, sequence_parallel=chosen.sequence_parallel)]
    return list(dict.fromkeys(found))


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


def _failure(verdicts: Sequence[Verdict | None], vectors: tuple[str, ...]) -> SelfTestFailed | None:
    """Return the error that names tensor and axis; None where nobody judges."""
    known = [one for one in verdicts if one is not None]
    if not known:
        return None
    fault = replace(faults_of(known)[0], vectors=vectors)
    one = fault.verdict
    numbers = [finding.text for finding in one.findings if not finding.tensor]
    tensors = [finding.text for finding in one.findings if finding.tensor]
    shown = [*numbers[:1], *tensors[:_SHOWN]]
    more = f"; and {len(one.findings) - len(shown)} more" if len(one.findings) > len(shown) else ""
    told = f"{fault.vectors_text}; " if vectors else ""
    # A plain process is not among the layouts that these ranks can have.
    title = fault.title if any(other.agrees for other in known) else "every layout of these ranks"
    return SelfTestFailed(
        f"DeepSpeed {version('deepspeed')} must compute here what one plain process computes, but with "
        f"{one.trial.name} {'; '.join(shown)}{more}; {told}the axis at fault: {title}",
        hints=[
            "install the tested version of DeepSpeed (constraints.txt), or use a layout without that axis",
            f"`trident parity` with the same words shows every layout around {spelled(known[0].trial.config.layout)}",
        ],
    )
