"""Trials of a proof in forked ranks: healthy ones agree with the oracle."""

from __future__ import annotations

import pytest

from trainer.config.compose import compose
from trainer.engine.warm_start import warm_up
from trainer.proving.proof_trials import Proof, Setting, Trial, proof_of, sharded, trial_of
from trainer.proving.trying import tried


def proof(words: list[str], *settings: Setting) -> Proof:
    """Return a proof of some settings alone."""
    config = compose(words)
    whole = proof_of(config, config.model.vocab_size)
    trials = (trial_of(whole.run.config, sharded(one, config.zero, one.zero_stage)) for one in settings)
    return Proof(whole.run, tuple(trials), ())


@pytest.mark.dist
def test_layouts_of_two_ranks_agree_with_the_oracle() -> None:
    warm_up()
    two = (Setting(pp=2, micro_batches=4), Setting(tp=2, sequence_parallel=True), Setting(dp=2, micro_batches=2))
    verdicts = list(tried(proof(["model=llama3_8b"], *two), steps=2))
    assert [(one.trial.name, one.findings, one.failure) for one in verdicts] == [
        (one.trial.name, (), "") for one in verdicts
    ]
    assert {one.trial.setting for one in verdicts} == set(two)


def test_a_trial_is_named_by_its_layout() -> None:
    named: Trial = proof([], Setting(pp=2, micro_batches=4)).trials[0]
    assert named.name == "pp2, 4 micro-batches, fp32"
