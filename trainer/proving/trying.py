"""Trying the trials of a proof in forked ranks, and judging each as soon as its ranks are done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trainer.config.schema import AdamImplementation, OffloadKind, TridentConfig
from trainer.proving.expectation import Expectation, expectation_of, settled_optimizer
from trainer.proving.faults import Fault, is_of_forward, vectors_at_fault
from trainer.proving.forked_ranks import RanksFailed, run_forked
from trainer.proving.proof_trials import Proof, Trial
from trainer.proving.proof_weights import vector_kinds
from trainer.proving.rank_outcome import RankOutcome, forked_trials, plan_of_trial
from trainer.proving.verdict import Verdict, judged

TRIALS_A_RANK = 6
"""Each trial leaves the threads of its process groups behind; after dozens of them ranks do little but switch them."""
_START_S, _TRIAL_S = 60.0, 20.0
"""Seconds that ranks get to start, and for each trial and rank on a busy machine of two cores."""


def needs_adam_kernel(trials: Sequence[Trial]) -> bool:
    """Return whether any trial steps with DeepSpeed's own kernel, which is compiled the first time."""
    return any(
        one.setting.offload is not OffloadKind.none
        or one.config.optimizer.implementation is AdamImplementation.deepspeed_cpu
        for one in trials
    )


def tried(proof: Proof, steps: int) -> Iterator[Verdict]:
    """Yield the verdict of each trial, those of few ranks first. `warm_up` should have run in this process.

    Args:
        proof: the trials.
        steps: number of steps of each.
    """
    expectations = _Expectations(proof, steps)
    for trials in _together(proof.trials):
        settled = [replace(one, config=expectations.settled(one)) for one in trials]
        yield from _verdicts(settled, expectations, steps)


def _together(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    """Yield trials that share their ranks."""
    by_world: dict[int, list[Trial]] = {}
    for one in trials:
        by_world.setdefault(one.world_size, []).append(one)
    for _, same in sorted(by_world.items()):
        for first in range(0, len(same), TRIALS_A_RANK):
            yield same[first : first + TRIALS_A_RANK]


class _Expectations:
    """The oracle's numbers, trained once for each model of a proof: as it is, and with its tie undone."""

    def __init__(self, proof: Proof, steps: int) -> None:
        self._proof, self._steps = proof, steps
        self._configs: dict[bool, TridentConfig] = {}
        self._found: dict[bool, Expectation] = {}

    def settled(self, trial: Trial) -> TridentConfig:
        """Return a trial's config with the optimizer of its model."""
        untied = trial.setting.untied
        if untied not in self._configs:
            base = self._proof.run.config
            tied = base.model.tied_embeddings and not untied
            self._configs[untied] = settled_optimizer(replace(base, model=replace(base.model, tied_embeddings=tied)))
        return replace(trial.config, optimizer=self._configs[untied].optimizer)

    def of(self, trial: Trial) -> Expectation:
        """Return what a trial must find."""
        untied = trial.setting.untied
        if untied not in self._found:
            dtypes = tuple(dict.fromkeys(one.setting.dtype for one in self._proof.trials))
            self._found[untied] = expectation_of(self._configs[untied], self._steps, dtypes)
        return self._found[untied]


def _verdicts(trials: Sequence[Trial], expectations: _Expectations, steps: int) -> Iterator[Verdict]:
    try:
        outcomes = _forked([(one.config, None) for one in trials], trials[0].world_size, steps)
    except RanksFailed as failed:
        if len(trials) == 1:
            yield Verdict(trials[0], failure=str(failed), details=failed.details)
            return
        # One of them did it: each gets ranks of its own.
        for one in trials:
            yield from _verdicts([one], expectations, steps)
        return
    for index, one in enumerate(trials):
        yield judged(one, [rank[index] for rank in outcomes], expectations.of(one))


def _forked(trials: Sequence[tuple[TridentConfig, str | None]], world_size: int, steps: int) -> list[list[RankOutcome]]:
    limit = _START_S + _TRIAL_S * len(trials) * max(1, world_size / 2)
    found: list[list[RankOutcome]] = run_forked(forked_trials, world_size, trials, steps, timeout_s=limit)
    return found


def explained(fault: Fault) -> Fault:
    """Return a fault with the vectors that it is in, where they can be told; trains its smallest trial again."""
    trial = fault.verdict.trial
    if not is_of_forward(fault):
        return fault
    tried_alone = ["", *vector_kinds(plan_of_trial(trial.config))]
    agrees: dict[str, bool] = {}
    for first in range(0, len(tried_alone), TRIALS_A_RANK):
        some = tried_alone[first : first + TRIALS_A_RANK]
        try:
            outcomes = _forked([(trial.config, only) for only in some], trial.world_size, 1)
        except RanksFailed:
            return fault
        for index, only in enumerate(some):
            expected = expectation_of(trial.config, 1, (trial.setting.dtype,), only)
            agrees[only] = judged(trial, [rank[index] for rank in outcomes], expected).agrees
    return replace(fault, vectors=vectors_at_fault(agrees.__getitem__, tried_alone[1:]))
