"""Which axis is at fault follows from which trials disagree."""

from __future__ import annotations

import pytest

from trainer.config.schema import PipelineSchedule, TridentConfig
from trainer.proving.faults import faults_of
from trainer.proving.proof_trials import Setting, trial_of
from trainer.proving.verdict import Finding, Verdict

PLAIN, MANY = Setting(), Setting(micro_batches=4)
PIPELINE, ONE, UNTIED = Setting(pp=2, micro_batches=4), Setting(pp=2), Setting(pp=2, micro_batches=4, untied=True)
TENSOR, DATA = Setting(tp=2), Setting(dp=2)
SEQUENCE = Setting(tp=2, sequence_parallel=True)
ZERO = Setting(dp=2, zero_stage=1)
FOLDED = Setting(pp=2, micro_batches=4, schedule=PipelineSchedule.dualpipev)
BOTH = Setting(pp=2, tp=2, micro_batches=4)
ALL = (PLAIN, MANY, PIPELINE, ONE, UNTIED, TENSOR, DATA, SEQUENCE, ZERO, FOLDED, BOTH)


@pytest.mark.parametrize(
    ("wrong", "titles"),
    [
        ((), []),
        (ALL, ["one process alone"]),
        ((PIPELINE, ONE, UNTIED, FOLDED, BOTH), ["pipeline"]),
        ((PIPELINE, ONE, FOLDED, BOTH), ["tied embeddings"]),
        ((TENSOR, SEQUENCE, BOTH), ["tensor"]),
        ((SEQUENCE,), ["sequence"]),
        ((DATA, ZERO), ["data"]),
        ((ZERO,), ["ZeRO"]),
        ((FOLDED,), ["schedule"]),
        ((MANY, PIPELINE, UNTIED, FOLDED, BOTH), ["accumulation"]),
        ((PIPELINE, UNTIED, FOLDED, BOTH), ["pipeline x accumulation"]),
        ((BOTH,), ["pipeline x tensor"]),
        ((DATA, ZERO, SEQUENCE), ["data", "sequence"]),
    ],
)
def test_the_fewest_axes_that_explain_all_trials_are_named(wrong: tuple[Setting, ...], titles: list[str]) -> None:
    verdicts = [
        Verdict(trial_of(TridentConfig(), one), findings=(Finding("the loss"),) if one in wrong else ()) for one in ALL
    ]
    assert sorted(fault.title for fault in faults_of(verdicts)) == sorted(titles)


def test_a_trial_that_failed_disagrees() -> None:
    verdict = Verdict(trial_of(TridentConfig(), DATA), failure="rank 1 failed: KeyError: 'x'")
    assert [fault.title for fault in faults_of([verdict])] == ["data"]


def test_a_finding_is_a_phrase() -> None:
    found = Finding("the gradient", "blocks.0.mlp.up.weight", 1.0, 2e-6, 0)
    assert found.text == (
        "the gradient of blocks.0.mlp.up.weight (stage 0) is off by 1.0e+00 of its size, 2e-06 is allowed"
    )
    assert Finding("a step was skipped").text == "a step was skipped"
